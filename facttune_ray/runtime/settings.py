"""The settings of a run, kept in its folder, so that the folder alone says what the run is.

keep(root, cfg)         runs/bio/config.json: the settings of the last command that made a table
kept(root)  ->  Config, or None if the folder has none that this version reads
of_folder(root)  ->  Config; the defaults instead of None
"""

from __future__ import annotations

import dataclasses

from facttune_ray.config import Config, RunConfig
from facttune_ray.config.layers import stored
from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder

FILE = "config.json"


def keep(root: Folder, cfg: Config) -> None:
    (root / FILE).write_json(dataclasses.asdict(cfg))


def kept(root: Folder) -> Config | None:
    """The settings, with `run.out` as the folder's place today."""
    try:
        values = (root / FILE).read_json()
    except (UserError, OSError):  # damaged, or away
        return None
    if values is None or (cfg := stored(Config, values)) is None:
        return None
    return dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, out=root.uri))


def of_folder(root: Folder) -> Config:
    """The settings of the run in this folder; the defaults for a run of an earlier version."""
    name = root.path.rpartition("/")[2]
    return kept(root) or Config(run=RunConfig(name=name, out=root.uri))
