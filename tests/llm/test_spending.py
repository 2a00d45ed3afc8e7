"""What a run has paid, read from a ledger that other runs share and that grows."""

from __future__ import annotations

import asyncio
import time

import pytest

from facttune_ray.llm import ledger_tools, spending
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.replies import Completion
from facttune_ray.llm.spending import Spending, Spent
from facttune_ray.storage.tables import Folder


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder.of(str(tmp_path / "ledger"))


def pay(folder: Folder, numbers: range, run: str = "mine") -> None:
    """A segment per completion of 110 tokens and a quarter of a dollar."""
    ledger = Ledger(folder, flush_s=0.001, run=run, stage="facts")

    async def work():
        for i in numbers:
            key = request_key("m", [{"content": str(i)}], {}, 0)
            await ledger.put(key, Completion("- a.", 100, 10, "m", 2, 0.5, cost_usd=0.25))

    asyncio.run(work())


def test_sums_and_rates_are_those_of_the_run(folder):
    assert Spending(folder, "mine").look() == Spent()
    pay(folder, range(6))
    pay(folder, range(10, 13), run="other")
    mine = Spending(folder, "mine")
    now_s = time.time()
    spent = mine.look(now_s)
    assert (spent.calls, spent.tokens, spent.cost_usd) == (6, 660, 1.5)
    assert spent.calls_per_s == pytest.approx(6 / spending.RECENT_S)
    assert spent.tokens_per_s == pytest.approx(660 / spending.RECENT_S)
    later = mine.look(now_s + spending.RECENT_S + 5)
    assert (later.calls, later.calls_per_s, later.tokens_per_s) == (6, 0, 0)


def test_a_segment_is_read_once(folder, monkeypatch):
    read = []
    real = spending.read_segment
    monkeypatch.setattr(spending, "read_segment", lambda f, c: read.append(f.path) or real(f, c))
    pay(folder, range(3))
    mine = Spending(folder, "mine")
    mine.look()
    assert mine.look().calls == 3 and len(read) == 3
    pay(folder, range(3, 5))
    assert mine.look().calls == 5 and len(read) == len(set(read)) == 5


def test_merged_and_torn_segments(folder):
    pay(folder, range(4))
    mine = Spending(folder, "mine")
    assert mine.look().calls == 4
    ledger_tools.compact(folder)
    (folder / "torn-000000.arrow").write_bytes(b"ARROW1\0\0half")
    assert mine.look().cost_usd == 1.0 and mine.look().calls == 4
