"""The finished table `reference` as rows by number, without holding it in memory.

    rows = open_rows(["s3://.../part-00000.parquet", ...], folder)
    rows.at([7, 2])  ->  [{"prompt_id": "8f2c", "prompt_tokens": [1, 88], ...}, {...}]

Training takes groups in an order of its own, the same for any number of workers, and goes on
anywhere in it after a crash; so it needs rows by number and not a stream. One worker a host puts
the Parquet parts into one Arrow file, which all of them map into memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facttune_ray.errors import UserError
from facttune_ray.schema import TABLES
from facttune_ray.storage import Folder

SCHEMA = TABLES["reference"]


class Rows:
    def __init__(self, file: Path) -> None:
        self.table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        self.pairs_G = self.table["pairs"].to_numpy()

    def __len__(self) -> int:
        return len(self.pairs_G)

    def at(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [self.table.slice(n, 1).to_pylist()[0] for n in numbers]


def write(parts: Sequence[str], file: Path) -> None:
    """One Arrow file of all parts; it appears whole. UserError when a part lacks a column."""
    growing = file.with_suffix(".tmp")
    with pa.OSFile(str(growing), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as out:
        for part in parts:
            source = Folder.of(part)
            opened = source.path if source.local else pa.BufferReader(source.read_bytes())
            found = pq.ParquetFile(opened)
            lacking = set(SCHEMA.names) - set(found.schema_arrow.names)
            if lacking:
                raise UserError(f"{part}: no column {min(lacking)}: make the table reference again")
            for batch in found.iter_batches(columns=SCHEMA.names):
                out.write_table(pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA))
    os.replace(growing, file)


def usable_pairs(parts: Sequence[str]) -> int:
    """Pairs of all groups."""
    total = 0
    for part in map(Folder.of, parts):
        data = part.path if part.local else pa.BufferReader(part.read_bytes())
        found = pq.read_table(data, columns=["pairs"], partitioning=None)
        total += int(np.sum(found["pairs"].to_numpy()))
    return total
