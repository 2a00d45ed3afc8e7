"""Rows of the finished table `reference` by number, without holding the table in memory.

    write(["runs/x/reference/part-00000.parquet", ...], file)
    rows = Rows(file)
    rows.at([7, 2])  ->  [{"prompt_id": "8f2c", "prompt_tokens": [1, 88], ...}, {...}]

The order of rows in training depends on seed and epoch only, and training may continue anywhere in
it after a crash, so it needs rows by number instead of a stream. One worker a host copies the
Parquet parts into one Arrow file, and all workers of the host map the file into memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import TABLES

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
    """Write all parts into one Arrow file. The file gets its name when it is complete."""
    growing = file.with_suffix(".tmp")
    with pa.OSFile(str(growing), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as out:
        for part in parts:
            for batch in _batches(part, SCHEMA.names):
                out.write_table(pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA))
    os.replace(growing, file)


class Survey(NamedTuple):
    """Totals over all groups."""

    pairs: int
    cut_prompts: int  # prompts truncated to train.max_prompt_length
    cut_responses: int  # responses truncated to train.max_length


def survey(parts: Sequence[str], pass_tokens: int) -> Survey:
    """Totals of the table, read once before training. UserError when a response and its prompt do
    not fit into a pass: otherwise one worker would fail in the middle of a step, while the others
    wait."""
    columns = ("pairs", "cut_prompt", "cut_responses")
    totals = dict.fromkeys(columns, 0)
    for part in parts:
        for batch in _batches(part, [*columns, "prompt_id", "prompt_tokens", "response_tokens"]):
            for name in columns:
                totals[name] += pc.sum(batch[name]).as_py() or 0
            _check_budget(batch, pass_tokens)
    return Survey(*totals.values())


def _check_budget(batch: pa.RecordBatch, pass_tokens: int) -> None:
    responses = batch["response_tokens"]
    lengths = pc.list_value_length(pc.list_flatten(responses)).to_numpy()
    prompts = pc.list_value_length(batch["prompt_tokens"]).to_numpy(zero_copy_only=False)
    row = pc.list_parent_indices(responses).to_numpy()
    for i in np.flatnonzero(lengths + prompts[row] > pass_tokens):
        raise UserError(
            f"train.pass_tokens={pass_tokens}: prompt {batch['prompt_id'][int(row[i])]} has "
            f"{prompts[row[i]]} tokens and a response {lengths[i]}, which do not fit: "
            f"raise it, or lower train.max_length"
        )


def _batches(part: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of a Parquet part. UserError when the part lacks a column."""
    folder = Folder.of(part)
    file = pq.ParquetFile(folder.path if folder.local else pa.BufferReader(folder.read_bytes()))
    if missing := set(columns) - set(file.schema_arrow.names):
        raise UserError(f"{part}: no column {min(missing)}: make the table reference again")
    yield from file.iter_batches(columns=list(columns))
