"""Progress of a stage: a line with parts, requests, tokens, dollars, and what the stage waits for.

base/tune/facts    3/8 parts, about 4 min left   412 req/s  ...  1,204 from the ledger   $0.31
base/tune/facts    3/8 parts   0 req/s   ...   $0.31   waits 42 s for permits (128 requests)
base/tune/rewards  0/8 parts   61 s   waits 61 s for a host with 1 GPU H100

The line is printed also when nothing moves, and when the run's meter does not answer.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.llm.cost import SILENT, Usage
from facttune_ray.runtime.placement import gpus_of, options, worker_count
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder
from facttune_ray.telemetry import say

# seconds between two lines: overwritten on a terminal, appended to a log
TERMINAL_S, LOG_S = 1.0, 30.0
WAITS_S = 3.0  # shorter waits are not shown
ANSWER_S = 5.0  # timeout of a question to the meter


@dataclass
class Look:
    """The state of a stage at one time."""

    at_s: float
    parts: int = 0
    moved_s: float = 0.0  # when the number of parts or answers last grew
    heard_s: float = 0.0  # when the meter last answered
    used: dict[str, float] = field(default_factory=lambda: asdict(Usage()))
    spent_usd: float = 0.0
    workers: int = 0  # workers that are at work
    waits: dict[str, list] = field(default_factory=dict)  # as in Meter.snapshot


@contextlib.contextmanager
def in_thread(follow: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `follow` in a thread while the block runs. It must return when its event is set."""
    done = threading.Event()
    thread = threading.Thread(target=follow, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def watch(
    work: Work, meter: Any = None, every_s: float | None = None
) -> AbstractContextManager[None]:
    """Print a line every few seconds until the block ends. `meter`: the run's meter actor, if the
    stage asks an endpoint."""
    every_s = every_s or (TERMINAL_S if sys.stderr.isatty() else LOG_S)
    return in_thread(functools.partial(_print, work, meter, every_s))


def _print(work: Work, meter: Any, every_s: float, done: threading.Event) -> None:
    shards, terminal = work.cfg.run.shards, sys.stderr.isatty()
    began_s = time.monotonic()
    # The meter counts all tables of one stage together: begin at its count.
    last = look(work, meter, Look(began_s, moved_s=began_s, heard_s=began_s))
    before = last.parts
    while not done.wait(every_s):
        now = look(work, meter, last)
        stands_s = now.at_s - now.moved_s
        lacking = lacks(work) if stands_s > WAITS_S and not now.workers else ""
        notes = waits(now, meter is not None, lacking)
        elapsed_s = now.at_s - began_s
        left = time_left(now.parts - before, shards - now.parts, elapsed_s)
        parts = f"{now.parts}/{shards} parts{left}"
        what = rates(now, last) if meter else f"{elapsed_s:,.0f} s"
        text = "  ".join([f"{work.output:<36} {parts}", what, *notes])
        fields: dict[str, Any] = now.used if meter else {}
        if terminal:
            width = shutil.get_terminal_size().columns - 1
            say(text[:width].ljust(width), end="\r")
        else:
            say(
                text,
                event="progress",
                table=work.output,
                stage=work.stage,
                parts=now.parts,
                shards=shards,
                elapsed_s=round(elapsed_s, 1),
                waits=notes,
                **fields,
            )
        last = now
    if terminal:
        print(" " * (shutil.get_terminal_size().columns - 1), end="\r", file=sys.stderr, flush=True)


def time_left(made: int, missing: int, elapsed_s: float) -> str:
    """ ", about 4 min left", at the rate at which parts were `made`; "" if none was, or none is
    missing."""
    if made <= 0 or missing <= 0:
        return ""
    left_s = elapsed_s / made * missing
    if left_s < 90:
        return f", about {left_s:.0f} s left"
    return (
        f", about {left_s / 60:.0f} min left"
        if left_s < 5400
        else f", about {left_s / 3600:.1f} h left"
    )


def look(work: Work, meter: Any, last: Look) -> Look:
    """The state of the stage now. What cannot be read stays as it was."""
    now = Look(time.monotonic(), last.parts, last.moved_s, last.heard_s, last.used, last.spent_usd)
    with contextlib.suppress(OSError, UserError):  # a store that is away: the stage itself says so
        folder = Folder.of(work.cfg.run.out) / work.output
        now.parts = len(tables.present(folder, work.cfg.run.shards))
    if meter is not None and (found := _ask(meter)):
        now.heard_s = time.monotonic()
        now.used = found["stages"].get(work.stage, asdict(Usage()))
        now.spent_usd = found["spent_usd"]
        now.workers = found["workers"].get(work.stage, 0)
        now.waits = found["waits"].get(work.stage, {})
    done = ("calls", "cached")
    if now.parts != last.parts or any(now.used[f] != last.used[f] for f in done):
        now.moved_s = now.at_s
    return now


def _ask(meter: Any) -> dict | None:
    """The meter's snapshot; None if it does not answer."""
    import ray

    try:
        return ray.get(meter.snapshot.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError:
        return None


def rates(now: Look, last: Look) -> str:
    """Rates since the last line, and counts of the whole stage in this run. After a restart of the
    meter, which begins at 0, the rates are 0."""
    used, seconds = now.used, max(now.at_s - last.at_s, 1e-9)

    def rate(*fields: str) -> float:
        return max(0.0, sum(used[f] - last.used[f] for f in fields)) / seconds

    text = (
        f"{rate('calls'):,.0f} req/s  "
        f"{rate('prompt_tokens', 'completion_tokens'):,.0f} tok/s  {used['refused']:,} 429s  "
        f"{used['cached']:,} from the ledger  ${now.spent_usd:,.2f}"
    )
    if used["estimated"]:
        text += f"  {used['estimated']:,} answers without usage"
    if used["unknown"]:
        text += f"  {used['unknown']:,} answers never came"
    return text


def waits(now: Look, metered: bool, lacking: str) -> list[str]:
    """What the stage waits for, and for how long; the longest wait first."""
    stands_s, silent_s = now.at_s - now.moved_s, now.at_s - now.heard_s
    notes = []
    for what, (since_s, number) in sorted(now.waits.items(), key=lambda w: -w[1][0]):
        if what == SILENT:
            notes.append(f"{number:,} {_plural('worker', number)} silent for {since_s:,.0f} s")
        elif since_s >= WAITS_S:
            requests = f"{number:,} {_plural('request', number)}"
            notes.append(f"waits {since_s:,.0f} s for {what} ({requests})")
    if metered and silent_s > ANSWER_S:
        notes.append(f"the run's meter has not answered for {silent_s:,.0f} s")
    elif lacking:
        notes.append(f"waits {stands_s:,.0f} s for {lacking}")
    elif metered and not notes and stands_s > WAITS_S:
        nobody = "no worker has begun" if not now.workers else "no answer"
        notes.append(f"{nobody} for {stands_s:,.0f} s")
    return notes


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def lacks(work: Work) -> str:
    """The host or CPU that the stage's workers wait for; "" if they wait for neither."""
    import ray

    gpus, kind = gpus_of(work)
    size = options(gpus, kind, asks=bool(work.base_url))
    mine = {"CPU": size.get("num_cpus", 0), "GPU": size.get("num_gpus", 0)}
    tasks, _ = _demand()
    if not any(all(b.bundle.get(k, 0) == v for k, v in mine.items()) for b in tasks):
        return ""
    unit = f"{gpus:g} GPU {kind}".strip() if gpus else "a CPU"
    return f"{unit} to be free" if worker_count(ray.nodes(), gpus, kind) else f"a host with {unit}"


def lacks_group() -> str:
    """What workers that must start together wait for, as those of training do; "" if for
    nothing."""
    return "room for its workers" if _demand()[1] else ""


def _demand() -> tuple[list, list]:
    """(resources that tasks and actors wait for, resources that placement groups wait for)"""
    import ray

    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        found = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=5)
        wanted = found.resource_demands
        tasks, groups = wanted.ray_task_actor_demand, wanted.placement_group_demand
        return [b for d in tasks for b in d.bundles_by_count], list(groups)
    except Exception:  # an unstable API of Ray, and the cluster may be shutting down
        return [], []
