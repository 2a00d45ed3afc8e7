"""Which spaCy pipeline made the rows of a table: part of the recipes of `facts` and `entities`."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder
from facttune_ray.text import pipelines


@functools.cache
def version(key: str, name: str) -> str:
    """Name and version of a package, or a digest of the files of a folder, wherever it lies.
    `key`: the setting that names it. UserError when the pipeline is neither."""
    folder = Path(name)
    if folder.is_dir():
        return digest(*(_file(p, folder) for p in sorted(folder.rglob("*")) if p.is_file()))
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return f"{name} {pipelines.load(key, name).meta['version']}"  # raises UserError


def _file(path: Path, folder: Path) -> str:
    with path.open("rb") as file:
        return f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def check_same(key: str, name: str, table: Folder) -> None:
    """UserError where this machine has another version of the pipeline than the recipe of an
    unfinished table: its rows would differ from those of other workers."""
    recipe, here = (table / tables.RECIPE).read_json() or {}, version(key, name)
    if (wanted := recipe.get(key, here)) != here:
        raise UserError(
            f'{key}: this worker has "{here}", the driver "{wanted}": install the same version '
            f"on every node, or give a folder that all nodes see"
        )
