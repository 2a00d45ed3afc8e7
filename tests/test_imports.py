"""Imports go one way, and heavy libraries are imported only where they are used."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "facttune_ray"
HEAVY = ("torch", "transformers", "deepspeed", "ray", "openai", "matplotlib", "pyarrow")
# a room may import the rooms before it
ROOMS = (
    "errors secrets telemetry storage config text prompts knowledge llm scoring sampling "
    "verifiers training sources quickstart stages evaluation loop runtime estimate export commands "
    "cli __main__"
).split()


def imported(file: Path) -> set[str]:
    """Full names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    names = {file.relative_to(PACKAGE.parent): file for file in PACKAGE.rglob("*.py")}
    modules = {
        ".".join(name.with_suffix("").parts).removesuffix(".__init__"): file
        for name, file in names.items()
    }
    out: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for target in imported(file):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target not in (name, PACKAGE.name):
                out[name].add(target)
    return out


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_no_module_imports_itself_by_way_of_others():
    seen: dict[str, int] = {}  # 1: being followed, 2: done

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert seen.get(module) != 1, " -> ".join((*path[path.index(module) :], module))
        if module not in seen:
            seen[module] = 1
            for other in sorted(graph()[module]):
                follow(other, (*path, module))
            seen[module] = 2

    for module in sorted(graph()):
        follow(module, ())


def test_rooms_import_those_before_them_alone():
    assert {room(m) for m in graph()} == {"", *ROOMS}  # nothing else stands at the root
    for module, others in graph().items():
        for other in others:
            mine, theirs = room(module), room(other)
            if mine and mine != theirs:
                assert ROOMS.index(theirs) < ROOMS.index(mine), f"{module} imports {other}"


def test_the_house_has_at_most_twelve_floors():
    above = defaultdict(set)
    for module, others in graph().items():
        above[room(module)] |= {room(o) for o in others} - {room(module)}

    @functools.cache
    def floor(name: str) -> int:
        return 1 + max((floor(other) for other in above[name]), default=0)

    assert max(map(floor, ROOMS)) <= 12


def test_help_answers_without_a_heavy_library():
    code = "import sys, facttune_ray.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "heavy: []"


def test_the_parts_a_gpu_check_uses_need_neither_ray_nor_deepspeed():
    names = ("facttune_ray.training.step", "facttune_ray.training.model", "facttune_ray.config")
    names += ("facttune_ray.training.reference", "facttune_ray.sampling.transformers")
    names += ("facttune_ray.evaluation.metrics", "bench.sampling", "bench.dpo_trainers")
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent / 'jobs')!r})\n"
    code += "".join(f"import {n}\n" for n in names)
    code += "print([m for m in ('ray', 'deepspeed', 'omegaconf', 'pydantic') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["text.cleanup", "text.parsed", "text.pipelines"])
def test_spacy_is_imported_where_a_pipeline_is_loaded(module):
    code = f"import sys, facttune_ray.{module}; print('spacy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


PURE = [*PACKAGE.glob("scoring/*.py"), *PACKAGE.glob("text/*.py"), PACKAGE / "training/losses.py"]
PURE += [
    PACKAGE / f"evaluation/{n}.py" for n in ("metrics", "resampling", "comparisons", "agreement")
]


@pytest.mark.parametrize("file", PURE, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_pure_modules_know_neither_ray_nor_files(file):
    for name in imported(file):
        assert not name.startswith(("ray", "pyarrow.fs", "pyarrow.parquet", "pathlib", "openai"))
        assert not name.startswith(("facttune_ray.storage", "facttune_ray.llm"))


def test_only_the_runtime_knows_ray_data():
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name != "runtime":
            assert not any(name.startswith("ray.data") for name in imported(file)), file


def test_stages_meet_only_in_tables():
    shared = {"context", "connect", "evidence", "pipelines", "work"}
    for file in (PACKAGE / "stages").glob("*.py"):
        for name in imported(file):
            parts = name.split(".")
            a_stage = file.stem not in shared | {"traces"}  # traces reads what stages have asked
            if parts[:2] == ["facttune_ray", "stages"] and a_stage:
                assert parts[2] in shared, (file.name, name)
