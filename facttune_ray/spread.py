"""Rows as they come -> rows by shard, in order, never all of them in memory.

    with spread(prompts(cfg), shards=400) as parts:      # has read every row
        for shard, rows in parts:
            ...                                          # a shard's rows; also of empty shards

A topic lies whole in one shard, by its digest. Up to `held` rows wait in memory; then they are put
down in a scratch folder of this host, a file a shard.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from facttune_ray.config import Config
from facttune_ray.config_layers import one_line
from facttune_ray.errors import UserError
from facttune_ray.interop import records
from facttune_ray.schema import seed_from
from facttune_ray.storage import Folder, join

HELD = 8192  # rows
TOPICS, LEAST = 256, 8  # topics of a shard, and shards of a run, where run.shards does not tell


def shard_of(topic: str, shards: int) -> int:
    return seed_from("shard", topic) % shards


@contextlib.contextmanager
def spread(
    rows: Iterable[dict], shards: int, held: int = HELD
) -> Iterator[Iterator[tuple[int, list[dict]]]]:
    """(shard, its rows) of every shard, once all rows have been read."""
    waiting: dict[int, list[dict]] = {}
    with tempfile.TemporaryDirectory(prefix="facttune-rows-") as scratch:
        for count, row in enumerate(rows, 1):
            waiting.setdefault(shard_of(row["topic"], shards), []).append(row)
            if count % held == 0:
                _put_down(waiting, Path(scratch))
        yield ((s, [*_taken_up(Path(scratch), s), *waiting.pop(s, [])]) for s in range(shards))


def _put_down(waiting: dict[int, list[dict]], scratch: Path) -> None:
    for shard, rows in waiting.items():
        with (scratch / str(shard)).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    waiting.clear()


def _taken_up(scratch: Path, shard: int) -> Iterator[dict]:
    file = scratch / str(shard)
    if file.exists():
        with file.open() as lines:
            yield from map(json.loads, lines)


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
