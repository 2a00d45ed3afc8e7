"""Plants bugs one by one in a copy of the package: the simulator must find each.

for mutant in listed():
    seed, rule, why = hunt(mutant, range(10_000))
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
HUNT = """
import sys
from simulation.seeds import examine
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    for rule, why in examine(seed)["broken"]:
        print(seed, rule, why)
        sys.exit()
"""


@dataclass(frozen=True)
class Mutant:
    name: str
    seed: int  # the first seed that found it
    file: str  # in facttune_ray
    rule: str  # the rule that should find it; another rule may come first
    old: str
    new: str


def listed() -> list[Mutant]:
    found = tomllib.loads((HERE / "mutants.toml").read_text())
    return [Mutant(**m) for m in found["mutant"]]


def plant(mutant: Mutant, folder: Path) -> None:
    """Copy the package to `folder`, with this bug. ValueError unless its text is there once."""
    shutil.copytree(REPO / "facttune_ray", folder / "facttune_ray")
    (folder / "conf").symlink_to(REPO / "conf")
    file = folder / "facttune_ray" / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name}: {mutant.file} has its text {text.count(mutant.old)} times"
        )
    file.write_text(text.replace(mutant.old, mutant.new))


def hunt(mutant: Mutant, seeds: range) -> tuple[int, str, str] | None:
    """(first seed that finds the bug, rule, why), or None."""
    with tempfile.TemporaryDirectory() as folder:
        plant(mutant, Path(folder))
        path = os.pathsep.join([folder, str(REPO / "tests")])
        done = subprocess.run(
            [sys.executable, "-c", HUNT, str(seeds.start), str(seeds.stop)],
            cwd=folder,  # modules there come before installed ones
            env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    if not done.stdout:
        return None
    seed, rule, why = done.stdout.split(" ", 2)
    return int(seed), rule, why.strip()


if __name__ == "__main__":
    for each in listed():
        if not sys.argv[1:] or sys.argv[1] in each.name:
            print(f"{each.name}: {hunt(each, range(10_000))}, expected {each.rule}", flush=True)
