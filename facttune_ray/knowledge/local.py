"""A file of an object store -> a copy on this node, fetched once.

local_copy("s3://bucket/enwiki.db")  ->  "/tmp/facttune-knowledge/4f1c.../enwiki.db"
local_copy("out/knowledge.db")       ->  "out/knowledge.db"
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.schema import digest
from facttune_ray.tables import Folder


def local_copy(uri: str, cache: str | None = None) -> str:
    """The path of a file that this node can open; a local path as it is.

    cache: folder of the copies (default: facttune-knowledge in the system's folder for temporary
    files). A copy is named by URI, size and time of change, and appears whole or not at all; of
    several processes one fetches and the others wait. An index beside the file (`URI.fts.db`)
    comes with it. UserError when the file is missing or the disk is full.
    """
    if "://" not in uri:
        return uri
    import fcntl  # not on Windows, where local paths work

    folder = Path(cache or Path(tempfile.gettempdir(), "facttune-knowledge"))
    file = Folder.of(uri)
    index = Folder(file.fs, file.path + ".fts.db")
    try:
        info = file.fs.get_file_info(file.path)
        if not info.is_file:
            raise UserError(f"knowledge source {uri} does not exist, or is no file")
        beside = index.fs.get_file_info(index.path)
        marks = [(i.size, i.mtime_ns) for i in (info, beside) if i.is_file]
        place = folder / digest(uri, marks)
        copy = place / Path(file.path).name
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed when its process ends, however it ends
            if not copy.exists():
                if beside.is_file:
                    _fetch(index, copy.with_name(copy.name + ".fts.db"))
                _fetch(file, copy)
    except OSError as e:
        reason = " ".join((e.strerror or str(e)).split())
        raise UserError(f"knowledge source {uri}: cannot be copied to {folder}: {reason}") from None
    return str(copy)


def _fetch(source: Folder, target: Path) -> None:
    unfinished = target.with_name(target.name + ".tmp")
    try:
        source.download(unfinished)
        os.replace(unfinished, target)
    except BaseException:  # a full disk, above all: give the space back
        unfinished.unlink(missing_ok=True)
        raise
