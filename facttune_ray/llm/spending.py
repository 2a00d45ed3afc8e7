"""What a run has paid so far, and how fast it asks, read from its ledger while it runs.

    spending = Spending(folder, run_id)
    spending.look()  ->  Spent(calls=9120, tokens=1_204_311, cost_usd=0.31, calls_per_s=41.5, ...)

A segment never changes, so each segment is read once, and of that only a few columns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.llm.segments import read_segment
from facttune_ray.storage.folders import Folder

RECENT_S = 60.0  # the rates are over so many seconds
SEGMENT = ".arrow"
COLUMNS = ["run", "created_s", "cost_usd", "prompt_tokens", "completion_tokens", "attempts"]


@dataclass(frozen=True)
class Spent:
    """Completions that a run has paid; the rates are over the last RECENT_S."""

    calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    calls_per_s: float = 0.0
    tokens_per_s: float = 0.0


class Spending:
    """The completions of one run in a ledger, which other runs may share. `run`: its name in the
    ledger (`stages.connect.run_id`)."""

    def __init__(self, folder: Folder, run: str) -> None:
        self.folder, self.run = folder, run
        self._sums: dict[str, tuple[int, int, float]] = {}  # segment -> calls, tokens, dollars
        self._recent: dict[str, pa.Table] = {}  # segment -> its rows that were recent when read

    def look(self, now_s: float | None = None) -> Spent:
        """The state now. A segment that is torn, or merged into another one meanwhile, is left
        out of this look."""
        now_s = time.time() if now_s is None else now_s
        there = [name for name in self.folder.names() if name.endswith(SEGMENT)]
        for name in self._sums.keys() - set(there):
            del self._sums[name]
            self._recent.pop(name, None)
        for name in there:
            if name not in self._sums:
                self._read(name, now_s)
        calls = tokens = 0
        cost_usd = 0.0
        for c, t, d in self._sums.values():
            calls, tokens, cost_usd = calls + c, tokens + t, cost_usd + d
        new = [_since(t, now_s - RECENT_S) for t in self._recent.values()]
        self._recent = {n: t for n, t in zip(self._recent, new, strict=True) if t.num_rows}
        rate = [sum(x) / RECENT_S for x in zip((0, 0.0), *map(_counts, new), strict=True)]
        return Spent(calls, tokens, cost_usd, rate[0], rate[1])

    def _read(self, name: str, now_s: float) -> None:
        try:
            table = read_segment(self.folder / name, COLUMNS)
        except (pa.ArrowException, OSError):
            return
        mine = table.filter(pc.equal(table["run"], self.run))
        calls, tokens = _counts(mine)
        self._sums[name] = (calls, tokens, pc.sum(mine["cost_usd"]).as_py() or 0.0)
        self._recent[name] = _since(mine, now_s - RECENT_S)


def _since(table: pa.Table, since_s: float) -> pa.Table:
    return table.filter(pc.greater_equal(table["created_s"], since_s))


def _counts(table: pa.Table) -> tuple[int, int]:
    """(requests, tokens) of completions. Of a request with several choices, the first choice alone
    has attempts."""
    calls = pc.sum(pc.greater(table["attempts"], 0)).as_py() or 0
    tokens = sum(pc.sum(table[c]).as_py() or 0 for c in ("prompt_tokens", "completion_tokens"))
    return calls, tokens
