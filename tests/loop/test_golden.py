"""Nodes and recipe fingerprints of every preset, recorded once: a run folder stays valid.

A fingerprint that changes makes every user's finished tables refused. Where that is meant (a
stage's VERSION was raised), record the file again by `python tests/loop/test_golden.py`.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from facttune_ray.config import load
from facttune_ray.loop.dry_run import DryRun
from facttune_ray.loop.facttune import facttune
from facttune_ray.loop.run import Run

FILE = Path(__file__).with_name("golden") / "nodes.json"
GOLDEN = json.loads(FILE.read_text())
RESPONSE = '{"topic": "Ada", "input": "Who is Ada?", "output": "Ada sings."}\n'


def inputs(folder: Path) -> None:
    """The files that the configs name."""
    (folder / "topics.txt").write_text("".join(f"Topic {i}\n" for i in range(600)))
    (folder / "knowledge.jsonl").write_text('{"title": "Ada", "text": "Ada sings."}\n')
    for name in ("ChatGPT", "InstructGPT", "m"):
        (folder / f"{name}.jsonl").write_text(RESPONSE)


def nodes(words: list[str]) -> dict[str, str]:
    """Node -> fingerprint, in the order of the loop; nothing is made."""
    cfg = load([w for w in words if "=" not in w], [w for w in words if "=" in w])
    run = Run(DryRun(cfg))
    facttune(run)
    return {name: run.fingerprint(name) for name in run.recipes}


@pytest.mark.parametrize("name", GOLDEN)
def test_nodes_and_fingerprints_are_those_recorded(name, tmp_path, monkeypatch):
    inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    found, golden = nodes(GOLDEN[name]["config"]), GOLDEN[name]["nodes"]
    assert {k: v for k, v in found.items() if golden.get(k) != v} == {}
    assert sorted(found) == sorted(golden)


if __name__ == "__main__":
    import tempfile

    file = FILE.resolve()
    with tempfile.TemporaryDirectory() as here:
        os.chdir(here)
        inputs(Path(here))
        for made in GOLDEN.values():
            made["nodes"] = nodes(made["config"])
    file.write_text(json.dumps(GOLDEN, indent=1) + "\n")
    sys.exit(0)
