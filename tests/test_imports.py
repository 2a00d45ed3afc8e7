"""Imports point one way, and heavy libraries are imported only where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "facttune_ray"
HEAVY = ("torch", "transformers", "deepspeed", "ray", "openai", "matplotlib", "pyarrow")


def imported(file: Path, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def test_help_answers_without_a_heavy_library():
    code = "import sys, facttune_ray.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "heavy: []"


def test_the_parts_a_gpu_check_uses_need_neither_ray_nor_deepspeed():
    names = ("training.step", "training.model", "training.reference", "sampling.transformers")
    names += ("evaluation.metrics", "config")
    code = "import sys\n" + "".join(f"import facttune_ray.{n}\n" for n in names)
    code += "print([m for m in ('ray', 'deepspeed', 'omegaconf') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


PURE = [*PACKAGE.glob("scoring/*.py"), PACKAGE / "training/losses.py"]
PURE += [
    PACKAGE / f"evaluation/{n}.py" for n in ("metrics", "resampling", "comparisons", "agreement")
]


@pytest.mark.parametrize("file", PURE, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_pure_modules_know_neither_ray_nor_files(file):
    for name in imported(file):
        assert not name.startswith(("ray", "pyarrow.fs", "pyarrow.parquet", "pathlib", "openai"))
        assert not name.startswith(("facttune_ray.storage.tables", "facttune_ray.llm"))


ROOMS = ("scoring", "llm", "sampling", "knowledge", "prompts", "interop")


@pytest.mark.parametrize("room", ROOMS)
def test_lower_rooms_do_not_look_up(room):
    above = ("stages", "pipeline", "facttune", "cli", "evaluation", "training", "quickstart")
    for file in (PACKAGE / room).glob("*.py"):
        for name in imported(file):
            assert not name.startswith(tuple(f"facttune_ray.{a}" for a in above)), (file, name)


def test_stages_meet_only_in_tables():
    free = {"context", "connect", "evidence", "worker", "__init__", "prompts"}
    for file in (PACKAGE / "stages").glob("*.py"):
        for name in imported(file):
            parts = name.split(".")
            if parts[:2] == ["facttune_ray", "stages"] and file.stem not in free:
                assert parts[2] in ("context", "connect", "evidence"), (file.name, name)
