"""`facttune status`: the tables of a run on disk."""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import run_folder


def status(cfg: Config) -> list[tuple[str, dict | None]]:
    """Every table on disk with its manifest; None for an unfinished one."""
    root, marks = run_folder(cfg.run.out), (tables.MANIFEST, tables.RECIPE)
    found = {f.rsplit("/", 1)[0] for f in root.files() if f.endswith(marks)}
    if not found:
        raise UserError(f"{cfg.run.out}: no table there: name a run's folder in run.out")
    return [(name, (root / name / tables.MANIFEST).read_json()) for name in sorted(found)]
