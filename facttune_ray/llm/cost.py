"""What requests cost: prices, a run's usage, and its budget.

    price_of(cfg.llm)  ->  Price(input=0.15, output=0.6, source="conf/prices, as of ...")
    meter = Meter(budget_usd=5.0, spent_usd=4.2)
    meter.report(Ask("a", "facts", 1, Usage(calls=10, cost_usd=0.01), wants_usd=0.3, one_usd=0.001))

Every worker reports to the run's meter twice a second: totals, under a number of their own, so
that a report may be lost, repeated or late. With a budget a worker may only send what the meter has
set aside for it, so that the budget is not passed by more than estimates are wrong.
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
from facttune_ray.llm.ledger import Completion

GONE_S = 30.0  # what a worker has set aside is free again when it is silent for so long
SILENT_S, FORGOTTEN_S = 10.0, 300.0  # a worker's silence is told from here to there
SILENT = "a silent worker"  # what is waited for then; the requests are workers
QUIET_S = 12.0  # a new meter gives nothing until every worker has told it what it has in flight


@dataclass
class Usage:
    """Counters of requests."""

    calls: int = 0  # answered and paid
    cached: int = 0  # taken from the ledger
    retries: int = 0  # attempts that failed and were made again
    refused: int = 0  # of those, 429s
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unknown: int = 0  # attempts whose answer never came: they may have been billed
    unknown_usd: float = 0.0  # their estimated cost
    estimated: int = 0  # answers whose tokens the server did not count

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def count(self, paid: Sequence[Completion]) -> None:
        """One request and its choices."""
        self.calls += 1
        self.estimated += paid[0].counted == "estimate"
        for p in paid:
            self.prompt_tokens += p.prompt_tokens
            self.completion_tokens += p.completion_tokens
            self.cost_usd += p.cost_usd

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def spent_usd(self) -> float:
        """What a budget has to count."""
        return self.cost_usd + self.unknown_usd


# what the requests made in this context (one shard's) used, beside the client's own count
counted: contextvars.ContextVar[Usage | None] = contextvars.ContextVar("counted", default=None)


@dataclass(frozen=True)
class Price:
    """Dollars a million tokens."""

    input: float
    output: float
    source: str  # where it comes from; "" when no price is known

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def price_of(cfg: LLMConfig, section: str = "llm") -> Price:
    """From usd_per_million_* of this section of the config, or conf/prices by the model's name;
    zero if unknown."""
    if cfg.usd_per_million_input is not None and cfg.usd_per_million_output is not None:
        return Price(cfg.usd_per_million_input, cfg.usd_per_million_output, "config")
    if cfg.usd_per_million_input is not None or cfg.usd_per_million_output is not None:
        raise UserError(
            f"set {section}.usd_per_million_input and {section}.usd_per_million_output together"
        )
    factor = 1.0
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
    """`gpt-4o-mini-2024-07-18` -> `gpt-4o-mini`: a dated snapshot costs what its family does."""
    name = model.removeprefix("openai/")
    dated = [k for k in known if name.startswith(k + "-") and name[len(k) + 1 :][:2] == "20"]
    return name if name in known else max(dated, key=len, default=name)


@functools.cache
def _price_tables() -> list[dict]:
    from omegaconf import OmegaConf

    found = sorted((conf_dir() / "prices").glob("*.yaml"))
    return [OmegaConf.to_container(OmegaConf.load(path)) for path in found]  # type: ignore[misc]


@dataclass(frozen=True)
class Waits:
    """What a worker's requests wait for, when nothing has gone on for a while."""

    what: str  # "permits", "the server", "the limiter", "the budget"
    since_s_ago: float
    requests: int


@dataclass(frozen=True)
class Ask:
    """A worker's report to the meter."""

    worker: str  # its ledger's writer: what that has written is what the worker has paid
    stage: str
    serial: int  # 1, 2, ...: an earlier report that comes later is ignored
    used: Usage  # since the worker began
    busy: bool = True  # it has requests; False: it may be silent from now on
    in_flight_usd: float = 0.0  # estimated cost of what is funded and not yet answered
    wants_usd: float = 0.0  # estimated cost of what waits for funds
    one_usd: float = 0.0  # of the next request
    waits: Waits | None = None


@dataclass(frozen=True)
class Allowance:
    usd: float = (
        0.0  # may be sent now, beside what is in flight; what is not sent now is given back
    )
    reached: bool = False  # the budget is spent: nothing more will be allowed
    stopped: bool = False  # the run ends: send nothing more
    calls: int = 0  # answered requests of the stage, all workers together


class MeterLost(Exception):
    """The run's meter did not answer."""


Report = Callable[[Ask], Awaitable[Allowance]]


@dataclass
class _Worker:
    last: Ask
    at_s: float  # when that came
    spent_usd: float  # of this worker, as the meter has counted it
    allowance: Allowance = Allowance()  # the answer to `last`

    @property
    def reserved_usd(self) -> float:
        return self.last.in_flight_usd + self.allowance.usd


@dataclass
class Meter:
    """One run's usage and budget."""

    budget_usd: float | None = None
    spent_usd: float = 0.0  # before, and by the workers since
    # ledger writer -> its share of that: a worker's total counts as far as it is more
    paid_usd: Mapping[str, float] = field(default_factory=dict)
    quiet_until_s: float = -math.inf  # of a meter that comes after another one
    totals: dict[str, Usage] = field(default_factory=dict)  # stage -> usage
    workers: dict[str, _Worker] = field(default_factory=dict)
    stopped: bool = False  # every worker is told

    def report(self, ask: Ask, now_s: float | None = None) -> Allowance:
        now_s = time.monotonic() if now_s is None else now_s
        mine = self.workers.get(ask.worker)
        if mine is None:
            nothing, paid_usd = replace(ask, serial=0, used=Usage()), self.paid_usd.get(ask.worker)
            mine = self.workers[ask.worker] = _Worker(nothing, now_s, paid_usd or 0.0)
        if ask.serial <= mine.last.serial:  # the same once more, or one that was overtaken
            return mine.allowance
        total = self.totals.setdefault(ask.stage, Usage())
        total = self.totals[ask.stage] = total + ask.used - mine.last.used
        self.spent_usd += max(0.0, ask.used.spent_usd - mine.spent_usd)
        mine.spent_usd = max(mine.spent_usd, ask.used.spent_usd)
        mine.last, mine.at_s, mine.allowance = ask, now_s, Allowance()
        mine.allowance = replace(self._allow(ask, now_s), calls=total.calls)
        return mine.allowance

    def _allow(self, ask: Ask, now_s: float) -> Allowance:
        if self.stopped:
            return Allowance(stopped=True)
        if self.budget_usd is None:
            return Allowance(math.inf)
        if now_s < self.quiet_until_s:
            return Allowance()
        there = (w for w in self.workers.values() if now_s - w.at_s <= GONE_S)
        left = self.budget_usd - self.spent_usd
        free = left - sum(w.reserved_usd for w in there)
        if free < ask.one_usd:  # what is on its way may cost less than was set aside for it
            return Allowance(reached=left < ask.one_usd)
        return Allowance(min(ask.wants_usd, free))

    def snapshot(self, now_s: float | None = None) -> dict:
        """For a progress line: dollars, and by stage the usage, the workers that are at work, and
        what these wait for: {what: [since how many seconds, how many requests]}."""
        now_s = time.monotonic() if now_s is None else now_s
        at_work: dict[str, int] = {}
        waits: dict[str, dict[str, list]] = {}
        for worker in self.workers.values():
            silent_s, last = now_s - worker.at_s, worker.last
            if not last.busy or silent_s > FORGOTTEN_S:
                continue
            at_work[last.stage] = at_work.get(last.stage, 0) + 1
            wait = last.waits and replace(last.waits, since_s_ago=last.waits.since_s_ago + silent_s)
            if silent_s > SILENT_S:
                wait = Waits(SILENT, silent_s, 1)
            if wait:
                entry = waits.setdefault(last.stage, {}).setdefault(wait.what, [0.0, 0])
                entry[0], entry[1] = max(entry[0], wait.since_s_ago), entry[1] + wait.requests
        return {
            "stages": {stage: asdict(used) for stage, used in self.totals.items()},
            "spent_usd": self.spent_usd,
            "workers": at_work,
            "waits": waits,
        }
