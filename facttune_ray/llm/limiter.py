"""Cluster-wide limits of one endpoint and model: each worker leases a share for about a second.

    limiter = Limiter(Limits(requests_per_minute=12_000))
    lease = limiter.renew(Seen(worker="a", waiting=500, most=128), now_s=0.0)
    lease.requests_per_s  ->  198.0     99% of the limit, split by need when others ask too

A lease is a rate, so the leases that are out never add up to more than the limit, and a worker
that loses the limiter goes on at its rate until the lease ends, then waits. A limiter that sees a
lease it did not give (its predecessor died) gives nothing until all such leases have ended.

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
from dataclasses import dataclass, field

TERM_S = 1.0  # a lease ends this long after it was asked for
RENEW_S = 0.25  # and is asked for again this often
SHARE = 0.99  # of the limit that is given out: clocks and buckets differ a little
BURST_S = 0.4  # seconds of rate that a worker may catch up after a stall
CUT, SLOWED_S = 0.7, 0.5  # factor of a burst of 429; latency growth that does not matter
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
    tokens: float = 0.0  # that those waiting and in flight need
    most: int = 1  # requests in flight that the worker can have
    leased_s: float = 0.0  # left of the lease that it holds
    answered: int = 0
    latency_s: float = 0.0  # mean of the answered
    refused: int = 0  # 429s
    exhausted: bool = False  # a 429 said, or left open, that the limit is used up
    retry_after_s: float | None = None  # longest of the 429s
    limits: Limits = Limits()  # as the server's headers say


@dataclass(frozen=True)
class Lease:
    """What a worker may do from now on. Infinite rates: nothing is known of a limit."""

    requests_per_s: float
    tokens_per_s: float
    in_flight: int
    pause_s: float  # send nothing for this long
    term_s: float = TERM_S
    renew_s: float = RENEW_S
    burst_s: float = BURST_S


@dataclass
class _Held:
    until_s: float = 0.0
    need: float = 0.0  # requests waiting and in flight
    tokens: float = 0.0  # theirs
    most: int = 0
    in_flight: int = 0
    leased: int = 0  # requests in flight
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0


@dataclass
class Limiter:
    """State of one endpoint and model. All times in seconds of one monotonic clock."""

    configured: Limits = Limits()
    quiet_until_s: float = -math.inf  # leases of a predecessor may still be out
    seen: Limits = Limits()  # in headers
    distrusted: bool = False  # the configured limit was refused: believe the headers
    factor: float = 1.0  # of the limit that is used
    ceiling: float = 1.0  # factor that was refused last
    failed: float | None = None  # requests/s that were refused, where no limit is told
    answered: int = 0  # since the last burst of 429s
    worked_s: float = 0.0  # since then, neither paused nor idle
    window: float = 32.0  # requests in flight, all workers
    starting: bool = True  # doubling
    pause_until_s: float = -math.inf
    cut_s: float = -math.inf  # end of the burst that was cut
    refused_s: float = -math.inf  # last 429
    bursts: int = 0  # in a row, without Retry-After
    latency_s: float = 0.0  # smoothed
    best_latency_s: float = math.inf
    slowed_s: float = -math.inf
    updated_s: float = math.nan
    workers: dict[str, _Held] = field(default_factory=dict)

    def renew(self, report: Seen, now_s: float) -> Lease:
        """Take a worker's report and give it a lease in place of its last one."""
        self._advance(now_s)
        if report.leased_s > 0 and report.worker not in self.workers:
            # a lease we did not give: our predecessor died, and others may hold one, too
            self.quiet_until_s = max(self.quiet_until_s, now_s + TERM_S)
        before = self.told()
        self._see(report.limits)
        self.answered += report.answered
        self._measure(report, now_s)
        if report.refused:
            self._refuse(report, now_s, before)
        return self._lease(report, now_s)

    def _advance(self, now_s: float) -> None:
        """The refused rate is approached again: 2% of the limit a second, 0.2% near it."""
        for name in [n for n, w in self.workers.items() if w.until_s <= now_s]:
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
        """Whether a worker holds a lease."""
        return any(w.until_s > now_s for w in self.workers.values())

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
        held = self.workers.get(report.worker) or _Held()
        held.need, held.most = report.waiting + report.in_flight, report.most
        held.tokens = max(1.0, report.tokens)
        held.in_flight, held.until_s = report.in_flight, now_s + TERM_S
        if held.need == 0:  # done for now: its share goes to the others at once
            self.workers.pop(report.worker, None)
            return Lease(0.0, 0.0, 1, 0.0)
        self.workers[report.worker] = held
        self.window = min(self.window, sum(w.most for w in self.workers.values()))
        others = {n: w for n, w in self.workers.items() if w is not held}

        def share(limit: float | None, need: str, out: str) -> float:
            if limit is None:
                return math.inf
            total = limit / 60 * SHARE * self.factor
            needs = {n: getattr(w, need) for n, w in self.workers.items()}
            leased = sum(r for w in others.values() if math.isfinite(r := getattr(w, out)))
            return min(shares(needs, total)[report.worker], max(0.0, total - leased))

        limits = self.limits()
        held.requests_per_s = share(limits.requests_per_minute, "need", "requests_per_s")
        held.tokens_per_s = share(limits.tokens_per_minute, "tokens", "tokens_per_s")
        if self.quiet_until_s > now_s:
            held.requests_per_s = held.tokens_per_s = 0.0
        needs = {n: min(w.need, w.most) for n, w in self.workers.items()}
        in_flight = shares(needs, max(self.window, len(needs)))[report.worker]
        held.leased = min(held.most, max(1, round(in_flight)))
        pause_s = max(self.pause_until_s, self.quiet_until_s) - now_s
        return Lease(held.requests_per_s, held.tokens_per_s, held.leased, max(0.0, pause_s))


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
