"""A worker's side of the limiter: requests wait here until the worker's lease lets them go.

    gate = Gate(renew, most=128, worker="a")
    await gate.acquire(tokens=420, ticket=17)
    ... send the request ...
    gate.answered(reserved=420, used=395, latency_s=0.3, headers=response.headers)

Requests leave in the order of their tickets: a repeated one keeps its place. Tokens are reserved
when a request leaves and trued up when its usage is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from facttune_ray.llm.limiter import RENEW_S, SHARE, TERM_S, Lease, Limits, Seen

Renew = Callable[[Seen], Awaitable[Lease]]


@dataclass
class Queue:
    """Requests that wait. Gates that share one take from it as their limits let them."""

    heap: list[tuple[int, int, float, asyncio.Future[Gate]]] = field(default_factory=list)
    arrivals: int = 0

    def push(self, ticket: int, tokens: float) -> asyncio.Future[Gate]:
        taken: asyncio.Future[Gate] = asyncio.get_running_loop().create_future()
        self.arrivals += 1
        heapq.heappush(self.heap, (ticket, self.arrivals, tokens, taken))
        return taken


class Gate:
    """Permits of one worker at one endpoint. Lives on one event loop."""

    def __init__(self, renew: Renew, most: int, worker: str, queue: Queue | None = None) -> None:
        self._renew, self._most, self._worker = renew, most, worker
        self._queue = queue or Queue()
        self.lease = Lease(0.0, 0.0, 0, 0.0)
        self.in_flight = 0
        self._ends_s = self._paused_s = -math.inf
        self._requests, self._tokens = 0.0, 0.0  # permits at hand; tokens may be owed
        self._mean_tokens = 0.0  # of a request
        self._filled_s = 0.0
        self._leasing: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._answered, self._latency_s, self._refused = 0, 0.0, 0
        self._exhausted, self._retry_after_s = False, -1.0
        self._limits, self._looked_s = Limits(), -math.inf
        self._shut: Exception | None = None
        self._down = 0  # times in a row that nothing listened there

    @property
    def ready(self) -> bool:
        """Whether a lease has been given."""
        return self.lease.in_flight > 0

    @property
    def waiting(self) -> int:
        return len(self._queue.heap)

    async def acquire(self, tokens: float, ticket: int) -> None:
        """Return when one request of about this many tokens may be sent."""
        await permit([self], tokens, ticket)

    def open_now(self, tokens: float) -> bool:
        """Take a permit if there is one and nobody waits."""
        if self._shut is not None:
            raise self._shut
        self._mean_tokens += 0.05 * (tokens - self._mean_tokens)
        if self._leasing is None or self._leasing.done():
            self._leasing = asyncio.create_task(self._keep_lease())
        now = time.monotonic()
        if self._queue.heap or self._delay_s(tokens, now) > 0:
            if now >= self._ends_s or self.lease.requests_per_s <= 0:
                self._hurry.set()  # given back in a lull: ask again at once
            return False
        self._take(tokens)
        return True

    def give_back(self) -> None:
        """A permit that was not used after all."""
        self.in_flight -= 1
        self.send()

    def shut(self, why: Exception) -> None:
        """Let nothing go any more: those who wait get this error."""
        self._shut = why
        for _, _, _, taken in self._queue.heap:
            if not taken.done():
                taken.set_exception(why)
        self._queue.heap.clear()

    async def pause(self) -> None:
        """Give the lease back: this loop may now stand still."""
        if self._leasing is not None and not self._leasing.done():
            self._leasing.cancel()
            if self.in_flight == 0 and not self.waiting:
                await self._ask()
        self._leasing = None

    def answered(
        self, reserved: float, used: int, latency_s: float, headers: Mapping[str, str]
    ) -> None:
        """A request came back; `used`: its tokens as the server counts them."""
        self._answered += 1
        self._down = 0
        self._latency_s += latency_s
        self._tokens += reserved - used
        self._look(headers)
        self._done()

    def refused(
        self,
        reserved: float,
        headers: Mapping[str, str],
        retry_s: float | None,
        told: bool = True,
    ) -> None:
        """A 429: tell the cluster now. Refused tokens are not used."""
        self._tokens += reserved
        if not told:
            self._done()
            return
        self._looked_s = -math.inf
        self._look(headers)
        left = headers.get("x-ratelimit-remaining-requests"), _tokens_left(headers)
        self._exhausted |= not (left[0] and left[0] != "0" and left[1] > reserved)
        if retry_s is not None:
            self._retry_after_s = max(self._retry_after_s, retry_s)
        # this worker stops at once; the others hear of it when they renew
        self._paused_s = max(self._paused_s, time.monotonic() + min(retry_s or RENEW_S, 60.0))
        self._refused += 1
        self._hurry.set()
        self._done()

    def failed(self, unreachable: bool = False) -> None:
        """No answer: its tokens may have been used, and stay reserved. An endpoint where nothing
        listens is left alone for a while, so that another one gets the requests."""
        now = time.monotonic()
        if unreachable and now >= self._paused_s:
            self._down += 1
            self._paused_s = now + min(10.0, 0.25 * 2**self._down)
        self._done()

    def _done(self) -> None:
        self.in_flight -= 1
        self.send()

    def _look(self, headers: Mapping[str, str]) -> None:
        now = time.monotonic()
        if now - self._looked_s > RENEW_S:
            self._looked_s, self._limits = now, limits_in(headers)
            self._heed(self._limits)

    def _heed(self, limits: Limits) -> None:
        """A lease without a rate ends when a limit is heard of: its first answer tells it."""
        lease, requests, tokens = self.lease, limits.requests_per_minute, limits.tokens_per_minute
        if requests is not None and math.isinf(lease.requests_per_s):
            self.lease = replace(lease, requests_per_s=SHARE * requests / 60)
            self._requests = 0.0
        if tokens is not None and math.isinf(lease.tokens_per_s):
            self.lease = replace(self.lease, tokens_per_s=SHARE * tokens / 60)
        if self.lease is not lease:
            self._hurry.set()

    # -- permits ---------------------------------------------------------------------------

    def _delay_s(self, tokens: float, now: float) -> float:
        """Seconds until a request may leave; infinite when only an event can tell."""
        lease = self.lease
        if now >= self._ends_s or self.in_flight >= lease.in_flight:
            return math.inf
        if lease.requests_per_s <= 0 or lease.tokens_per_s <= 0:
            return math.inf
        delay = max(0.0, self._paused_s - now)
        gone, self._filled_s = now - self._filled_s, now
        if not math.isinf(lease.requests_per_s):
            most = max(1.0, lease.requests_per_s * lease.burst_s)
            self._requests = min(most, self._requests + gone * lease.requests_per_s)
            delay = max(delay, (1 - self._requests) / lease.requests_per_s)
        if not math.isinf(lease.tokens_per_s):
            most = max(tokens, lease.tokens_per_s * lease.burst_s)
            self._tokens = min(most, self._tokens + gone * lease.tokens_per_s)
            delay = max(delay, (tokens - self._tokens) / lease.tokens_per_s)
        return delay

    def _take(self, tokens: float) -> None:
        self.in_flight += 1
        if not math.isinf(self.lease.requests_per_s):
            self._requests -= 1
        self._tokens = 0.0 if math.isinf(self.lease.tokens_per_s) else self._tokens - tokens

    def send(self) -> None:
        """Let go what may go, and come back when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, heap = time.monotonic(), self._queue.heap
        while heap:
            _, _, tokens, taken = heap[0]
            if taken.done():  # its task was cancelled
                heapq.heappop(heap)
                continue
            delay = self._delay_s(tokens, now)
            if delay > 1e-9:
                if not math.isinf(delay):
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(max(delay, 0.001), self.send)
                return
            heapq.heappop(heap)
            self._take(tokens)
            taken.set_result(self)

    # -- lease -----------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew while there is work; give the lease back when there is none."""
        try:
            await self._renew_while_busy()
        except Exception as e:  # a bug: those who wait must not wait for ever
            self.shut(e)

    async def _renew_while_busy(self) -> None:
        idle = 0
        while idle < 4:
            self._hurry.clear()
            idle = 0 if self.waiting or self.in_flight else idle + 1
            renew_s = await self._ask() if idle in (0, 1) else RENEW_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), renew_s)

    async def _ask(self) -> float:
        asked = time.monotonic()
        report = Seen(
            worker=self._worker,
            waiting=self.waiting,
            in_flight=self.in_flight,
            tokens=(self.waiting + self.in_flight) * self._mean_tokens,
            most=self._most,
            leased_s=self._ends_s - asked if self.lease.requests_per_s > 0 else 0.0,
            answered=self._answered,
            latency_s=self._latency_s / max(1, self._answered),
            refused=self._refused,
            exhausted=self._exhausted,
            retry_after_s=None if self._retry_after_s < 0 else self._retry_after_s,
            limits=self._limits,
        )
        try:
            lease = await self._renew(report)
        except LimiterLost:
            return RENEW_S  # the lease runs out; its successor is asked next time
        self._answered -= report.answered
        self._latency_s -= report.latency_s * report.answered
        self._refused -= report.refused
        if not self._refused:
            self._exhausted, self._retry_after_s = False, -1.0
        self._paused_s = max(self._paused_s, asked + lease.pause_s)
        now = time.monotonic()
        if now < self._ends_s:
            self._delay_s(0.0, now)  # what has passed was at the old rate
        else:
            self._filled_s = now  # without a lease nothing gathers
        # counted from before the question, so that it ends here before it ends there
        self._ends_s = asked + lease.term_s
        self.lease = lease
        self.send()
        return lease.renew_s


async def permit(gates: Sequence[Gate], tokens: float, ticket: int) -> Gate:
    """A permit of the gate that has one first. Several gates must share one queue."""
    for gate in sorted(gates, key=lambda g: g.in_flight / max(1, g.lease.in_flight)):
        if gate.open_now(tokens):
            return gate
    taken = gates[0]._queue.push(ticket, tokens)
    for gate in gates:
        gate.send()
    try:
        return await taken
    except asyncio.CancelledError:
        if taken.done() and not taken.cancelled() and taken.exception() is None:
            taken.result().give_back()
        raise


class LimiterLost(Exception):
    """The limiter did not answer: it is being restarted."""


LONGEST_S, DAY_S = 65.0, 86400.0  # `reset` of a limit a minute; of any
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float:
    """Seconds in `7m12s`, `120ms`, `1.5s`; 0 when there is no such thing in it."""
    return sum(float(n) * _UNITS[u] for n, u in re.findall(r"([\d.]+)(ms|s|m|h|d)", text))


def limits_in(headers: Mapping[str, str]) -> Limits:
    """The limits a minute that `x-ratelimit-*` headers tell; None where they do not."""
    return Limits(_limit_of(headers, "requests"), _limit_of(headers, "tokens"))


def _limit_of(headers: Mapping[str, str], kind: str) -> float | None:
    try:
        limit = float(headers[f"x-ratelimit-limit-{kind}"])
        left = float(headers.get(f"x-ratelimit-remaining-{kind}", limit))
        reset_s = duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
    except (KeyError, ValueError):
        return None
    if limit <= 0:
        return None
    # Some limits are a day's; one of a minute is whole again within it. `reset` is when what is
    # missing will be back (a bucket), or when all of it will (a window).
    if left >= limit or reset_s <= LONGEST_S:
        return limit
    return limit * 60 / min(DAY_S, reset_s * limit / (limit - left))


def _tokens_left(headers: Mapping[str, str]) -> float:
    try:
        return float(headers["x-ratelimit-remaining-tokens"])
    except (KeyError, ValueError):
        return 0.0


def local_renew(limits: Limits) -> Renew:
    """A limiter of this process alone, for tests and benchmarks."""
    from facttune_ray.llm.limiter import Limiter

    limiter = Limiter(limits)

    async def renew(report: Seen) -> Lease:
        return limiter.renew(report, time.monotonic())

    return renew


assert TERM_S > 2 * RENEW_S
