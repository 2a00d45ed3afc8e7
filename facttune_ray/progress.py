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
def watch(work: Work, meter: Any) -> Iterator[None]:
    """Print a line now and then from the run's meter actor until the block ends."""
    done = threading.Event()
    thread = threading.Thread(target=_print, args=(work, meter, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _print(work: Work, meter: Any, done: threading.Event) -> None:
    import ray

    folder, shards = Folder.of(work.cfg.run.out) / work.output, work.cfg.run.shards
    terminal = sys.stderr.isatty()
    last: dict[str, float] = {}
    started = since = time.monotonic()
    while not done.wait(TERMINAL_S if terminal else LOG_S):
        try:
            snapshot = ray.get(meter.snapshot.remote(), timeout=5)
        except ray.exceptions.RayError:
            continue
        now, used = time.monotonic(), snapshot["stages"].get(work.stage)
        if not used:
            continue
        parts = f"{len(tables.present(folder, shards))}/{shards} parts"
        text = line(work.output, parts, used, last, now - since, snapshot["spent_usd"])
        last, since = used, now
        if terminal:
            say(text.ljust(118), end="\r")
        else:
            say(text, event="progress", table=work.output, stage=work.stage, **used)
    if terminal and time.monotonic() - started > TERMINAL_S:
        print(" " * 118, end="\r", file=sys.stderr, flush=True)


def line(
    name: str,
    parts: str,
    used: dict[str, float],
    last: dict[str, float],
    seconds: float,
    spent_usd: float,
) -> str:
    """Rates over the time since the last line; counts of the whole stage in this run."""

    def rate(*fields: str) -> float:
        return sum(used[f] - last.get(f, 0) for f in fields) / max(seconds, 1e-9)

    return (
        f"{name:<36} {parts}  {rate('calls'):,.0f} req/s  "
        f"{rate('prompt_tokens', 'completion_tokens'):,.0f} tok/s  {used['refused']:,} 429s  "
        f"{used['cached']:,} from the ledger  ${spent_usd:,.2f}"
    )
