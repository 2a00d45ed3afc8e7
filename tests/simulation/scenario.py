"""Draws a scenario from a seed: the size of the run, the provider's behaviour, and the faults.

    scenario = draw(seed=7)
    draw(seed=7, off=frozenset({"kills", "lost answers"}))     the same without those faults

Each fault is in some seeds and absent in others (swarm testing), because a fault that is always
there hides what happens without it.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

ANSWERED = ("plain", "hidden", "total_only", "no_usage", "parts", "thinking_part", "nonsense")
ROW_ERRORS = ("thoughts_cut", "empty_cut", "filtered", "filtered_half", "always_nonsense")
ROW_ERRORS += ("too_long", "too_long_b", "moderated", "huge")
STOPS = ("bad_setting", "no_credit")  # all rows of a run have the same of these kinds


@dataclass
class Scenario:
    seed: int
    # the run
    workers: int = 1
    kinds: list[str] = field(default_factory=list)  # one per row
    choices: list[int] = field(default_factory=list)  # completions of each row; 0: `ask`
    gaps_s: list[float] = field(default_factory=list)  # before each row is asked
    chars: list[int] = field(default_factory=list)  # of each row's text, without the first 30
    shards: int = 1
    arrivals_s: list[float] = field(default_factory=list)  # when each shard comes to its worker
    concurrency: int = 8
    most_choices: int = 1
    flush_rows: int = 256
    flush_s: float = 0.1
    timeout_s: float = 10.0
    max_attempts: int = 8
    max_elapsed_s: float = 900.0
    max_wait_s: float = 30.0
    reasks: int = 2
    budget_share: float | None = None  # of the estimated cost of all rows
    # the provider
    net_s: float = 0.01
    latency_s: float = 0.5
    latency_spread: float = 0.3
    answer_tokens: int = 50
    limits: list[tuple[float, float | None, float | None]] = field(default_factory=list)
    enforced: bool = True
    window: str = "sliding"
    bucket_s: float = 60.0
    tells_limits: bool = False
    configured: tuple[int | None, int | None] = (None, None)
    retry_after: bool = False
    retry_after_s: float | None = None
    replays: bool = False
    # faults, until `faults_end_s`
    faults_end_s: float = 0.0
    lost_requests: float = 0.0
    lost_answers: float = 0.0
    duplicates: float = 0.0
    hangs: float = 0.0
    errors_5xx: float = 0.0
    odd_429: float = 0.0
    errors_in_200: float = 0.0
    garbled: float = 0.0
    down: list[tuple[float, float]] = field(default_factory=list)
    # (when, worker, disk operations until it is killed)
    kills: list[tuple[float, int, int]] = field(default_factory=list)
    crashes: list[float] = field(default_factory=list)
    run_kills: list[float] = field(default_factory=list)
    limiter_restarts: list[float] = field(default_factory=list)
    meter_restarts: list[float] = field(default_factory=list)
    restart_s: float = 1.0
    trip_s: tuple[float, float] = (0.001, 0.003)  # one way to an actor
    lost_calls: float = 0.0
    repeated_calls: float = 0.0
    stalls: list[tuple[float, int, float]] = field(default_factory=list)  # (when, worker, seconds)
    jumps: list[tuple[float, float]] = field(default_factory=list)  # of the wall clock
    store: bool = False
    stale_s: float = 0.0
    disk_full: list[tuple[float, float]] = field(default_factory=list)
    disk_broken: float = 0.0
    slow_threads_s: float = 0.002
    merge: int = 16  # small segments that a writer merges
    rewrite_bytes: int = 2**18  # until a journal is rewritten

    usd_input: float = 1.0  # per million tokens
    usd_output: float = 4.0

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.usd_input + completion_tokens * self.usd_output) / 1e6

    def limits_at(self, now_s: float) -> tuple[float | None, float | None]:
        found: tuple[float | None, float | None] = (None, None)
        for since_s, rpm, tpm in self.limits:
            if since_s <= now_s:
                found = rpm, tpm
        return found

    @property
    def budget_usd(self) -> float | None:
        if self.budget_share is None:
            return None
        samples = sum(max(1, n) for n in self.choices)
        each = self.usd(self.tokens_each - self.answer_tokens / 2, self.answer_tokens / 2)
        return self.budget_share * samples * each

    @property
    def tokens_each(self) -> float:
        """Mean tokens of a request."""
        return 10 + sum(self.chars) / 4 / max(1, len(self.chars)) + self.answer_tokens / 2

    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"budget_usd": self.budget_usd}


# fault -> the fields of a scenario without it
WITHOUT: dict[str, dict[str, Any]] = {
    "worker kills": {"kills": []},
    "run kills": {"run_kills": []},
    "host crashes": {"crashes": []},
    "limiter restarts": {"limiter_restarts": []},
    "meter restarts": {"meter_restarts": []},
    "lost calls": {"lost_calls": 0.0},
    "repeated calls": {"repeated_calls": 0.0},
    "slow actors": {"trip_s": (0.001, 0.003)},
    "lost requests": {"lost_requests": 0.0},
    "lost answers": {"lost_answers": 0.0},
    "duplicates": {"duplicates": 0.0},
    "hangs": {"hangs": 0.0},
    "5xx": {"errors_5xx": 0.0},
    "odd 429s": {"odd_429": 0.0},
    "errors in 200": {"errors_in_200": 0.0},
    "garbled answers": {"garbled": 0.0},
    "endpoint down": {"down": []},
    "stalls": {"stalls": []},
    "clock jumps": {"jumps": []},
    "full disk": {"disk_full": []},
    "broken disk": {"disk_broken": 0.0},
    "object store": {"store": False, "stale_s": 0.0},
    "stale listings": {"stale_s": 0.0},
    "budget": {"budget_share": None},
    "replays": {"replays": False},
    "limits": {"limits": [], "configured": (None, None), "tells_limits": False},
    "changing limits": {},
    "row kinds": {},
    "choices": {},
    "lulls": {},
    "several workers": {"workers": 1},
}


def draw(seed: int, off: frozenset[str] = frozenset(), rows: int | None = None) -> Scenario:
    """The scenario of a seed, without the faults in `off`, and with the first `rows` rows."""
    s = _draw(seed)
    for name in WITHOUT:
        if name not in off:
            continue
        s = replace(s, **WITHOUT[name])
        if name == "changing limits":
            s.limits = s.limits[:1]
        elif name == "row kinds":
            s.kinds = ["plain"] * len(s.kinds)
        elif name == "choices":
            s.choices = [0] * len(s.choices)
        elif name == "lulls":
            s.gaps_s = [0.0] * len(s.gaps_s)
    if rows is not None:
        some = {name: getattr(s, name)[:rows] for name in ("kinds", "choices", "gaps_s", "chars")}
        s = replace(s, **some)
    s.shards = min(s.shards, len(s.kinds))
    s.workers = min(s.workers, s.shards)
    return s


def _draw(seed: int) -> Scenario:
    d = random.Random(f"{seed}/scenario")
    s = Scenario(seed)

    def chance(p: float) -> bool:
        return d.random() < p

    s.workers = d.choice([1, 1, 1, 2, 2, 3, 4])
    rows = int(d.triangular(1, 32, 2)) if chance(0.7) else d.randint(1, 8)
    s.shards = d.randint(1, max(1, min(12, rows // 2)))
    s.concurrency = d.choice([1, 2, 4, 8, 16, 128])
    s.flush_rows = d.choice([1, 2, 4, 16, 256])
    s.flush_s = d.choice([0.0, 0.01, 0.1, 0.1, 0.3])
    s.timeout_s = d.choice([1.0, 1.0, 3.0, 3.0, 10.0, 60.0])
    s.max_attempts = d.choice([1, 2, 3, 8, 8])
    s.max_elapsed_s = d.choice([20.0, 100.0, 900.0, 900.0])
    s.max_wait_s = d.choice([1.0, 1.0, 5.0, 30.0])
    s.reasks = d.choice([0, 1, 2, 2])
    s.net_s = d.choice([0.0005, 0.01, 0.1, 0.4])
    s.latency_s = min(d.choice([0.003, 0.05, 0.05, 0.3, 0.3, 1.0, 3.0]), 0.3 * s.timeout_s)
    s.latency_spread = d.choice([0.0, 0.2, 0.5])
    s.answer_tokens = d.choice([0, 50, 500])
    longest = d.choice([0, 400, 4000])
    s.chars = [d.randint(0, longest) for _ in range(rows)]

    # kinds of rows
    s.kinds = ["plain"] * rows
    if chance(0.6):
        share = d.choice([0.1, 0.3, 0.9])
        some = d.sample(ANSWERED + ROW_ERRORS, d.randint(1, 4))
        s.kinds = [d.choice(some) if chance(share) else "plain" for _ in range(rows)]
    if chance(0.03):
        s.kinds = [d.choice(STOPS)] * rows
    s.choices = [0] * rows
    if chance(0.25):
        s.most_choices = d.choice([1, 2, 4])
        s.choices = [d.choice([0, 1, 2, 3, 5]) for _ in range(rows)]
    s.gaps_s = [0.0] * rows
    lull = d.random()
    if lull < 0.15:  # one row at a time, with pauses
        s.gaps_s = [d.choice([0.0, 0.3, 0.99, 1.05, 1.1, 1.2, 2.0, 5.3]) for _ in range(rows)]
    elif lull < 0.35:
        s.gaps_s = [d.expovariate(2.0) if chance(0.3) else 0.0 for _ in range(rows)]

    # a limit by which most runs take at most some tens of seconds
    requests = sum(max(1, n) for n in s.choices)
    tokens = s.tokens_each
    rpm: float | None = None
    tpm: float | None = None
    if chance(0.65):
        least = max(6.0, 60.0 * requests / d.choice([1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 15.0, 60.0]))
        rpm = float(round(least * d.choice([1.0, 1.0, 1.5, 4.0])))
    if chance(0.25):
        least = max(3.0 * (25 + longest / 3 + s.answer_tokens * 5), 3.0 * requests * tokens)
        tpm = float(round(least * d.choice([1.0, 2.0])))
    s.limits = [(0.0, rpm, tpm)]
    how = d.choice(["configured", "configured", "told", "unknown", "wrong", "both", "below"])
    s.window = d.choice(["sliding", "fixed", "bucket"])
    s.bucket_s = d.choice([2.0, 10.0, 60.0])
    s.enforced = chance(0.8)
    s.tells_limits = how in ("told", "both", "wrong")
    if how in ("configured", "both"):
        s.configured = _whole(rpm), _whole(tpm)
    elif how == "wrong":
        s.configured = _whole(rpm and rpm * 3), _whole(tpm and tpm * 3)
    elif how == "below":
        s.configured = _whole(rpm and max(6.0, rpm / 2)), _whole(tpm)
    s.retry_after = chance(0.5)
    s.retry_after_s = d.choice([0.1, 1.0, 1.0, 3.0, 10.0])
    if rpm is not None and chance(0.1):
        s.limits.append(
            (d.uniform(1.0, 20.0), float(round(max(6.0, rpm * d.choice([0.5, 2.0])))), tpm)
        )
    s.replays = chance(0.1)
    if chance(0.25):
        s.budget_share = d.choice([0.05, 0.2, 0.5, 0.9, 1.5, 3.0])

    # faults
    about_s = 2.0 + rows / 10 + (60.0 * requests / rpm if rpm else 0.0) + s.latency_s
    s.faults_end_s = about_s * d.choice([0.5, 1.0, 2.0])

    def when() -> float:
        return d.uniform(0.0, 0.9 * about_s)

    def rate() -> float:
        return d.choice([0.02, 0.1, 0.3])

    if chance(0.2):
        s.lost_requests = rate()
    if chance(0.2):
        s.lost_answers = rate()
    if chance(0.05):
        s.duplicates = rate()
    if chance(0.1):
        s.hangs = rate() / 2
    if chance(0.25):
        s.errors_5xx = rate()
    if chance(0.15):
        s.odd_429 = rate()
    if chance(0.1):
        s.errors_in_200 = rate()
    if chance(0.1):
        s.garbled = rate()
    if chance(0.05):
        at = when()
        s.down = [(at, at + d.choice([0.2, 2.0, 20.0]))]
    if chance(0.3):
        s.kills = [
            (when(), d.randint(0, 3), d.choice([0, 0, *range(1, 9)]))
            for _ in range(d.choice([1, 1, 2, 4]))
        ]
    if chance(0.06):
        s.crashes = [when() for _ in range(d.choice([1, 1, 2]))]
    if chance(0.06):
        s.run_kills = [when()]
    if chance(0.12):
        s.limiter_restarts = [when() for _ in range(d.choice([1, 1, 2]))]
    if chance(0.3 if s.budget_share else 0.1):
        s.meter_restarts = [when() for _ in range(d.choice([1, 1, 2]))]
    s.restart_s = d.choice([0.1, 1.0, 3.0])
    slow = d.random()
    if slow < 0.15:
        trip = d.choice([0.1, 0.2, 0.5, 1.0])
        s.trip_s = (trip, trip)
    elif slow < 0.3:
        s.trip_s = (0.001, d.choice([0.2, 0.5, 1.0]))
    if chance(0.1):
        s.lost_calls = rate() / 2
    if chance(0.1):
        s.repeated_calls = rate()
    if chance(0.08):
        s.stalls = [
            (when(), d.randint(0, 3), d.choice([0.3, 1.5, 6.0])) for _ in range(d.choice([1, 2]))
        ]
    if chance(0.1):
        s.jumps = [(when(), d.choice([-3600.0, -1.0, 0.5, 86400.0]))]
    s.store = chance(0.15)
    if s.store and chance(0.4):
        s.stale_s = d.choice([0.5, 3.0])
    if chance(0.06):
        at = when()
        s.disk_full = [(at, at + d.choice([0.5, 3.0, 15.0]))]
    if chance(0.06):
        s.disk_broken = d.choice([0.003, 0.02])
    s.merge = d.choice([2, 4, 16, 16, 16, 16])
    s.rewrite_bytes = d.choice([0, 200, 2**18, 2**18])
    s.slow_threads_s = d.choice([0.0005, 0.002, 0.02, 0.2])
    s.arrivals_s = [0.0] * s.shards
    if chance(0.3):  # a worker may have no shard for a time
        last_s = d.choice([1.0, 5.0, 20.0])
        s.arrivals_s = [d.uniform(0.0, last_s) for _ in range(s.shards)]
    if s.budget_share is None and chance(0.2):
        s.budget_share = 30.0  # plenty: nothing should wait for funds
    return s


def _whole(limit: float | None) -> int | None:
    return None if limit is None else max(1, int(limit))
