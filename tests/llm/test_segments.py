"""Many segments: what a worker holds of them is small, in memory and in open files."""

from __future__ import annotations

import tracemalloc

import numpy as np
import psutil
import pyarrow as pa
import pytest

from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.segments import ROWS, SCHEMA
from facttune_ray.storage.tables import Folder


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder.of(str(tmp_path / "ledger"))


def segment(number: int, rows: int) -> pa.Table:
    """Rows with random keys, seeded by `number`; each costs half a dollar."""
    keys = np.random.default_rng(number).integers(0, 2**64, (rows, 4), np.uint64)
    keys = keys[np.argsort(keys[:, 0])].astype(">u8")
    data = [None, pa.py_buffer(keys.tobytes())]
    columns = {f.name: pa.nulls(rows, f.type) for f in SCHEMA} | {
        "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, data),
        "text": pa.array([str(number)] * rows),
        "run": pa.array(["r"] * rows),
        "cost_usd": pa.array(np.full(rows, 0.5)),
        "created_s": pa.array(np.zeros(rows)),
    }
    return pa.table(columns, schema=SCHEMA)


def test_many_large_segments_are_few_open_files(folder):
    writer, before = Ledger(folder), psutil.Process().num_fds()
    for i in range(40):
        writer.add(segment(i, ROWS))
    reader = Ledger(folder)
    assert psutil.Process().num_fds() - before < 20
    for ledger in (writer, reader):
        assert all(isinstance(s.prefixes, np.memmap) for s in ledger.segments.values())
        wanted = [segment(i, ROWS)["key"][7].as_py() for i in range(40)]
        found = ledger.find(wanted)
        assert [found[key].text for key in wanted] == [str(i) for i in range(40)]


def test_the_memory_of_a_sum_does_not_grow_with_the_ledger(folder, monkeypatch):
    rows, peaks = 2**14, []

    monkeypatch.setattr("facttune_ray.llm.ledger.SUMMED_ROWS", 2**14)
    for numbers in (range(8), range(8, 32)):
        ledger = Ledger(folder)
        for number in (*numbers, 0):  # a copy counts once
            ledger.add(segment(number, rows))
        meter = Ledger(folder)
        tracemalloc.start()
        assert sum(meter.paid_usd("r").values()) == 0.5 * rows * numbers.stop
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
