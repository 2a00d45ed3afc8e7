"""Identify the knowledge source of a run: its own build, or a finished database, read in place.

is_database("s3://bucket/enwiki-20230401.db")  ->  True     18 GB, so it is not hashed whole
fingerprint("enwiki-20230401.db")           ->  "5f0c..."
"""

from __future__ import annotations

import hashlib

from facttune_ray.errors import UserError
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder

_ENDINGS = (".db", ".sqlite", ".sqlite3")
_EDGE = 2**20  # bytes at each end that a fingerprint reads


def is_database(path: str) -> bool:
    """Whether a path names a database, by its suffix. A JSONL file is first built into one."""
    return path.lower().endswith(_ENDINGS)


def fingerprint(path: str) -> str:
    """Digest of a file's size, first and last megabyte. Raise UserError when it is missing."""
    file = Folder.of(path)
    try:
        with file.fs.open_input_file(file.path) as f:
            size = f.size()
            edges = f.read(_EDGE), f.read_at(min(size, _EDGE), max(0, size - _EDGE))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file: check data.folder and data.knowledge") from None
    return digest(size, *(hashlib.sha256(e).hexdigest() for e in edges))
