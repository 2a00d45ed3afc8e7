"""What requests cost: prices, the usage of a run, and its budget.

    price_of(cfg.llm)  ->  Price(input=0.15, output=0.6, source="conf/prices, as of ...")
    meter = Meter(budget_usd=5.0, spent_usd=4.2)
    meter.report(MeterReport("a", "facts", 1, Usage(calls=10), wants_usd=0.3, next_usd=0.001))

Every worker reports to the run's meter twice a second. A report holds the worker's totals and a
number, so a report may be lost, repeated or late. With a budget, a worker sends only requests for
which the meter has set dollars aside. So the run exceeds its budget only by the error of the
estimates.
"""

from __future__ import annotations

import contextvars
import functools
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from facttune_ray.config import LLMConfig, conf_dir
from facttune_ray.errors import UserError
from facttune_ray.llm.replies import Completion

GONE_S = 30.0  # dollars set aside for a worker are free again after this silence
SILENT_S, FORGOTTEN_S = 10.0, 300.0  # the progress line shows a worker's silence from here to there
SILENT = "a silent worker"  # the name of that wait; its `requests` are workers
QUIET_S = 12.0  # a restarted meter gives no funds until every worker has reported


@dataclass
class Usage:
    """Counters of requests."""

    calls: int = 0  # answered and paid
    cached: int = 0  # taken from the ledger
    retries: int = 0  # attempts that failed and were repeated
    refused: int = 0  # 429s among them
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unknown: int = 0  # attempts without an answer: they may have been billed
    unknown_usd: float = 0.0  # their estimated cost
    estimated: int = 0  # answers whose tokens the server did not count

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def count(self, completions: Sequence[Completion]) -> None:
        """Count one request with its choices."""
        self.calls += 1
        self.estimated += completions[0].counted == "estimate"
        for c in completions:
            self.prompt_tokens += c.prompt_tokens
            self.completion_tokens += c.completion_tokens
            self.cost_usd += c.cost_usd

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def spent_usd(self) -> float:
        """The dollars that a budget counts."""
        return self.cost_usd + self.unknown_usd


# the usage of one shard, which a client counts beside its own when the context has it
shard_usage: contextvars.ContextVar[Usage | None] = contextvars.ContextVar(
    "shard_usage", default=None
)


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float
    source: str  # "" when no price is known

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def price_of(cfg: LLMConfig, section: str = "llm") -> Price:
    """The price in usd_per_million_* of this config section, else in conf/prices by model name,
    else 0. Raise UserError when only one of the two is set, or a budget has no known price."""
    if cfg.usd_per_million_input is not None and cfg.usd_per_million_output is not None:
        return Price(cfg.usd_per_million_input, cfg.usd_per_million_output, "config")
    if cfg.usd_per_million_input is not None or cfg.usd_per_million_output is not None:
        raise UserError(
            f"set {section}.usd_per_million_input and {section}.usd_per_million_output together"
        )
    for table in _price_tables():
        listed = table["models"].get(_family(cfg.model, tuple(table["models"])))
        if listed:
            factor = table["batch_factor"] if cfg.mode == "batch" else 1.0
            source = f"conf/prices, as of {table['as_of']}"
            return Price(listed["input"] * factor, listed["output"] * factor, source)
    if cfg.budget_usd is not None:
        raise UserError(
            f"llm.budget_usd: no price is known for {section}.model={cfg.model}: set "
            f"{section}.usd_per_million_input and {section}.usd_per_million_output"
        )
    return Price(0.0, 0.0, "")


def _family(model: str, known: tuple[str, ...]) -> str:
    """`gpt-4o-mini-2024-07-18` -> `gpt-4o-mini`: a dated snapshot costs the same as its family."""
    name = model.removeprefix("openai/")
    dated = [k for k in known if name.startswith(k + "-") and name[len(k) + 1 :][:2] == "20"]
    return name if name in known else max(dated, key=len, default=name)


@functools.cache
def _price_tables() -> list[dict]:
    from omegaconf import OmegaConf

    paths = sorted((conf_dir() / "prices").glob("*.yaml"))
    return [OmegaConf.to_container(OmegaConf.load(path)) for path in paths]  # type: ignore[misc]


@dataclass(frozen=True)
class Wait:
    """Requests of a worker that wait while nothing goes on."""

    what: str  # what they wait for: "permits", "the server", "the budget", ...
    since_s_ago: float
    requests: int


@dataclass(frozen=True)
class MeterReport:
    """A worker's report to the meter."""

    worker: str  # the worker's name as a writer of the ledger
    stage: str
    serial: int  # 1, 2, ...: a report that comes after a later one is ignored
    used: Usage  # since the worker began
    busy: bool = True  # it has requests; False: it may be silent from now on
    in_flight_usd: float = 0.0  # estimated cost of funded requests without an answer
    wants_usd: float = 0.0  # estimated cost of the requests that wait for funds
    next_usd: float = 0.0  # estimated cost of the first of them
    wait: Wait | None = None


@dataclass(frozen=True)
class Allowance:
    """The meter's answer to a report."""

    usd: float = 0.0  # may be spent at once beside what is in flight; the rest is given back
    reached: bool = False  # the budget is spent: no later answer will allow more
    stopped: bool = False  # the run ends: send nothing more
    calls: int = 0  # answered requests of the stage by all workers


Reporter = Callable[[MeterReport], Awaitable[Allowance]]


@dataclass
class _Worker:
    last: MeterReport
    at_s: float  # when `last` came
    spent_usd: float  # of this worker, as far as the meter's total has it
    allowance: Allowance = Allowance()  # the answer to `last`

    @property
    def reserved_usd(self) -> float:
        return self.last.in_flight_usd + self.allowance.usd


@dataclass
class Meter:
    """Usage and budget of one run."""

    budget_usd: float | None = None
    spent_usd: float = 0.0  # before this meter, and since by the workers
    # ledger writer -> its part of `spent_usd` before this meter, which its reports hold, too
    paid_usd: Mapping[str, float] = field(default_factory=dict)
    quiet_until_s: float = -math.inf  # a restarted meter gives no funds until then
    totals: dict[str, Usage] = field(default_factory=dict)  # stage -> usage
    workers: dict[str, _Worker] = field(default_factory=dict)
    stopped: bool = False  # tell every worker to stop

    def report(self, report: MeterReport, now_s: float | None = None) -> Allowance:
        now_s = time.monotonic() if now_s is None else now_s
        worker = self.workers.get(report.worker)
        if worker is None:
            nothing = replace(report, serial=0, used=Usage())
            worker = _Worker(nothing, now_s, self.paid_usd.get(report.worker, 0.0))
            self.workers[report.worker] = worker
        if report.serial <= worker.last.serial:  # repeated, or overtaken by a later report
            return worker.allowance
        total = self.totals.setdefault(report.stage, Usage())
        total = self.totals[report.stage] = total + report.used - worker.last.used
        self.spent_usd += max(0.0, report.used.spent_usd - worker.spent_usd)
        worker.spent_usd = max(worker.spent_usd, report.used.spent_usd)
        worker.last, worker.at_s, worker.allowance = report, now_s, Allowance()
        worker.allowance = replace(self._allow(report, now_s), calls=total.calls)
        return worker.allowance

    def _allow(self, report: MeterReport, now_s: float) -> Allowance:
        if self.stopped:
            return Allowance(stopped=True)
        if self.budget_usd is None:
            return Allowance(math.inf)
        if now_s < self.quiet_until_s:
            return Allowance()
        present = (w for w in self.workers.values() if now_s - w.at_s <= GONE_S)
        left = self.budget_usd - self.spent_usd
        free = left - sum(w.reserved_usd for w in present)
        if free < report.next_usd:  # requests in flight may cost less than was set aside for them
            return Allowance(reached=left < report.next_usd)
        return Allowance(min(report.wants_usd, free))

    def snapshot(self, now_s: float | None = None) -> dict:
        """The state for a progress line: dollars; and by stage the usage, the busy workers, and
        their waits as {what: [seconds, requests]}."""
        now_s = time.monotonic() if now_s is None else now_s
        busy: dict[str, int] = {}
        waits: dict[str, dict[str, list]] = {}
        for worker in self.workers.values():
            silent_s, last = now_s - worker.at_s, worker.last
            if not last.busy or silent_s > FORGOTTEN_S:
                continue
            busy[last.stage] = busy.get(last.stage, 0) + 1
            wait = last.wait and replace(last.wait, since_s_ago=last.wait.since_s_ago + silent_s)
            if silent_s > SILENT_S:
                wait = Wait(SILENT, silent_s, 1)
            if wait:
                entry = waits.setdefault(last.stage, {}).setdefault(wait.what, [0.0, 0])
                entry[0], entry[1] = max(entry[0], wait.since_s_ago), entry[1] + wait.requests
        return {
            "stages": {stage: asdict(used) for stage, used in self.totals.items()},
            "spent_usd": self.spent_usd,
            "workers": busy,
            "waits": waits,
        }
