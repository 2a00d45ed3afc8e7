"""Find the folder of a run, and the folders in it that hold finished tables.

found = finished(root)   {"base/tune": {"responses", "facts", "verdicts"}, ...}
scored(found)            ["base/tune", "facttune_fs/round_1/test", "imported/all"]
preferred(found)         ["facttune_fs/round_1"]
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import MANIFEST

IMPORTED = "imported/all"  # scope of responses that come from files
SECOND = "second_opinion"  # folder of the second judge's verdicts, within a scope
SCORES = {"verdicts", "questions", "entities", "rewards"}


def run_folder(run: str) -> Folder:
    """The folder of a run, given by its path or URI. UserError if there is no such folder."""
    root = Folder.of(run)
    if root.is_file():
        raise UserError(f"{run} is a file: name the folder of a run")
    if not root.exists():
        raise UserError(f"{run} does not exist: nothing has been run there")
    return root


def finished(root: Folder) -> dict[str, set[str]]:
    """Folder of a run -> the names of its finished tables. One listing of the run."""
    found: dict[str, set[str]] = {}
    for path in root.files():
        scope, table, file = ["", "", *path.rsplit("/", 2)][-3:]
        if file == MANIFEST:
            found.setdefault(scope, set()).add(table)
    return found


def scored(found: Mapping[str, Set[str]]) -> list[str]:
    """The folders with responses and a table of SCORES."""
    return [s for s, names in found.items() if "responses" in names and names & SCORES]


def preferred(found: Mapping[str, Set[str]]) -> list[str]:
    """The folders with groups."""
    return [s for s, names in found.items() if "groups" in names]
