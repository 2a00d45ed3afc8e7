"""stats, compact, verify, gc."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from facttune_ray.errors import UserError
from facttune_ray.llm import ledger_tools
from facttune_ray.llm.ledger import Completion, Ledger, request_key
from facttune_ray.tables import Folder


def key(i: int) -> bytes:
    return request_key("m", [{"content": str(i)}], {}, 0)


def write(folder: Folder, numbers: range, stage: str = "facts", model: str = "m-1") -> Ledger:
    ledger = Ledger(folder, flush_s=0.005, run="r", stage=stage)

    async def work():
        for i in numbers:
            paid = Completion(f"- {i}.", 100, 10, model, 2, 0.5, cost_usd=0.25, prompt_chars=400)
            await ledger.put(key(i), paid)

    asyncio.run(work())
    return ledger


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder.of(str(tmp_path / "ledger"))


def test_stats_by_stage_and_model(folder):
    write(folder, range(3))
    write(folder, range(10, 12), "verdicts")
    write(folder, range(20, 21), "verdicts", "m-2")
    rows = ledger_tools.stats(folder)
    assert [(r["stage"], r["model"], r["completions"]) for r in rows] == [
        ("facts", "m-1", 3),
        ("verdicts", "m-1", 2),
        ("verdicts", "m-2", 1),
    ]
    first = rows[0]
    assert (first["prompt_tokens"], first["completion_tokens"], first["attempts"]) == (300, 30, 6)
    assert first["cost_usd"] == 0.75 and first["latency_s"] == 0.5
    assert first["measured_tokens"] / first["prompt_chars"] == 0.25
    assert first["first_s"] <= first["last_s"] <= time.time()


def test_compact_keeps_each_key_once_and_running_readers_find_all(folder, monkeypatch):
    for start in (0, 10, 20, 5):  # 5 to 14 twice
        write(folder, range(start, start + 10))
    reader = Ledger(folder)
    monkeypatch.setattr(ledger_tools, "COMPACTED_ROWS", 12)  # several key ranges
    done = ledger_tools.compact(folder)
    assert (done["rows_before"], done["rows"], done["segments"]) == (40, 30, 4)
    for ledger in (reader, Ledger(folder)):
        assert len(ledger.find(map(key, range(40)))) == 30
    assert ledger_tools.verify(folder)["repeated"] == 0
    again = ledger_tools.compact(folder)
    assert again["rows"] == 30


def test_verify_finds_repeats_torn_and_damaged_segments(folder, tmp_path):
    write(folder, range(0, 3))
    whole = set(folder.names())
    write(folder, range(0, 2))
    other = set(folder.names()) - whole
    found = ledger_tools.verify(folder)
    assert (found["rows"], found["repeated"], found["torn"], found["damaged"]) == (5, 2, [], [])
    torn = tmp_path / "ledger" / other.pop()
    torn.write_bytes(torn.read_bytes()[:-20])
    # a row whose text was changed after it was paid for
    ledger = Ledger(folder)
    name = next(iter(ledger.segments))
    table = ledger_tools.read_segment(folder / name)
    column = table.schema.get_field_index("text")
    changed = ["- another."] * table.num_rows
    ledger.add(table.set_column(column, "text", [changed]))
    found = ledger_tools.verify(folder)
    assert found["torn"] == [torn.name] and len(found["damaged"]) == 1
    with pytest.raises(UserError, match="damaged: .*: remove them"):
        ledger_tools.main("verify", folder, None, None)


def test_gc_removes_only_what_it_is_told(folder, tmp_path):
    write(folder, range(5))
    write(folder, range(5, 8), model="m-2")
    assert ledger_tools.gc(folder) == {"files": 0, "rows": 0}
    assert ledger_tools.gc(folder, days=1.0) == {"files": 0, "rows": 0}
    left = tmp_path / "ledger" / "x.arrow.tmp"
    left.write_bytes(b"half")
    assert ledger_tools.gc(folder)["files"] == 0  # somebody may be writing it
    os.utime(left, (1.0, 1.0))
    assert ledger_tools.gc(folder)["files"] == 1
    assert ledger_tools.gc(folder, days=0.0, model="m-2") == {"files": 0, "rows": 3}
    assert len(Ledger(folder).find(map(key, range(10)))) == 5
