"""Names that no import checks: in strings, in code that tests start, in documentation."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SOURCES = [f for d in ("facttune_ray", "jobs", "tests") for f in sorted((REPO / d).rglob("*.py"))]
PAGES = [REPO / "README.md", *REPO.glob("*/**/README.md")]
PAGES = [p for p in PAGES if ".venv" not in p.parts]
TAGS = {"facttune_ray.run"}  # MLflow's tag of a run; no module
NAME = re.compile(r"\b(?:facttune_ray|bench)(?:\.[a-zA-Z_]\w*)+")


def shown(path: Path) -> str:
    return str(path.relative_to(REPO))


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, a folder, or what a module defines or imports."""
    root = REPO / "jobs" if dotted.startswith("bench") else REPO
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        file = root.joinpath(*parts[:i])
        for module in (file.with_suffix(".py"), file / "__init__.py"):
            if module.is_file():
                return i == len(parts) or parts[i] in defined(module)
    return False


@functools.cache
def defined(module: Path) -> frozenset[str]:
    names: set[str] = {"__file__", "__name__"}
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
    return frozenset(names)


@pytest.mark.parametrize("file", SOURCES, ids=shown)
def test_strings_and_attributes_name_what_exists(file):
    """Code in a string (a child process), a patched name, and `module.name` of our modules."""
    tree = ast.parse(file.read_text())
    modules: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = re.sub(r"from (\S+) import (\w+)", r"\1.\2", node.value)
            found |= {m for m in NAME.findall(text) if not re.search(r"\.(db|py|md)$", m)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "facttune_ray",
            "bench",
        ):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full)
                if (REPO / full.replace(".", "/")).with_suffix(".py").is_file():
                    modules.setdefault(alias.asname or alias.name, full)
    stored = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    arguments = {a.arg for n in ast.walk(tree) if isinstance(n, ast.arguments) for a in n.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in modules and name not in stored | arguments:
                found.add(f"{modules[name]}.{node.attr}")
    assert sorted(name for name in found - TAGS if not is_there(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_and_paths_of_a_page_exist(page):
    text = page.read_text()
    links = {t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t}
    paths = set(re.findall(r"`((?:facttune_ray|tests|jobs|conf)/[\w/.]+\.\w+)`", text))
    missing = {t for t in links if not (page.parent / t).exists()}
    assert missing | {t for t in paths if not (REPO / t).exists()} == set()


def test_every_room_has_a_page_and_the_first_page_is_short():
    rooms = [d for d in (REPO / "facttune_ray").iterdir() if (d / "__init__.py").is_file()]
    for room in rooms:
        assert 20 <= len((room / "README.md").read_text().splitlines()) <= 80, room.name
    assert len((REPO / "README.md").read_text().splitlines()) <= 200
