"""A worker's side of the limiter: requests wait here until a permit lets them go.

    gate = Gate(renew, most=128, worker="a")
    await gate.acquire(tokens=420, ticket=17)
    ... send the request ...
    gate.answered(reserved=420, used=395, latency_s=0.3, headers=response.headers)

Requests leave in the order of their tickets: a repeated one keeps its place. A permit is for one
request of about the mean size; tokens that were used beyond it are told to the limiter. There is no
clock here but the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from facttune_ray.llm.limiter import HOLD_S, RENEW_S, Lease, Limiter, Limits, Seen

Renew = Callable[[Seen], Awaitable[Lease]]


@dataclass
class Queue:
    """Requests that wait. Gates that share one take from it as their limits let them."""

    heap: list[tuple[int, int, float, asyncio.Future[Gate]]] = field(default_factory=list)
    arrivals: int = 0
    tokens: float = 0.0  # of a request, on average
    moved_s: float = 0.0  # when one last left, or came first

    def push(self, ticket: int, tokens: float) -> asyncio.Future[Gate]:
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[Gate] = loop.create_future()
        if not self.heap:
            self.moved_s = loop.time()
        self.tokens += (0.05 if self.arrivals else 1.0) * (tokens - self.tokens)
        self.arrivals += 1
        heapq.heappush(self.heap, (ticket, self.arrivals, tokens, taken))
        return taken

    def drop(self, taken: asyncio.Future[Gate]) -> None:
        """Forget a request that waits no more."""
        self.heap[:] = [entry for entry in self.heap if entry[3] is not taken]
        heapq.heapify(self.heap)


class Gate:
    """Permits of one worker at one endpoint. Lives on one event loop."""

    def __init__(self, renew: Renew, most: int, worker: str, queue: Queue | None = None) -> None:
        self._renew, self._most, self._worker = renew, most, worker
        self._queue = queue or Queue()
        self._lease = Lease(0.0, 0)
        self._permits: deque[tuple[float, float]] = deque()  # (from when by our clock, tokens)
        self.in_flight = 0
        self._clock_s = math.inf  # the limiter's clock minus ours, at most
        self._trip_s: float | None = None
        self._asked_s = math.inf  # the first question since the last answer
        self._paused_s = -math.inf
        self._owed = 0.0  # tokens used beyond those of the permits
        self._asking: asyncio.Task[None] | None = None
        self._told_busy = False  # the limiter may believe that we have work
        self._sated = True  # it gave all that we asked for
        self._hurry = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._answered, self._latency_s, self._refused = 0, 0.0, 0
        self._lost, self._lost_s = 0, 0.0
        self._exhausted, self._retry_after_s = False, -1.0
        self._limits, self._looked_s = Limits(), -math.inf
        self._shut: Exception | None = None
        self._down = 0  # times in a row that nothing listened there

    @property
    def ready(self) -> bool:
        """Whether the limiter has answered."""
        return self._lease.in_flight > 0

    @property
    def requests_per_s(self) -> float:
        """This worker's share of the rate; infinite where no limit is known, 0 before it is."""
        return self._lease.requests_per_s

    @property
    def in_flight_limit(self) -> int:
        return self._lease.in_flight

    @property
    def ahead_s(self) -> float:
        """Seconds of work that must be here for no permit to be missed: the horizon, and what is
        in flight or on its way from upstream."""
        return 1.5 + self._lease.horizon_s

    @property
    def waiting(self) -> int:
        return len(self._queue.heap)

    @property
    def _busy(self) -> bool:
        return self.waiting > 0 or self.in_flight > 0

    @property
    def _free(self) -> bool:
        """No limit is known: no permits are needed."""
        return math.isinf(self._lease.requests_per_s)

    def waits(self, now: float) -> tuple[str, float] | None:
        """What the next request waits for, and since when by the loop's clock."""
        if not self.waiting:
            return None
        if not self.ready or (not self._permits and not self._free and self._asked_s < now - 1.0):
            return "an answer of the limiter", min(self._asked_s, now)
        why = "permits"
        if now < self._paused_s and not self._down:
            why = "a pause the server asked for"
        elif now < self._paused_s or self.in_flight >= self._lease.in_flight:
            why = "the server"
        return why, self._queue.moved_s

    async def acquire(self, tokens: float, ticket: int) -> None:
        """Return when one request of about this many tokens may be sent."""
        await permit([self], tokens, ticket)

    def return_permit(self) -> None:
        """A permit that was not used after all."""
        self._done()

    def shut(self, why: Exception) -> None:
        """Let nothing go any more: those who wait get this error."""
        self._shut = why
        for _, _, _, taken in self._queue.heap:
            if not taken.done():
                taken.set_exception(why)
        self._queue.heap.clear()

    async def pause(self) -> None:
        """Tell the limiter that nothing is to come: this loop may now stand still."""
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            await asyncio.wait([self._asking])
            if not self._busy:
                await self._ask()
        self._asking = None

    def answered(
        self, reserved: float, used: int, latency_s: float, headers: Mapping[str, str]
    ) -> None:
        """A request came back; `used`: its tokens as the server counts them."""
        self._answered += 1
        self._down = 0
        self._latency_s += latency_s
        self._owed += used - reserved
        self._look(headers)
        self._done()

    def refused(
        self,
        reserved: float,
        headers: Mapping[str, str],
        retry_s: float | None,
        told: bool = True,
    ) -> None:
        """A 429. Refused tokens are not used. The cluster is told at once, unless it is not
        `told`, because the request itself may be at fault: then nobody pauses for it."""
        self._owed -= reserved
        self._looked_s = -math.inf
        self._look(headers)
        if told:
            requests, tokens = (_number(headers, f"remaining-{k}") for k in ("requests", "tokens"))
            self._exhausted |= not ((requests or 0) > 0 and (tokens or 0) > reserved)
            if retry_s is not None:
                self._retry_after_s = max(self._retry_after_s, retry_s)
            # this worker stops at once; the others hear of it when they ask again
            now = asyncio.get_running_loop().time()
            self._paused_s = max(self._paused_s, now + min(retry_s or RENEW_S, 60.0))
            self._refused += 1
            self._hurry.set()
        self._done()

    def failed(self, unreachable: bool = False, lost_s: float | None = None) -> None:
        """No answer: its tokens may have been used, and stay reserved. An endpoint where nothing
        listens is left alone for a while, so that another one gets the requests. `lost_s`: how
        long an answer was waited for that never came."""
        if lost_s is not None:
            self._lost, self._lost_s = self._lost + 1, max(self._lost_s, lost_s)
        now = asyncio.get_running_loop().time()
        if unreachable and now >= self._paused_s:
            self._down += 1
            self._paused_s = now + min(10.0, 0.25 * 2**self._down)
        self._done()

    def _done(self) -> None:
        self.in_flight -= 1
        self.send()

    def _look(self, headers: Mapping[str, str]) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._looked_s > RENEW_S:
            self._looked_s, told = now, limits_in(headers)
            if told != Limits():  # else it is a gateway's answer, and the limit is what it was
                self._limits = told
            if self._free and told != Limits():  # the first answer that tells a limit:
                self._lease = replace(self._lease, requests_per_s=0.0)  # permits are needed now
                self._hurry.set()

    # -- permits ---------------------------------------------------------------------------

    def _delay_s(self, now: float) -> float:
        """Seconds until a request may leave; infinite when only an event can tell."""
        while self._permits and self._permits[0][0] < now - HOLD_S:
            self._permits.popleft()
        if self.in_flight >= self._lease.in_flight or not (self._free or self._permits):
            return math.inf
        begins_s = now if self._free else self._permits[0][0]
        return max(0.0, begins_s - now, self._paused_s - now)

    def _take(self, tokens: float, now: float) -> None:
        self.in_flight += 1
        self._queue.moved_s = now
        self._owed += tokens - (0.0 if self._free else self._permits.popleft()[1])

    def send(self) -> None:
        """Let go what may go, come back when the next one may, and see that permits come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop, heap = asyncio.get_running_loop(), self._queue.heap
        now = loop.time()
        while heap:
            _, _, tokens, taken = heap[0]
            if taken.done():  # its task was cancelled
                heapq.heappop(heap)
                continue
            delay = self._delay_s(now)
            if delay > 1e-9:
                if not math.isinf(delay):
                    self._timer = loop.call_later(max(delay, 0.001), self.send)
                break
            heapq.heappop(heap)
            self._take(tokens, now)
            taken.set_result(self)
        self._keep_asking()

    # -- the limiter -----------------------------------------------------------------------

    def _keep_asking(self) -> None:
        """Every path that brings work ends here. While there is work a task asks: it ends only at
        a point where there is none and the limiter knows it, without a pause in between."""
        if self._busy and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask_while_busy())
        elif self.waiting and self._sated and not self._free and not self._permits:
            self._hurry.set()  # it would have given more

    async def _ask_while_busy(self) -> None:
        try:
            while self._busy or self._told_busy:
                self._hurry.clear()
                await self._ask()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), RENEW_S)
        except Exception as e:  # a bug: those who wait must not wait for ever
            self.shut(e)

    async def _ask(self) -> None:
        time_s = asyncio.get_running_loop().time
        asked = time_s()
        self._asked_s = min(self._asked_s, asked)
        self._told_busy |= self._busy
        self._delay_s(asked)  # what has lapsed is not held
        report = Seen(
            worker=self._worker,
            waiting=self.waiting,
            in_flight=self.in_flight,
            tokens=self._queue.tokens,
            most=self._most,
            held=len(self._permits),
            epoch=self._lease.epoch,
            trip_s=self._trip_s,
            owed=self._owed,
            answered=self._answered,
            latency_s=self._latency_s / max(1, self._answered),
            lost=self._lost,
            lost_s=self._lost_s,
            refused=self._refused,
            exhausted=self._exhausted,
            retry_after_s=None if self._retry_after_s < 0 else self._retry_after_s,
            limits=self._limits,
            known=self._lease.seen,
        )
        try:
            lease = await self._renew(report)
        except LimiterLost:
            return  # it is asked again, or its successor is
        now, self._asked_s = time_s(), math.inf
        self._told_busy = report.waiting + report.in_flight > 0
        self._answered -= report.answered
        self._latency_s -= report.latency_s * report.answered
        self._refused -= report.refused
        self._lost -= report.lost
        self._owed -= report.owed
        if self._limits is report.limits:  # told once: another worker may see a new one
            self._limits = Limits()
        if not self._refused:
            self._exhausted, self._retry_after_s = False, -1.0
        # its clock said `now_s` between the question and the answer: of what that leaves open the
        # latest time of each permit, so that what is learned later moves permits back, not together
        if lease.epoch != self._lease.epoch:
            self._clock_s = math.inf
        self._clock_s = min(max(self._clock_s, lease.now_s - now), lease.now_s - asked)
        self._trip_s = max(now - asked, 0.98 * (self._trip_s or 0.0))
        self._paused_s = max(self._paused_s, lease.now_s + lease.pause_s - self._clock_s)
        self._sated = report.held + len(lease.permits) >= report.waiting
        if not self._told_busy:
            self._permits.clear()  # the limiter takes them for lost
            lease = replace(lease, epoch="")
        self._lease = lease
        new = [(at_s - self._clock_s, tokens) for at_s, tokens in lease.permits]
        self._permits = deque(sorted([*self._permits, *new]))
        self.send()


async def permit(gates: Sequence[Gate], tokens: float, ticket: int) -> Gate:
    """A permit of the gate that has one first. Several gates must share one queue."""
    for gate in gates:
        if gate._shut is not None:
            raise gate._shut
    taken = gates[0]._queue.push(ticket, tokens)
    for gate in sorted(gates, key=lambda g: g.in_flight / max(1, g.in_flight_limit)):
        gate.send()
    try:
        return await taken
    except asyncio.CancelledError:
        gates[0]._queue.drop(taken)
        if taken.done() and not taken.cancelled() and taken.exception() is None:
            taken.result().return_permit()
        raise


class LimiterLost(Exception):
    """The limiter did not answer: it is being restarted."""


LONGEST_S, DAY_S = 65.0, 86400.0  # `reset` of a limit a minute; of any
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float:
    """Seconds in `7m12s`, `120ms`, `1.5s`, `90`, or until a Unix time or an ISO date; 0 when
    there is no such thing in it."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if number < 1e9:
            return number
        return max(0.0, (number / 1000 if number > 1e11 else number) - time.time())
    with contextlib.suppress(ValueError):
        return max(0.0, datetime.fromisoformat(text).timestamp() - time.time())
    return sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+\.?\d*)(ms|s|m|h|d)", text))


def limits_in(headers: Mapping[str, str]) -> Limits:
    """The limits a minute that `x-ratelimit-*` headers tell; None where they do not."""
    return Limits(_limit_of(headers, "requests"), _limit_of(headers, "tokens"))


def _number(headers: Mapping[str, str], name: str) -> float | None:
    """A count of `x-ratelimit-`; None when it is missing or makes no sense."""
    try:
        number = float(headers[f"x-ratelimit-{name}"])
    except (KeyError, ValueError):
        return None
    return number if 0 <= number < math.inf else None


def _limit_of(headers: Mapping[str, str], kind: str) -> float | None:
    limit, left = _number(headers, f"limit-{kind}"), _number(headers, f"remaining-{kind}")
    reset_s = duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
    if not limit:
        return None
    # Some limits are a day's; one of a minute is whole again within it. `reset` is when what is
    # missing will be back (a bucket), or when all of it will (a window).
    if left is None or left >= limit or reset_s <= LONGEST_S:
        return limit
    return limit * 60 / min(DAY_S, reset_s * limit / (limit - left))


def local_renew(limits: Limits) -> Renew:
    """A limiter of this process alone, for tests and benchmarks."""
    limiter = Limiter(limits)

    async def renew(report: Seen) -> Lease:
        return limiter.renew(report, asyncio.get_running_loop().time())

    return renew
