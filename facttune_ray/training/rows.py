"""The finished table `reference` as rows by number, without holding it in memory.

    write(["runs/x/reference/part-00000.parquet", ...], file)
    rows = Rows(file)
    rows.at([7, 2])  ->  [{"prompt_id": "8f2c", "prompt_tokens": [1, 88], ...}, {...}]

Training takes groups in an order of its own, the same for any number of workers, and goes on
anywhere in it after a crash; so it needs rows by number and not a stream. One worker a host puts
the Parquet parts into one Arrow file, which all of them map into memory.
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
    """One Arrow file of all parts; it appears whole."""
    growing = file.with_suffix(".tmp")
    with pa.OSFile(str(growing), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as out:
        for part in parts:
            for batch in _batches(part, SCHEMA.names):
                out.write_table(pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA))
    os.replace(growing, file)


class Survey(NamedTuple):
    """Of all groups."""

    pairs: int
    cut_prompts: int  # lost tokens to train.max_prompt_length
    cut_responses: int  # lost their ends to train.max_length


def survey(parts: Sequence[str], pass_tokens: int) -> Survey:
    """What training is told before it begins, in one reading. UserError when a response and its
    prompt do not fit into a pass: workers would find it one by one, in the middle of a step that
    the others wait in."""
    counted = ("pairs", "cut_prompt", "cut_responses")
    totals = dict.fromkeys(counted, 0)
    for part in parts:
        for batch in _batches(part, [*counted, "prompt_id", "prompt_tokens", "response_tokens"]):
            for name in counted:
                totals[name] += pc.sum(batch[name]).as_py() or 0
            _check_budget(batch, pass_tokens)
    return Survey(*totals.values())


def _check_budget(batch: pa.RecordBatch, pass_tokens: int) -> None:
    responses = batch["response_tokens"]
    lengths = pc.list_value_length(pc.list_flatten(responses)).to_numpy()
    prompts = pc.list_value_length(batch["prompt_tokens"]).to_numpy(zero_copy_only=False)
    of = pc.list_parent_indices(responses).to_numpy()
    for i in np.flatnonzero(lengths + prompts[of] > pass_tokens):
        raise UserError(
            f"train.pass_tokens={pass_tokens}: prompt {batch['prompt_id'][int(of[i])]} has "
            f"{prompts[of[i]]} tokens and a response {lengths[i]}, which do not fit: "
            f"raise it, or lower train.max_length"
        )


def _batches(part: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """UserError when the part lacks a column."""
    folder = Folder.of(part)
    found = pq.ParquetFile(folder.path if folder.local else pa.BufferReader(folder.read_bytes()))
    if lacking := set(columns) - set(found.schema_arrow.names):
        raise UserError(f"{part}: no column {min(lacking)}: make the table reference again")
    yield from found.iter_batches(columns=list(columns))
