"""The number of shards of a run: `run.shards`, or a number that follows from the number of rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from facttune_ray.config import Config
from facttune_ray.errors import UserError, one_line
from facttune_ray.sources import records
from facttune_ray.storage.folders import Folder, join

TOPICS_PER_SHARD, MIN_SHARDS = 256, 8  # where run.shards is 0


def shards_of(cfg: Config) -> int:
    """`run.shards`; if it is 0, one shard per 256 topics of a world or rows of the files. What a
    worker holds then does not grow with the run."""
    if cfg.run.shards:
        return cfg.run.shards
    world, data = cfg.data.world, cfg.data
    names = [*data.files, data.topics]
    rows = sum(_rows(join(data.folder, name)) for name in names if name)
    if data.source == "world":
        rows = world.train + world.val + world.test
    elif data.source == "tuning":
        rows = sum(1 for _ in Path(data.folder).glob("responses/*"))
    return max(MIN_SHARDS, math.ceil(rows / TOPICS_PER_SHARD))


def with_shards(cfg: Config) -> Config:
    """The config with the number of shards in `run.shards`."""
    return replace(cfg, run=replace(cfg.run, shards=shards_of(cfg)))


def _rows(path: str) -> int:
    """Rows of a file: those of Parquet and JSON, else its lines. 0 for a missing file, because its
    reader will report it. UserError when the file cannot be read."""
    import pyarrow.parquet as pq

    file, kind = Folder.of(path), records.kind_of(path)
    if not file.fs.get_file_info(file.path).is_file:
        return 0
    if kind == ".json":
        return sum(1 for _ in records.read(path))
    try:
        if kind == ".parquet":
            return pq.read_metadata(file.path, filesystem=file.fs).num_rows
        with file.fs.open_input_stream(file.path) as f:
            return sum(part.count(b"\n") for part in iter(lambda: f.read(2**20), b""))
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{path}: cannot be read: {one_line(e)}") from None
