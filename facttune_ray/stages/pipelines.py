"""Which spaCy pipeline made the rows of a table: part of the recipes of `facts` and `entities`."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder
from facttune_ray.text import pipelines


@functools.cache
def version(key: str, name: str) -> str:
    """Version of a package, or a digest of the files of a folder, wherever it lies; and that of
    spaCy, whose rules cut words. `key`: the setting that names the pipeline. UserError when it is
    neither. A package is preferred, as `spacy.load` prefers it."""
    folder = Path(name)
    try:
        spacy = f"spaCy {importlib.metadata.version('spacy')}"
    except importlib.metadata.PackageNotFoundError:
        raise pipelines.no_spacy(key, name) from None
    try:
        return f"{name} {importlib.metadata.version(name)}, {spacy}"
    except (importlib.metadata.PackageNotFoundError, ValueError):
        if folder.is_dir():
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            return f"{digest(*(_file(p, folder) for p in files))}, {spacy}"
        meta = pipelines.open_pipeline(key, name).meta  # raises UserError
        return f"{name} {meta['version']}, {spacy}"


def version_or_rules(key: str, name: str) -> str:
    """What finds names for the clean-up: the version of a pipeline, "rules" where it is missing."""
    try:
        return version(key, name)
    except pipelines.NotInstalled:
        if "/" in name:
            raise
        return "rules"


def _file(path: Path, folder: Path) -> str:
    with path.open("rb") as file:
        return f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def check_same(
    key: str, name: str, table: Folder, versioned: Callable[[str, str], str] = version
) -> None:
    """UserError where this machine has another version of the pipeline than the recipe of an
    unfinished table: its rows would differ from those of other workers. `versioned`: what made
    the recipe's value."""
    recipe, here = (table / tables.RECIPE).read_json() or {}, versioned(key, name)
    if (wanted := recipe.get(key, here)) != here:
        raise UserError(
            f'{key}: this worker has "{here}", the driver "{wanted}": install the same version '
            f"on every node, or give a folder that all nodes see"
        )
