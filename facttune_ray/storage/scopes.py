"""Find the folder of a run, and the folders in it that hold finished tables.

list(scored(root))      ["base/tune", "facttune_fs/round_1/test", "imported/all"]
list(preferred(root))   ["facttune_fs/round_1"]
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.fs as pafs

from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder


def run_folder(run: str) -> Folder:
    """The folder of a run, given by its path or URI. UserError if there is no such folder."""
    root = Folder.of(run)
    if root.is_file():
        raise UserError(f"{run} is a file: name the folder of a run")
    if not root.exists():
        raise UserError(f"{run} does not exist: nothing has been run there")
    return root


SCORED = ("verdicts", "questions", "entities", "rewards")  # any of these makes a scope


def scored(root: Folder, within: str = "") -> Iterator[str]:
    """Folders of a run with finished responses and a finished table of scores: "imported/all"."""
    here = root / within if within else root
    if tables.has_manifest(here / "responses") and any(
        tables.has_manifest(here / name) for name in SCORED
    ):
        yield within
        return
    for name in _folders(here):
        yield from scored(root, f"{within}/{name}" if within else name)


def _folders(folder: Folder) -> list[str]:
    inside = folder.fs.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    names = sorted(i.base_name for i in inside if i.type == pafs.FileType.Directory)
    return [n for n in names if "." not in n and not n.startswith("_")]


def preferred(root: Folder, within: str = "") -> Iterator[str]:
    """Folders of a run with finished groups: "facttune_fs/round_1"."""
    here = root / within if within else root
    if tables.has_manifest(here / "groups"):
        yield within
    for name in _folders(here):
        yield from preferred(root, f"{within}/{name}" if within else name)
