"""Copy a knowledge source from an object store to this node, once.

local_copy("s3://bucket/enwiki.db")  ->  "/tmp/facttune-knowledge/4f1c.../bucket/enwiki.db"
local_copy("out/knowledge.db")       ->  "out/knowledge.db"
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder, fetched


def local_copy(uri: str, cache: str | None = None) -> str:
    """The path of a file that this node can open; a local path is returned unchanged.

    `cache`: folder of the copies (default: facttune-knowledge in the system's temporary folder).
    An index beside the file (`URI.fts.db`) is copied, too. Raise UserError when the file is missing
    or cannot be copied.
    """
    if "://" not in uri:
        return uri
    root = Path(cache or Path(tempfile.gettempdir(), "facttune-knowledge"))
    file = Folder.of(uri)
    parent, _, name = file.path.rpartition("/")
    source = replace(file, path=parent)
    try:
        beside = {n: file.fs.get_file_info(f"{parent}/{n}") for n in (name, f"{name}.fts.db")}
        files = {n: info for n, info in beside.items() if info.is_file}
        if name not in files:
            raise UserError(f"knowledge source {uri} does not exist, or is not a file")
        return str(fetched(source, files, root) / name)
    except OSError as e:
        reason = " ".join((e.strerror or str(e)).split())
        raise UserError(f"knowledge source {uri}: cannot be copied to {root}: {reason}") from None
