"""Rows as they come -> rows by shard, in order, never all of them in memory.

    with sharded(prompts(cfg), shards=400) as parts:      # has read every row
        for shard, rows in parts:
            ...                                          # a shard's rows; also of empty shards

A topic lies whole in one shard, by its digest. Up to `held` rows wait in memory; then they are put
down in a scratch folder of this host, a file a shard.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from facttune_ray.storage.schema import seed_from

HELD = 8192  # rows


def shard_of(topic: str, shards: int) -> int:
    return seed_from("shard", topic) % shards


@contextlib.contextmanager
def sharded(
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
