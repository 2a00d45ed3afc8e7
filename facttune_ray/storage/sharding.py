"""Distribute a stream of rows over shards, without holding all rows in memory.

    with sharded(prompts(cfg), shards=400) as parts:      # reads every row
        for shard, rows in parts:
            ...                                          # every shard, also empty ones

The digest of a topic decides its shard, so a topic lies whole in one shard. Up to `held` rows stay
in memory; then they are appended to one file per shard in a scratch folder of this host.
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
    """Read all rows, then yield (shard, its rows) for every shard, rows in their given order."""
    waiting: dict[int, list[dict]] = {}
    with tempfile.TemporaryDirectory(prefix="facttune-rows-") as scratch:
        for count, row in enumerate(rows, 1):
            waiting.setdefault(shard_of(row["topic"], shards), []).append(row)
            if count % held == 0:
                _append(waiting, Path(scratch))
        yield ((s, [*_read(Path(scratch), s), *waiting.pop(s, [])]) for s in range(shards))


def _append(waiting: dict[int, list[dict]], scratch: Path) -> None:
    for shard, rows in waiting.items():
        with (scratch / str(shard)).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    waiting.clear()


def _read(scratch: Path, shard: int) -> Iterator[dict]:
    file = scratch / str(shard)
    if file.exists():
        with file.open() as lines:
            yield from map(json.loads, lines)
