"""The number of shards of a run: `run.shards`, or a number that follows from the number of rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from facttune_ray.config import Config
from facttune_ray.storage import records
from facttune_ray.storage.folders import join

TOPICS_PER_SHARD, MIN_SHARDS = 256, 8  # where run.shards is 0


def shards_of(cfg: Config) -> int:
    """`run.shards`; if it is 0, one shard per 256 topics of a world or rows of the files. What a
    worker holds then does not grow with the run."""
    if cfg.run.shards:
        return cfg.run.shards
    world, data = cfg.data.world, cfg.data
    names = [*data.files, data.topics]
    rows = sum(records.count(join(data.folder, name)) for name in names if name)
    if data.source == "world":
        rows = world.train + world.val + world.test
    elif data.source == "tuning":
        rows = sum(1 for _ in Path(data.folder).glob("responses/*"))
    return max(MIN_SHARDS, math.ceil(rows / TOPICS_PER_SHARD))


def with_shards(cfg: Config) -> Config:
    """The config with the number of shards in `run.shards`."""
    return replace(cfg, run=replace(cfg.run, shards=shards_of(cfg)))
