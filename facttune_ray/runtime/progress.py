"""Progress of a pipeline: parts of each table, requests, tokens, dollars, and what it waits for.

base/tune/facts    3/8 parts, 1,204 rows, about 4 min left
base/tune/verdicts 2/8 parts, 801 rows, about 6 min left
  412 req/s  88,012 tok/s  0 429s  1,204 from the ledger  $0.31  waits 42 s for permits (8 requests)

On a terminal each table has a bar, and the rates are a line below them. Elsewhere a line is printed
every 30 s, also when nothing moves and when the run's meter does not answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from facttune_ray.llm.cost import SILENT, Usage
from facttune_ray.runtime.placement import Operator, room
from facttune_ray.telemetry import say

# seconds between two displays: overwritten on a terminal, appended to a log
TERMINAL_S, LOG_S = 1.0, 30.0
WAITS_S = 3.0  # shorter waits are not shown
ANSWER_S = 5.0  # timeout of a question to the meter


@dataclass
class Table:
    """The state of a table that is being made."""

    name: str
    shards: int
    before: int = 0  # parts that were there before
    parts: int = 0
    rows: int = 0
    began_s: float | None = None  # when its first part could be begun
    finished: bool = False

    def counts(self, now_s: float) -> str:
        """ "1,204 rows, about 4 min left": the rows that were written in this run"""
        elapsed_s = now_s - (self.began_s or now_s)
        left = time_left(self.parts - self.before, self.shards - self.parts, elapsed_s)
        return f"{self.rows:,} rows{left}"


@dataclass
class Look:
    """The state of a pipeline at one time."""

    at_s: float
    parts: int = 0
    moved_s: float = 0.0  # when the number of parts or answers last grew
    heard_s: float = 0.0  # when the meter last answered
    used: dict[str, float] = field(default_factory=lambda: asdict(Usage()))
    spent_usd: float = 0.0
    workers: int = 0  # workers that ask
    waits: dict[str, list] = field(default_factory=dict)  # what -> [seconds, requests]


class Progress:
    """The display of one pipeline. `meter`: the run's meter actor, if a stage asks an endpoint."""

    def __init__(
        self,
        tables: Sequence[Table],
        operators: Sequence[Operator],
        meter: Any = None,
        every_s: float | None = None,
    ) -> None:
        self.tables, self.operators, self.meter = tables, operators, meter
        self.ends = ""  # why the pipeline ends before its tables are finished
        self._terminal = sys.stderr.isatty()
        self._every_s = every_s or (TERMINAL_S if self._terminal else LOG_S)
        self._began_s = time.monotonic()
        self._stages = {work.stage for operator in operators for work in operator.works}
        self._last = Look(
            self._began_s,
            parts=sum(table.parts for table in tables),
            moved_s=self._began_s,
            heard_s=self._began_s,
        )
        # read at the first line: the meter's process takes half a second to start
        self._first = self._asked()
        self._bars: dict[str, Any] = {}

    def show(self) -> None:
        """Print the state, if it is time to."""
        if time.monotonic() - self._last.at_s < self._every_s:
            return
        last = self._last
        if self._first is not None:
            last = replace(self._look(last, self._first), at_s=last.at_s)
            self._first = None
        now = self._last = self._look(last, self._asked())
        stands_s = now.at_s - now.moved_s
        lacking = lacks(self.operators) if stands_s > WAITS_S and not now.workers else ""
        notes = [f"ends: {self.ends}"] if self.ends else []
        notes += waits(now, self.meter is not None, lacking)
        elapsed_s = now.at_s - self._began_s
        what = rates(now, last) if self.meter else f"{elapsed_s:,.0f} s"
        active = [t for t in self.tables if t.began_s is not None and not t.finished]
        if self._terminal:
            self._draw(active, "  ".join([what, *notes]))
            return
        fields: dict[str, Any] = now.used if self.meter else {}
        say(
            "; ".join(
                f"{t.name:<36} {t.parts}/{t.shards} parts, {t.counts(now.at_s)}" for t in active
            )
            + "  "
            + "  ".join([what, *notes]),
            event="progress",
            tables={table.name: table.parts for table in active},
            shards=self.tables[0].shards,
            elapsed_s=round(elapsed_s, 1),
            waits=notes,
            **fields,
        )

    def _draw(self, active: Sequence[Table], rates_line: str) -> None:
        from tqdm import tqdm

        for name in self._bars.keys() - {table.name for table in active} - {""}:
            self._bars.pop(name).close()
        for table in active:
            if table.name not in self._bars:
                form = "{desc:<36} |{bar:20}| {n}/{total} parts{postfix}"
                made = {"initial": table.before, "total": table.shards, "bar_format": form}
                self._bars[table.name] = tqdm(desc=table.name, leave=False, **made)
            bar = self._bars[table.name]
            bar.n = table.parts
            bar.set_postfix_str(table.counts(time.monotonic()), refresh=True)
        if "" not in self._bars:
            self._bars[""] = tqdm(bar_format="{desc}", leave=False)
        self._bars[""].set_description_str(f"  {rates_line}", refresh=True)

    def clear(self) -> None:
        """Remove the bars, so that a line can be printed."""
        while self._bars:
            self._bars.popitem()[1].close()

    def _asked(self) -> Any:
        """The meter's snapshot, as an object reference."""
        return self.meter.snapshot.remote() if self.meter is not None else None

    def _look(self, last: Look, snapshot: Any) -> Look:
        """The state now. What cannot be read stays as it was."""
        parts = sum(table.parts for table in self.tables)
        now = replace(last, at_s=time.monotonic(), parts=parts, workers=0, waits={})
        if snapshot is not None and (found := _read(snapshot)):
            now.heard_s = time.monotonic()
            # The meter counts all tables of a stage together: rates are differences.
            used = [found["stages"][s] for s in self._stages if s in found["stages"]]
            now.used = asdict(sum((Usage(**u) for u in used), Usage()))
            now.spent_usd = found["spent_usd"]
            now.workers = sum(found["workers"].get(s, 0) for s in self._stages)
            for stage in self._stages:
                for what, (since_s, number) in found["waits"].get(stage, {}).items():
                    entry = now.waits.setdefault(what, [0.0, 0])
                    entry[0], entry[1] = max(entry[0], since_s), entry[1] + number
        done = ("calls", "cached")
        if now.parts != last.parts or any(now.used[f] != last.used[f] for f in done):
            now.moved_s = now.at_s
        return now


def time_left(made: int, missing: int, elapsed_s: float) -> str:
    """ ", about 4 min left", at the rate at which parts were `made`; "" if none was, or none is
    missing."""
    if made <= 0 or missing <= 0:
        return ""
    left_s = elapsed_s / made * missing
    if left_s < 90:
        return f", about {left_s:.0f} s left"
    if left_s < 5400:
        return f", about {left_s / 60:.0f} min left"
    return f", about {left_s / 3600:.1f} h left"


def _read(snapshot: Any) -> dict | None:
    """The meter's snapshot; None if the meter does not answer."""
    import ray

    try:
        return ray.get(snapshot, timeout=ANSWER_S)
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
    """What the pipeline waits for, and for how long; the longest wait first."""
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


def lacks(operators: Sequence[Operator]) -> str:
    """The host or CPU that workers of these operators wait for; "" if they wait for neither."""
    import ray

    demands, _ = _demand()
    for operator in operators:
        place = operator.place
        mine = {"CPU": place.options.get("num_cpus", 0), "GPU": place.gpus}
        if any(all(d.bundle.get(k, 0) == v for k, v in mine.items()) for d in demands):
            unit = f"{place.gpus:g} GPU {place.accelerator}".strip() if place.gpus else "a CPU"
            found = room(ray.nodes(), place.gpus, place.accelerator)
            return f"{unit} to be free" if found else f"a host with {unit}"
    return ""


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
