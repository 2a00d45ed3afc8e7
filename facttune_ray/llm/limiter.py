"""Cluster-wide limits of one endpoint and model, given out as permits.

    limiter = Limiter(Limits(requests_per_minute=12_000))
    lease = limiter.renew(Seen(worker="a", waiting=500, tokens=420, most=128), now_s=0)
    lease.permits  ->  ((0.0, 420.0), ...)    each: from when, for how many tokens

A permit is for one request, is issued once, and lapses unless it is used within HOLD_S of its time.
The times of all permits lie on one line, on which a request takes up as long as the limits need for
it, so no window of W seconds sees more requests than the limit lets through in W + HOLD_S + LAG_S
(and one). A worker that dies, or an answer that is lost, costs the permits that were in it and
nothing else. They are issued so far ahead that they are there in time, however long the way; a
limiter that was restarted waits until those of its predecessor are used or have lapsed.

429 answers pause the whole cluster once (Retry-After) and, when they say that the limit is used
up, lower the rate by 30% a burst; it rises again, slowly near the rate that failed. Where nobody
tells a limit, the rate at which requests were let through when some were refused is taken for it;
it grows by a cubic: fast below and above the rate that failed, slowly near it (CUBIC, RFC 9438).
Requests in flight grow as in TCP: doubled a round trip at first, then by addition; halved by a
burst of 429; lowered when latency doubles without one, as a self-hosted server with a queue does
(Jacobson 1988; Netflix concurrency-limits, gradient limit).
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field

RENEW_S = 0.25  # between an answer and the next question of a worker with work
MAX_HORIZON_S = 5.0  # no permit is issued longer before its time
SHARE = 0.99  # of the limit that is given out: its 1% is what HOLD_S and LAG_S are of a minute
HOLD_S = 0.4  # after its time a permit lapses: what a worker may catch up after a stall
LAG_S = 0.2  # of capacity that nobody used, and may be used later
START = 32.0  # requests in flight at first
CUT, SLOWED_S = 0.7, 0.5  # factor of a burst of 429; latency growth that does not matter
LOST_S = 60.0  # until an answer counts half, where lost ones are compared with those that came
REGAINED_S = 10.0  # until a rate that was learned and cut is what it was


@dataclass(frozen=True)
class Limits:
    """What an endpoint permits each minute; None: unknown."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True)
class Seen:
    """What a worker saw since its last report."""

    worker: str
    waiting: int = 0  # requests without a permit
    in_flight: int = 0
    tokens: float = 0.0  # that a request needs, on average
    most: int = 1  # requests in flight that the worker can have
    held: int = 0  # permits
    epoch: str = ""  # of the limiter that answered last
    trip_s: float | None = None  # from a question to its answer, the longest of late
    owed: float = 0.0  # tokens used beyond those of the permits; negative: not used after all
    answered: int = 0
    latency_s: float = 0.0  # mean of the answered
    lost: int = 0  # answers that never came
    lost_s: float = 0.0  # longest time that one of these was waited for
    refused: int = 0  # 429s
    exhausted: bool = False  # a 429 said, or left open, that the limit is used up
    retry_after_s: float | None = None  # longest of the 429s
    limits: Limits = Limits()  # as the server's headers said since its last report
    known: Limits = Limits()  # and before, to all workers


@dataclass(frozen=True)
class Lease:
    """What a worker may do from now on."""

    requests_per_s: float  # its share of the rate; infinite: no limit is known, no permit needed
    in_flight: int
    pause_s: float = 0.0  # send nothing for this long
    permits: tuple[tuple[float, float], ...] = ()  # (from when by `now_s`, tokens) of a request
    now_s: float = 0.0  # the limiter's clock
    horizon_s: float = MAX_HORIZON_S  # permits are issued at most this long before their time
    epoch: str = ""
    seen: Limits = Limits()  # in headers, for a limiter that comes after this one


@dataclass
class _Worker:
    gone_s: float = 0.0  # it is taken for dead when it is silent until then
    seen_s: float = 0.0
    horizon_s: float = 0.0
    need: float = 0.0  # requests waiting and in flight
    most: int = 0
    in_flight: int = 0
    leased: int = 0  # requests in flight
    wants_s: float = 0.0  # seconds of the line, for what waits without a permit
    credit_s: float = 0.0  # of its share, not taken up


@dataclass
class Limiter:
    """State of one endpoint and model. All times in seconds of one monotonic clock."""

    configured: Limits = Limits()
    restarted: bool = False  # permits of a predecessor may still be out
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex)
    began_s: float = math.inf  # first report
    issued_s: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    seen: Limits = Limits()  # in headers
    distrusted: bool = False  # the configured limit was refused: believe the headers
    factor: float = 1.0  # of the limit that is used
    ceiling: float = 1.0  # factor that was refused last
    failed: float | None = None  # requests/s that were refused, where no limit is told
    answered: int = 0  # since the last burst of 429s
    worked_s: float = 0.0  # since then, neither paused nor idle
    window: float = START  # requests in flight, all workers
    starting: bool = True  # doubling
    pause_until_s: float = -math.inf
    cut_s: float = -math.inf  # end of the burst that was cut
    refused_s: float = -math.inf  # last 429
    bursts: int = 0  # in a row, without Retry-After
    latency_s: float = 0.0  # smoothed
    best_latency_s: float = math.inf
    slowed_s: float = -math.inf
    came: float = 0.0  # answers of late
    lost: float = 0.0  # those of late that never came
    counted_s: float = 0.0
    updated_s: float = math.nan
    workers: dict[str, _Worker] = field(default_factory=dict)

    def renew(self, report: Seen, now_s: float) -> Lease:
        """Take a worker's report and issue permits for what waits there."""
        self._advance(now_s)
        # an answer that we did not give: our predecessor died, and its permits may be out
        self.restarted |= report.epoch not in ("", self.epoch)
        before = self.told()
        if self.seen == Limits():
            self._see(report.known)
        self._see(report.limits)
        self.answered += report.answered
        self._measure(report, now_s)
        if report.refused:
            self._refuse(report, now_s, before)
        return self._lease(report, now_s)

    def _advance(self, now_s: float) -> None:
        """The refused rate is approached again: 2% of the limit a second, 0.2% near it."""
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
            self.best_latency_s *= 1 + 5e-4 * (now_s - self.updated_s)  # models and loads change
        self.updated_s = now_s

    def busy(self, now_s: float) -> bool:
        """Whether a worker has work."""
        return any(w.gone_s > now_s for w in self.workers.values())

    def limits(self) -> Limits:
        """Those that hold now: told, or learned from refusals."""
        told = self.told()
        if self.failed is None or told != Limits():
            return told
        # the cubic of a congestion window: CUT * failed at first, `failed` again at REGAINED_S
        way = self.worked_s / REGAINED_S - 1
        return Limits(60 * self.failed * (1 + (1 - CUT) * way**3))

    def told(self) -> Limits:
        """Configured, or as the headers say."""
        return Limits(
            self._limit(self.configured.requests_per_minute, self.seen.requests_per_minute),
            self._limit(self.configured.tokens_per_minute, self.seen.tokens_per_minute),
        )

    def _limit(self, configured: float | None, seen: float | None) -> float | None:
        if configured is None or seen is None:
            return seen if configured is None else configured
        return min(configured, seen) if self.distrusted else configured

    def _see(self, limits: Limits) -> None:
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        self.seen = Limits(
            self.seen.requests_per_minute if requests is None else requests,
            self.seen.tokens_per_minute if tokens is None else tokens,
        )

    def _measure(self, report: Seen, now_s: float) -> None:
        """Latency and the window of requests in flight."""
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
        # a server that works through what timed out here, too, answers less and less in time: where
        # most answers of late were lost, half as much is sent at once, after each time-out again
        fade = 0.5 ** (max(0.0, now_s - self.counted_s) / LOST_S) if self.counted_s else 1.0
        self.counted_s, self.came = now_s, self.came * fade + report.answered
        if report.lost and now_s - self.slowed_s > report.lost_s:
            self.lost = self.lost * fade + report.lost
            if self.lost > self.came:
                self.window, self.starting = max(1.0, self.window / 2), False
                self.slowed_s, self.lost, self.came = now_s, 0.0, 0.0
        held = self.workers.get(report.worker)
        full = held is not None and report.in_flight >= 0.8 * held.leased
        if full and report.waiting and grown <= max(best, SLOWED_S) / 2:
            self.window += report.answered * (1 if self.starting else 2 / self.window)

    def _refuse(self, report: Seen, now_s: float, before: Limits) -> None:
        self.refused_s = now_s
        self.distrusted |= report.exhausted
        if report.retry_after_s is not None:
            pause_s = report.retry_after_s
        else:
            pause_s = min(30.0, 2.0**self.bursts)
        if now_s < self.cut_s:  # the same burst
            if report.retry_after_s is not None:
                self.pause_until_s = max(self.pause_until_s, now_s + pause_s)
            return
        self.bursts += 1
        self.pause_until_s = max(self.pause_until_s, now_s + pause_s)
        self.cut_s = now_s + max(1.0, pause_s)
        after, known = self.told(), before != Limits()
        lowered = known and after != before  # a lower limit is known now: that is the cut
        if report.exhausted and known and not lowered:
            self.ceiling, self.factor = self.factor, max(0.05, self.factor * CUT)
        elif report.exhausted and after == Limits():
            self._learn(report)
            after = self.limits()
        # a limit that is known needs this many requests in flight to be reached
        rate = (after.requests_per_minute or 0.0) / 60
        floor = max(8.0, 1.5 * rate * self.latency_s)
        self.window, self.starting = max(floor, self.window / 2), False

    def _learn(self, report: Seen) -> None:
        """The rate that failed: the one in use, if requests were enough for it. A mean of what was
        let through lags behind a rate that grows: half as much again."""
        others = (w.in_flight for name, w in self.workers.items() if name != report.worker)
        through = self.answered + report.in_flight + sum(others)
        in_use = (self.limits().requests_per_minute or math.inf) / 60
        self.failed = max(1 / 60, min(in_use, 1.5 * through / max(1.0, self.worked_s)))
        self.answered, self.worked_s = 0, 0.0

    def _lease(self, report: Seen, now_s: float) -> Lease:
        worker = self.workers.get(report.worker) or _Worker(seen_s=now_s)
        worker.need, worker.most = report.waiting + report.in_flight, report.most
        worker.in_flight = report.in_flight
        if worker.need == 0:  # done for now: its share goes to the others at once
            self.workers.pop(report.worker, None)
            return Lease(0.0, 1, now_s=now_s, epoch=self.epoch, seen=self.seen)
        if self.starting and report.worker not in self.workers:  # it brings places of its own
            self.window = max(self.window, min(START, self.window + report.most))
        self.workers[report.worker] = worker
        worker.gone_s = now_s + 1.0 + 3 * (report.trip_s or 0.0)
        worker.horizon_s = horizon(report.trip_s)
        # that of the farthest, or it would take what the others may not take yet
        horizon_s = max(w.horizon_s for w in self.workers.values())
        self.window = min(self.window, sum(w.most for w in self.workers.values()))
        needs = {n: min(w.need, w.most) for n, w in self.workers.items()}
        in_flight = shares(needs, max(self.window, len(needs)))[report.worker]
        worker.leased = min(worker.most, max(1, round(in_flight)))
        # seconds of the line that a request takes up, by either limit
        told = self.limits()
        rates = [
            math.inf if limit is None else limit / 60 * SHARE * self.factor
            for limit in (told.requests_per_minute, told.tokens_per_minute)
        ]
        # what was used a minute ago does not count any more, nor what was not
        tokens_s = max(self.issued_s[1], now_s - 60.0) + report.owed / rates[1]
        self.issued_s[1] = min(tokens_s, now_s + 60.0)
        slots_s = 1 / rates[0], min(60.0, max(1.0, report.tokens) / rates[1])
        rate, permits = math.inf, tuple[tuple[float, float], ...]()
        if cost_s := max(slots_s):
            permits = self._issue(worker, report, slots_s, horizon_s, now_s)
            needs = {n: w.need for n, w in self.workers.items()}
            rate = shares(needs, 1 / cost_s)[report.worker]
        worker.seen_s = now_s
        pause_s = max(0.0, self.pause_until_s - now_s)
        return Lease(
            rate, worker.leased, pause_s, permits, now_s, horizon_s, self.epoch, seen=self.seen
        )

    def _issue(
        self,
        worker: _Worker,
        report: Seen,
        slots_s: tuple[float, float],
        horizon_s: float,
        now_s: float,
    ) -> tuple[tuple[float, float], ...]:
        """Permits for what waits there, as far as its share and the horizon go."""
        cost_s = max(slots_s)
        # places in flight until the horizon; a permit that finds none lapses
        turns = 1 + (horizon_s / self.latency_s if self.latency_s else math.inf)
        want = min(report.waiting, worker.leased * turns - report.in_flight)
        if not any(w.wants_s for w in self.workers.values() if w is not worker):
            want += min(report.in_flight, int(HOLD_S / cost_s))  # nobody else needs it: at hand
        want = max(0, math.floor(want) - report.held)
        worker.wants_s = want * cost_s
        share = shares({n: w.wants_s for n, w in self.workers.items()}, 1.0)[report.worker]
        credit_s = worker.credit_s + share * (now_s - worker.seen_s)
        worker.credit_s = min(credit_s, share * MAX_HORIZON_S)
        # a permit that is there only after its time is of no use; a way that took longer than the
        # horizon was a stall, and is not waited for
        way_s = min((report.trip_s or 0.0) - HOLD_S / 2, horizon_s - HOLD_S)
        earliest_s = max(now_s + max(0.0, way_s), self.pause_until_s)
        if self.restarted:
            earliest_s = max(earliest_s, self.began_s + MAX_HORIZON_S + cost_s)
        permits: list[tuple[float, float]] = []
        while len(permits) < want:
            ends_s = [issued + slot for issued, slot in zip(self.issued_s, slots_s, strict=True)]
            at_s = max(earliest_s, *ends_s)
            # who has had more than its share takes only what nobody else has taken in time
            entitled = worker.credit_s + share * horizon_s > 0
            if at_s >= now_s + (horizon_s if entitled else worker.horizon_s / 2):
                break
            self.issued_s = [max(end_s, at_s - LAG_S) for end_s in ends_s]
            worker.credit_s -= cost_s
            permits.append((at_s, report.tokens))
        worker.wants_s -= len(permits) * cost_s
        return tuple(permits)


def horizon(trip_s: float | None) -> float:
    """Seconds before their time that permits are issued, so that each is there in time although
    the next question comes RENEW_S after an answer, and its answer a round trip later."""
    return MAX_HORIZON_S if trip_s is None else min(MAX_HORIZON_S, 2 * (RENEW_S + trip_s))


def shares(needs: dict[str, float], total: float) -> dict[str, float]:
    """Max-min fair split: nobody gets more than the rest while needing less; what nobody needs
    is added in proportion to need. Sums to `total`."""
    if sum(needs.values()) <= total:
        scale = total / max(1e-9, sum(needs.values()))
        return {name: need * scale for name, need in needs.items()}
    out, left = {}, total
    for rank, (name, need) in enumerate(sorted(needs.items(), key=lambda item: item[1])):
        out[name] = min(need, left / (len(needs) - rank))
        left -= out[name]
    return out
