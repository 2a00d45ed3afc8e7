"""How many shards a run has: by its setting, or by the rows of its files."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa

from facttune_ray.config import Config
from facttune_ray.errors import UserError, one_line
from facttune_ray.sources import records
from facttune_ray.storage.folders import Folder, join

TOPICS, LEAST = 256, 8  # topics of a shard, and shards of a run, where run.shards does not tell


def shards_of(cfg: Config) -> int:
    """`run.shards`, or as many as keep a shard's rows few: by the topics of a world, else by the
    rows of the files."""
    if cfg.run.shards:
        return cfg.run.shards
    world, data = cfg.data.world, cfg.data
    names = [*data.files, data.topics]
    rows = sum(_rows(join(data.folder, name)) for name in names if name)
    if data.source == "world":
        rows = world.train + world.val + world.test
    elif data.source == "tuning":
        rows = sum(1 for _ in Path(data.folder).glob("responses/*"))
    return max(LEAST, math.ceil(rows / TOPICS))


def _rows(path: str) -> int:
    """Of a file, unpacked: its lines, but for Parquet and JSON; 0 of one that is not there: its
    reader will say so. UserError when it cannot be read."""
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
