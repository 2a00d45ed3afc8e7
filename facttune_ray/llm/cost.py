"""What requests cost: prices, a run's usage, and its budget.

    price_of(cfg.llm)  ->  Price(input=0.15, output=0.6, source="conf/prices, as of ...")
    meter = Meter(budget_usd=5.0, spent_usd=4.2)
    meter.report(Ask("a", "facts", Usage(calls=10, cost_usd=0.01), wants_usd=0.3, one_usd=0.001))

Every worker reports to the run's meter twice a second. With a budget it may only send what the
meter has set aside for it, so that the budget is not passed by more than estimates are wrong.
"""

from __future__ import annotations

import contextvars
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, fields

from facttune_ray.config import LLMConfig, conf_dir
from facttune_ray.errors import UserError
from facttune_ray.llm.ledger import Completion

GONE_S = 30.0  # what a worker has set aside is free again when it is silent for so long


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
class Ask:
    """A worker's report to the meter."""

    worker: str
    stage: str
    used: Usage  # since its last report that was answered
    in_flight_usd: float = 0.0  # estimated cost of what is sent or set aside and not yet answered
    wants_usd: float = 0.0  # estimated cost of what it could send soon
    one_usd: float = 0.0  # of the next request
    before: Usage = field(default_factory=Usage)  # all until then: what is told again counts once


@dataclass(frozen=True)
class Allowance:
    usd: float  # may be sent, in place of what was allowed before
    reached: bool = False  # the budget is spent: nothing more will be allowed
    stopped: bool = False  # the run ends: send nothing more


class MeterLost(Exception):
    """The run's meter did not answer."""


Report = Callable[[Ask], Awaitable[Allowance]]


@dataclass
class _Reserved:
    at_s: float = 0.0
    in_flight_usd: float = 0.0
    allowed_usd: float = 0.0


@dataclass
class Meter:
    """One run's usage and budget."""

    budget_usd: float | None = None
    spent_usd: float = 0.0  # before, and by the workers since
    totals: dict[str, Usage] = field(default_factory=dict)  # stage -> usage
    told: dict[tuple[str, str], Usage] = field(default_factory=dict)  # worker, stage -> all it used
    workers: dict[str, _Reserved] = field(default_factory=dict)
    stopped: bool = False  # every worker is told

    def report(self, ask: Ask, now_s: float | None = None) -> Allowance:
        now_s = time.monotonic() if now_s is None else now_s
        who = ask.worker, ask.stage
        total, told = ask.before + ask.used, self.told.get(who, ask.before)
        grown = total.calls >= told.calls and total.cost_usd >= told.cost_usd
        used = total - told if grown else ask.used  # a worker that began again has used nothing yet
        self.told[who] = total
        self.totals[ask.stage] = self.totals.get(ask.stage, Usage()) + used
        self.spent_usd += used.cost_usd
        if self.stopped:
            return Allowance(0.0, stopped=True)
        if self.budget_usd is None:
            return Allowance(float("inf"))
        for name in [n for n, w in self.workers.items() if now_s - w.at_s > GONE_S]:
            del self.workers[name]
        mine = self.workers.setdefault(ask.worker, _Reserved())
        mine.at_s, mine.in_flight_usd, mine.allowed_usd = now_s, ask.in_flight_usd, 0.0
        in_flight = sum(w.in_flight_usd for w in self.workers.values())
        allowed = sum(w.allowed_usd for w in self.workers.values())
        left = self.budget_usd - self.spent_usd - in_flight
        if left < ask.one_usd:  # what is on its way may cost less than was set aside for it
            return Allowance(0.0, reached=self.budget_usd - self.spent_usd < ask.one_usd)
        mine.allowed_usd = max(0.0, min(ask.wants_usd, left - allowed))
        if mine.allowed_usd < ask.one_usd:  # too little for one request would keep it from others
            mine.allowed_usd = 0.0
        return Allowance(mine.allowed_usd)

    def snapshot(self) -> dict:
        """{stage: usage} and dollars, for a progress line."""
        return {
            "stages": {stage: asdict(used) for stage, used in self.totals.items()},
            "spent_usd": self.spent_usd,
        }
