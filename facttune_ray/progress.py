"""A stage that asks the LLM, while it runs: one line about requests, tokens and dollars.

base/tune/facts    3/8 parts   412 req/s    98,120 tok/s   0 429s   1,204 from the ledger   $0.31
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from facttune_ray import tables
from facttune_ray.stages.context import Work
from facttune_ray.tables import Folder
from facttune_ray.telemetry import say

TERMINAL_S, LOG_S = 1.0, 30.0  # between two lines: overwritten on a terminal, added to a log


@contextlib.contextmanager
def watch(work: Work, meter: Any, every_s: float | None = None) -> Iterator[None]:
    """Print a line now and then from the run's meter actor until the block ends."""
    every_s = every_s or (TERMINAL_S if sys.stderr.isatty() else LOG_S)
    done = threading.Event()
    thread = threading.Thread(target=_print, args=(work, meter, every_s, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _print(work: Work, meter: Any, every_s: float, done: threading.Event) -> None:
    folder, shards = Folder.of(work.cfg.run.out) / work.output, work.cfg.run.shards
    terminal = sys.stderr.isatty()
    # a run makes several tables of one stage: what it used before this one is no rate of this one
    last, since = _look(meter), time.monotonic()
    printed = False
    while not done.wait(every_s):
        found, now = _look(meter), time.monotonic()
        used = found and found["stages"].get(work.stage)
        if found and used and last:
            parts = f"{len(tables.present(folder, shards))}/{shards} parts"
            before = last["stages"].get(work.stage, {})
            text = line(work.output, parts, used, before, now - since, found["spent_usd"])
            if terminal:
                say(text.ljust(118), end="\r")
            else:
                say(text, event="progress", table=work.output, stage=work.stage, **used)
            printed = True
        if found:
            last, since = found, now
    if terminal and printed:
        print(" " * 118, end="\r", file=sys.stderr, flush=True)


def _look(meter: Any) -> dict | None:
    """The meter's snapshot; None when it does not answer."""
    import ray

    try:
        return ray.get(meter.snapshot.remote(), timeout=5)
    except ray.exceptions.RayError:
        return None


def line(
    name: str,
    parts: str,
    used: dict[str, float],
    last: dict[str, float],
    seconds: float,
    spent_usd: float,
) -> str:
    """Rates over the time since the last line (0 after a new meter's start: it knows no more of
    before); counts of the whole stage in this run."""

    def rate(*fields: str) -> float:
        return max(0.0, sum(used[f] - last.get(f, 0) for f in fields)) / max(seconds, 1e-9)

    return (
        f"{name:<36} {parts}  {rate('calls'):,.0f} req/s  "
        f"{rate('prompt_tokens', 'completion_tokens'):,.0f} tok/s  {used['refused']:,} 429s  "
        f"{used['cached']:,} from the ledger  ${spent_usd:,.2f}"
    )
