"""Limits of one endpoint and model for the whole cluster, issued as permits.

    limiter = Limiter(Limits(requests_per_minute=12_000))
    lease = limiter.renew(LimiterReport(worker="a", waiting=500, tokens=420, most=128), now_s=0)
    lease.permits  ->  ((0.0, 420.0), ...)    (valid from, tokens) of each permit

A permit is for one request. It is issued once, and lapses when it is not used within HOLD_S of its
time. The times of all permits lie on one line, on which a request takes the time that the limits
need for it. So a window of W seconds sees at most the requests that the limit admits in
W + HOLD_S + LAG_S, and one more. A dead worker or a lost answer costs its permits and nothing else.
Permits are issued so far ahead that they arrive in time over any round trip. A restarted limiter
waits until the permits of its predecessor are used or have lapsed.

A burst of 429s pauses the whole cluster once (Retry-After). If it says that the limit is used up,
it lowers the rate by 30%; the rate rises again, slowly near the rate that failed. Without a known
limit the limiter learns one, the rate at which requests were admitted when some were refused; it
grows by a cubic, fast away from the rate that failed and slowly near it (CUBIC, RFC 9438). The
window of requests in flight grows as in TCP: it doubles per round trip, later grows by addition. A
burst of 429s halves it. It shrinks when latency doubles without a 429, as on a server with a queue
(Jacobson 1988; Netflix concurrency-limits, gradient limit).
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from typing import NamedTuple

RENEW_S = 0.25  # between the limiter's answer and a busy worker's next report
MAX_HORIZON_S = 5.0  # no permit is issued earlier than this before its time
SHARE = 0.99  # share of the limit that is issued: the rest is HOLD_S + LAG_S of each minute
HOLD_S = 0.4  # a permit lapses this long after its time: a worker may catch up after a stall
LAG_S = 0.2  # unused capacity of this length may be used later
START = 32.0  # requests in flight at first
CUT, SLOWED_S = 0.7, 0.5  # factor after a burst of 429s; latency growth that is ignored
LOST_S = 60.0  # half-life of answers and lost answers when they are compared
REGAINED_S = 10.0  # a learned rate that was cut has grown back after this time


class Limits(NamedTuple):
    """The limits of an endpoint per minute; None: unknown."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __or__(self, others: Limits) -> Limits:  # type: ignore[override]
        """These limits; the others' where these are unknown."""
        return Limits(*(b if a is None else a for a, b in zip(self, others, strict=True)))


@dataclass(frozen=True)
class LimiterReport:
    """A worker's report to the limiter. Counts are since its last report."""

    worker: str
    waiting: int = 0  # requests without a permit
    in_flight: int = 0
    tokens: float = 0.0  # mean tokens of a request
    most: int = 1  # requests in flight that the worker can have
    held: int = 0  # permits that the worker holds
    epoch: str = ""  # of the limiter that answered last
    trip_s: float | None = None  # longest recent round trip to the limiter
    owed: float = 0.0  # tokens used beyond the permits'; negative: tokens of permits not used
    answered: int = 0
    latency_s: float = 0.0  # mean over the answered requests
    lost: int = 0  # requests that got no answer
    lost_s: float = 0.0  # the longest wait for such an answer
    refused: int = 0  # 429s
    exhausted: bool = False  # a 429 did not exclude that the limit is used up
    retry_after_s: float | None = None  # the longest of the 429s
    limits: Limits = Limits()  # in headers of replies
    known: Limits = Limits()  # in headers of earlier replies to any worker, as the limiter said


@dataclass(frozen=True)
class Lease:
    """The limiter's answer to a report."""

    requests_per_s: float  # the worker's share; infinite: no limit is known, no permit is needed
    in_flight: int  # requests in flight that the worker may have
    pause_s: float = 0.0  # send nothing for this long
    permits: tuple[tuple[float, float], ...] = ()  # (valid from, on the clock of `now_s`; tokens)
    now_s: float = 0.0  # the limiter's clock
    horizon_s: float = MAX_HORIZON_S  # permits are issued at most this long before their time
    epoch: str = ""
    known: Limits = Limits()  # in headers; workers report them to the limiter's successor
    alone: bool = True  # no other worker has requests


@dataclass
class _Worker:
    gone_s: float = 0.0  # a worker that is silent until then counts as dead
    heard_s: float = 0.0  # last report
    horizon_s: float = 0.0
    need: float = 0.0  # requests waiting and in flight
    most: int = 0
    in_flight: int = 0
    leased: int = 0  # requests in flight
    wants_s: float = 0.0  # seconds of the line for requests that wait without a permit
    credit_s: float = 0.0  # unused seconds of its share


@dataclass
class Limiter:
    """State of one endpoint and model. All times in seconds of one monotonic clock."""

    configured: Limits = Limits()
    restarted: bool = False  # permits of a predecessor may still be valid
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex)
    began_s: float = math.inf  # first report
    # end of the line that is issued: by requests, by tokens
    issued_s: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    known: Limits = Limits()  # in headers
    distrusted: bool = False  # a 429 came within the configured limit: use the headers
    factor: float = 1.0  # part of the limit that is used
    ceiling: float = 1.0  # factor at the last cut
    failed: float | None = None  # requests/s that were refused, when no limit is known
    answered: int = 0  # since the last burst of 429s
    worked_s: float = 0.0  # time since then without pauses and idle time
    window: float = START  # requests in flight, all workers
    starting: bool = True  # the window doubles
    pause_until_s: float = -math.inf
    cut_s: float = -math.inf  # end of the last burst of 429s
    refused_s: float = -math.inf  # last 429
    bursts: int = 0  # bursts in a row
    latency_s: float = 0.0  # smoothed
    best_latency_s: float = math.inf
    slowed_s: float = -math.inf  # when the window shrank last without a 429
    came: float = 0.0  # recent answers, by LOST_S
    lost: float = 0.0  # recent lost answers, by LOST_S
    counted_s: float = 0.0  # when `came` and `lost` were updated
    updated_s: float = math.nan
    workers: dict[str, _Worker] = field(default_factory=dict)

    def renew(self, report: LimiterReport, now_s: float) -> Lease:
        """Take a worker's report, and issue permits for its waiting requests."""
        self._advance(now_s)
        # the worker has an answer of a predecessor, whose permits may still be valid
        self.restarted |= report.epoch not in ("", self.epoch)
        before = self.known_limits()
        self.known = report.limits | (report.known if self.known == Limits() else self.known)
        self.answered += report.answered
        self._measure(report, now_s)
        if report.refused:
            self._refuse(report, now_s, before)
        return self._lease(report, now_s)

    def _advance(self, now_s: float) -> None:
        """Raise the rate after a cut: by 2% of the limit per second, by 0.2% near the ceiling."""
        self.began_s = min(self.began_s, now_s)
        for name in [n for n, w in self.workers.items() if w.gone_s <= now_s]:
            del self.workers[name]
        if self.workers and now_s > self.cut_s:
            self.worked_s += now_s - max(self.updated_s, self.cut_s)
        if now_s - self.refused_s > 2.0:
            near = self.factor >= 0.9 * self.ceiling
            self.factor += (0.002 if near else 0.02) * max(0.0, now_s - self.updated_s)
            self.factor = min(1.0, self.factor)
            self.ceiling = max(self.ceiling, self.factor)
            self.bursts = 0
        if not math.isinf(self.best_latency_s) and now_s > self.updated_s:
            self.best_latency_s *= 1 + 5e-4 * (now_s - self.updated_s)  # models and load change
        self.updated_s = now_s

    def busy(self, now_s: float) -> bool:
        """Whether any worker has work."""
        return any(w.gone_s > now_s for w in self.workers.values())

    def limits(self) -> Limits:
        """The current limits: known, or learned from 429s."""
        known = self.known_limits()
        if self.failed is None or known != Limits():
            return known
        # cubic: CUT * failed after the cut, `failed` again after REGAINED_S
        x = self.worked_s / REGAINED_S - 1
        return Limits(60 * self.failed * (1 + (1 - CUT) * x**3))

    def known_limits(self) -> Limits:
        """The limits in the config, else in headers; once the config was refuted, the lower."""
        limits = self.configured | self.known
        if self.distrusted:
            pairs = zip(limits, self.known | limits, strict=True)
            limits = Limits(*(None if a is None or b is None else min(a, b) for a, b in pairs))
        return limits

    def _measure(self, report: LimiterReport, now_s: float) -> None:
        """Update latency and the window of requests in flight."""
        if report.answered:
            share = min(1.0, report.answered / 50)
            last = self.latency_s or report.latency_s
            self.latency_s = last + share * (report.latency_s - last)
            self.best_latency_s = min(self.best_latency_s, self.latency_s)
        best, grown = self.best_latency_s, self.latency_s - self.best_latency_s
        if grown > max(best, SLOWED_S) and now_s - self.slowed_s > max(1.0, self.latency_s):
            in_flight = sum(w.in_flight for w in self.workers.values())
            self.window = max(
                8.0, min(self.window, in_flight) * max(CUT, 2 * best / self.latency_s)
            )
            self.slowed_s, self.starting = now_s, False
        # An overloaded server still works on requests that have timed out here, and so answers
        # ever fewer in time. When most recent answers were lost, halve the window per time-out.
        fade = 0.5 ** (max(0.0, now_s - self.counted_s) / LOST_S) if self.counted_s else 1.0
        self.counted_s, self.came = now_s, self.came * fade + report.answered
        if report.lost and now_s - self.slowed_s > report.lost_s:
            self.lost = self.lost * fade + report.lost
            if self.lost > self.came:
                self.window, self.starting = max(1.0, self.window / 2), False
                self.slowed_s, self.lost, self.came = now_s, 0.0, 0.0
        worker = self.workers.get(report.worker)
        full = worker is not None and report.in_flight >= 0.8 * worker.leased
        if full and report.waiting and grown <= max(best, SLOWED_S) / 2:
            self.window += report.answered * (1 if self.starting else 2 / self.window)

    def _refuse(self, report: LimiterReport, now_s: float, before: Limits) -> None:
        """Pause the cluster and lower rate and window, once per burst of 429s. `before`: the known
        limits before this report."""
        self.refused_s = now_s
        self.distrusted |= report.exhausted
        same, pause_s = now_s < self.cut_s, report.retry_after_s
        if pause_s is None:
            pause_s = 0.0 if same else min(30.0, 2.0**self.bursts)
        self.pause_until_s = max(self.pause_until_s, now_s + pause_s)
        if same:  # the same burst
            return
        self.bursts += 1
        self.cut_s = now_s + max(1.0, pause_s)
        after, known = self.known_limits(), before != Limits()
        lowered = known and after != before  # the headers lower the rate already
        if report.exhausted and known and not lowered:
            self.ceiling, self.factor = self.factor, max(0.05, self.factor * CUT)
        elif report.exhausted and after == Limits():
            self._learn(report)
            after = self.limits()
        # a known limit is only reached with this many requests in flight
        rate = (after.requests_per_minute or 0.0) / 60
        floor = max(8.0, 1.5 * rate * self.latency_s)
        self.window, self.starting = max(floor, self.window / 2), False

    def _learn(self, report: LimiterReport) -> None:
        """Learn the rate that failed: the rate in use, or 1.5 times the mean admitted rate if that
        is less, because a mean lags behind a growing rate."""
        others = (w.in_flight for name, w in self.workers.items() if name != report.worker)
        admitted = self.answered + report.in_flight + sum(others)
        in_use = (self.limits().requests_per_minute or math.inf) / 60
        self.failed = max(1 / 60, min(in_use, 1.5 * admitted / max(1.0, self.worked_s)))
        self.answered, self.worked_s = 0, 0.0

    def _lease(self, report: LimiterReport, now_s: float) -> Lease:
        worker = self.workers.get(report.worker) or _Worker(heard_s=now_s)
        worker.need, worker.most = report.waiting + report.in_flight, report.most
        worker.in_flight = report.in_flight
        if worker.need == 0:  # its share goes to the other workers at once
            self.workers.pop(report.worker, None)
            return Lease(0.0, 1, now_s=now_s, epoch=self.epoch, known=self.known)
        if self.starting and report.worker not in self.workers:  # a new worker adds to the window
            self.window = max(self.window, min(START, self.window + report.most))
        self.workers[report.worker] = worker
        worker.gone_s = now_s + 1.0 + 3 * (report.trip_s or 0.0)
        worker.horizon_s = horizon(report.trip_s)
        # one horizon for all: a longer horizon would take permits before the others may
        horizon_s = max(w.horizon_s for w in self.workers.values())
        self.window = min(self.window, sum(w.most for w in self.workers.values()))
        needs = {n: min(w.need, w.most) for n, w in self.workers.items()}
        in_flight = shares(needs, max(self.window, len(needs)))[report.worker]
        worker.leased = min(worker.most, max(1, round(in_flight)))
        # seconds of the line that a request takes, by either limit
        rates = [
            math.inf if limit is None else limit / 60 * SHARE * self.factor
            for limit in self.limits()
        ]
        # a minute later neither used nor unused tokens count any more
        tokens_s = max(self.issued_s[1], now_s - 60.0) + report.owed / rates[1]
        self.issued_s[1] = min(tokens_s, now_s + 60.0)
        slots_s = 1 / rates[0], min(60.0, max(1.0, report.tokens) / rates[1])
        rate, permits = math.inf, tuple[tuple[float, float], ...]()
        if cost_s := max(slots_s):
            permits = self._issue(worker, report, slots_s, horizon_s, now_s)
            needs = {n: w.need for n, w in self.workers.items()}
            rate = shares(needs, 1 / cost_s)[report.worker]
        worker.heard_s = now_s
        return Lease(
            rate,
            worker.leased,
            max(0.0, self.pause_until_s - now_s),
            permits,
            now_s,
            horizon_s,
            self.epoch,
            self.known,
            alone=len(self.workers) == 1,
        )

    def _issue(
        self,
        worker: _Worker,
        report: LimiterReport,
        slots_s: tuple[float, float],
        horizon_s: float,
        now_s: float,
    ) -> tuple[tuple[float, float], ...]:
        """Permits for the worker's waiting requests, within its share and the horizon."""
        cost_s = max(slots_s)
        # requests that can leave until the horizon: a permit without a free place lapses
        turns = 1 + (horizon_s / self.latency_s if self.latency_s else math.inf)
        want = min(report.waiting, worker.leased * turns - report.in_flight)
        if not any(w.wants_s for w in self.workers.values() if w is not worker):
            # unneeded by others: keep some at hand
            want += min(report.in_flight, int(HOLD_S / cost_s))
        want = max(0, math.floor(want) - report.held)
        worker.wants_s = want * cost_s
        share = shares({n: w.wants_s for n, w in self.workers.items()}, 1.0)[report.worker]
        credit_s = worker.credit_s + share * (now_s - worker.heard_s)
        worker.credit_s = min(credit_s, share * MAX_HORIZON_S)
        # A permit must arrive before its time. A round trip that is longer than the horizon was a
        # stall and does not count.
        way_s = min((report.trip_s or 0.0) - HOLD_S / 2, horizon_s - HOLD_S)
        earliest_s = max(now_s + max(0.0, way_s), self.pause_until_s)
        if self.restarted:
            earliest_s = max(earliest_s, self.began_s + MAX_HORIZON_S + cost_s)
        permits: list[tuple[float, float]] = []
        while len(permits) < want:
            ends_s = [issued + slot for issued, slot in zip(self.issued_s, slots_s, strict=True)]
            at_s = max(earliest_s, *ends_s)
            # beyond its share a worker gets only near permits, which no other worker has taken
            entitled = worker.credit_s + share * horizon_s > 0
            if at_s >= now_s + (horizon_s if entitled else worker.horizon_s / 2):
                break
            self.issued_s = [max(end_s, at_s - LAG_S) for end_s in ends_s]
            worker.credit_s -= cost_s
            permits.append((at_s, report.tokens))
        worker.wants_s -= len(permits) * cost_s
        return tuple(permits)


def horizon(trip_s: float | None) -> float:
    """Seconds that permits are issued before their time. The next permits come after RENEW_S and a
    round trip; twice that time leaves no gap."""
    return MAX_HORIZON_S if trip_s is None else min(MAX_HORIZON_S, 2 * (RENEW_S + trip_s))


def shares(needs: dict[str, float], total: float) -> dict[str, float]:
    """Max-min fair split of `total`: small needs are met, the others get equal shares. What is left
    over is divided in proportion to need."""
    if sum(needs.values()) <= total:
        scale = total / max(1e-9, sum(needs.values()))
        return {name: need * scale for name, need in needs.items()}
    out, left = {}, total
    for rank, (name, need) in enumerate(sorted(needs.items(), key=lambda item: item[1])):
        out[name] = min(need, left / (len(needs) - rank))
        left -= out[name]
    return out
