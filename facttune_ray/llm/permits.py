"""A worker's side of the limiter: a request waits here until it has a permit.

    gate = Gate(renew, most=128, worker="a")
    await gate.acquire(tokens=420, ticket=17)
    ... send the request ...
    gate.answered(reserved=420, used=395, latency_s=0.3, headers=response.headers)

Requests leave in the order of their tickets, so a repeated request keeps its place. A permit is for
one request of about mean size; tokens used beyond it are reported to the limiter. The only clock
here is the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from facttune_ray.llm.headers import count_in, limits_in
from facttune_ray.llm.limiter import HOLD_S, RENEW_S, Lease, Limiter, LimiterReport, Limits

PAUSE_S = 1.0  # a worker that has no work waits this long for the limiter to know it
Renew = Callable[[LimiterReport], Awaitable[Lease]]
Outdated = Callable[[], bool]  # whether a waiting request must be prepared anew before it leaves


class ActorLost(Exception):
    """The limiter, or the run's meter, did not answer: it is being restarted."""


@dataclass
class Queue:
    """Waiting requests. Gates may share a queue: each takes requests from it at its own rate."""

    # (ticket, arrival, tokens, future with the gate that admits the request, outdated)
    heap: list[tuple[int, int, float, asyncio.Future[Gate | None], Outdated]] = field(
        default_factory=list
    )
    arrivals: int = 0
    tokens: float = 0.0  # mean tokens of a request
    moved_s: float = 0.0  # when a request last left, or came to the empty queue

    def push(self, ticket: int, tokens: float, outdated: Outdated) -> asyncio.Future[Gate | None]:
        loop = asyncio.get_running_loop()
        admitted: asyncio.Future[Gate | None] = loop.create_future()
        if not self.heap:
            self.moved_s = loop.time()
        self.tokens += (0.05 if self.arrivals else 1.0) * (tokens - self.tokens)
        self.arrivals += 1
        heapq.heappush(self.heap, (ticket, self.arrivals, tokens, admitted, outdated))
        return admitted

    def drop(self, admitted: asyncio.Future[Gate | None]) -> None:
        """Remove a request that was cancelled."""
        self.heap[:] = [entry for entry in self.heap if entry[3] is not admitted]
        heapq.heapify(self.heap)


class Gate:
    """The permits of one worker for one endpoint. A gate lives on one event loop.

    renew:  asks the limiter for permits
    most:   requests in flight that the worker can have
    """

    def __init__(self, renew: Renew, most: int, worker: str, queue: Queue | None = None) -> None:
        self._renew, self._most, self._worker = renew, most, worker
        self._queue = queue or Queue()
        self.lease = Lease(0.0, 0)  # the limiter's last answer; before it, nothing may be sent
        self._permits: deque[tuple[float, float]] = deque()  # (valid from on our clock, tokens)
        self.in_flight = 0
        self.alone_since_s = -math.inf  # no other worker has had requests since this time
        self._clock_s = math.inf  # upper bound of the limiter's clock minus ours
        self._trip_s: float | None = None
        self._asked_s = math.inf  # first report since the last answer
        self._paused_s = -math.inf  # send nothing until then
        self._asking: asyncio.Task[None] | None = None
        self._reported_busy = False  # the limiter may believe that this worker has work
        self._sated = True  # the last answer had all the permits that were asked for
        self._hurry = asyncio.Event()  # report now, not after RENEW_S
        self._timer: asyncio.TimerHandle | None = None
        # for the next report; see LimiterReport
        self._owed = 0.0
        self._answered, self._latency_s, self._refused = 0, 0.0, 0
        self._lost, self._lost_s = 0, 0.0
        self._exhausted, self._retry_after_s = False, -1.0
        self._limits, self._looked_s = Limits(), -math.inf
        self._shut: Exception | None = None
        self._down = 0  # attempts in a row for which no server listened

    @property
    def soon(self) -> float:
        """Requests that must wait here so that no permit lapses: those of the horizon, some for
        requests in flight, and some for rows on their way. Infinite without a limit."""
        return (1.5 + self.lease.horizon_s) * self.lease.requests_per_s

    @property
    def waiting(self) -> int:
        return len(self._queue.heap)

    @property
    def _busy(self) -> bool:
        return self.waiting > 0 or self.in_flight > 0

    @property
    def _free(self) -> bool:
        """Whether no limit is known, so no permit is needed."""
        return math.isinf(self.lease.requests_per_s)

    def waits(self, now: float) -> tuple[str, float] | None:
        """(what the next request waits for, since when on the loop's clock)."""
        if not self.waiting:
            return None
        if not self.lease.in_flight or (
            not self._permits and not self._free and self._asked_s < now - 1.0
        ):
            return "an answer of the limiter", min(self._asked_s, now)
        what = "permits"
        if now < self._paused_s and not self._down:
            what = "a pause the server asked for"
        elif now < self._paused_s or self.in_flight >= self.lease.in_flight:
            what = "the server"
        return what, self._queue.moved_s

    async def acquire(self, tokens: float, ticket: int) -> None:
        """Wait until one request of about this many tokens may be sent."""
        await permit([self], tokens, ticket)

    def shut(self, why: Exception) -> None:
        """Admit no more requests: every waiting request ends with this error."""
        self._shut = why
        for _, _, _, admitted, _ in self._queue.heap:
            if not admitted.done():
                admitted.set_exception(why)
        self._queue.heap.clear()

    async def pause(self) -> None:
        """Report that there is no work: the event loop may stand still now. Nothing changes if
        there is work, also if it comes meanwhile."""
        time_s = asyncio.get_running_loop().time
        until_s = time_s() + PAUSE_S
        while (asking := self._asking) is not None and not asking.done() and not self._busy:
            if time_s() > until_s:  # the limiter does not answer; it forgets this worker by itself
                self._asking = None
                asking.cancel()
            self._hurry.set()
            await asyncio.wait([asking], timeout=0.02)

    def answered(
        self, reserved: float, used: int, latency_s: float, headers: Mapping[str, str]
    ) -> None:
        """A request was answered. `used`: its tokens as billed."""
        self._answered += 1
        self._down = 0
        self._latency_s += latency_s
        self._owed += used - reserved
        self._look(headers)
        self.return_permit()

    def refused(
        self,
        reserved: float,
        headers: Mapping[str, str],
        retry_s: float | None,
        pauses: bool = True,
    ) -> None:
        """A request was refused; its tokens are not used. `pauses`: report a 429 to the limiter at
        once, so that the cluster pauses. Not so when the request itself may be at fault."""
        self._owed -= reserved
        self._looked_s = -math.inf
        self._look(headers)
        if pauses:
            requests, tokens = (count_in(headers, f"remaining-{k}") for k in ("requests", "tokens"))
            self._exhausted |= not ((requests or 0) > 0 and (tokens or 0) > reserved)
            if retry_s is not None:
                self._retry_after_s = max(self._retry_after_s, retry_s)
            # this worker pauses at once; the others learn of the 429 at their next report
            now = asyncio.get_running_loop().time()
            self._paused_s = max(self._paused_s, now + min(retry_s or RENEW_S, 60.0))
            self._refused += 1
            self._hurry.set()
        self.return_permit()

    def failed(self, unreachable: bool = False, lost_s: float | None = None) -> None:
        """A request got no answer; its tokens may be used and stay reserved. `unreachable`: no
        server listens there, so pause this gate and let other endpoints take the requests.
        `lost_s`: how long the request waited for its answer."""
        if lost_s is not None:
            self._lost, self._lost_s = self._lost + 1, max(self._lost_s, lost_s)
        now = asyncio.get_running_loop().time()
        if unreachable and now >= self._paused_s:
            self._down += 1
            self._paused_s = now + min(10.0, 0.25 * 2**self._down)
        self.return_permit()

    def unsent(self, reserved: float) -> None:
        """A request that had a permit was not sent; its tokens are not used."""
        self._owed -= reserved
        self.return_permit()

    def return_permit(self) -> None:
        """A request has ended."""
        self.in_flight -= 1
        self.send()

    def _look(self, headers: Mapping[str, str]) -> None:
        """Read the limits in headers, once per RENEW_S."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_s <= RENEW_S:
            return
        self._looked_s, limits = now, limits_in(headers)
        if limits == Limits():  # for example the reply of a gateway: keep the limits
            return
        self._limits = limits
        if self._free:  # the first reply with a limit: permits are needed from now on
            self.lease = replace(self.lease, requests_per_s=0.0)
            self._hurry.set()

    # -- permits ---------------------------------------------------------------------------

    def _delay_s(self, now: float) -> float:
        """Drop lapsed permits. Return seconds until a request may leave; infinite when that depends
        on an event."""
        while self._permits and self._permits[0][0] < now - HOLD_S:
            self._permits.popleft()
        if self.in_flight >= self.lease.in_flight or not (self._free or self._permits):
            return math.inf
        begins_s = now if self._free else self._permits[0][0]
        return max(0.0, begins_s - now, self._paused_s - now)

    def _take(self, tokens: float, now: float) -> None:
        self.in_flight += 1
        self._queue.moved_s = now
        self._owed += tokens - (0.0 if self._free else self._permits.popleft()[1])

    def send(self) -> None:
        """Admit the requests that may leave now, set a timer for the next one, and see to it that
        permits come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop, heap = asyncio.get_running_loop(), self._queue.heap
        now = loop.time()
        while heap:
            _, _, tokens, admitted, outdated = heap[0]
            if admitted.done():  # its task was cancelled
                heapq.heappop(heap)
                continue
            delay = self._delay_s(now)
            if delay > 1e-9:
                if not math.isinf(delay):
                    self._timer = loop.call_later(max(delay, 0.001), self.send)
                break
            heapq.heappop(heap)
            if outdated():
                admitted.set_result(None)
                continue
            self._take(tokens, now)
            admitted.set_result(self)
        self._keep_asking()

    # -- the limiter -----------------------------------------------------------------------

    def _keep_asking(self) -> None:
        """Run a task that reports while there is work. Every path that brings work ends here. The
        task ends only when there is no work and the limiter knows it, without an await between
        that check and its end."""
        if self._busy and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask_while_busy())
        elif self.waiting and self._sated and not self._free and not self._permits:
            self._hurry.set()  # the limiter would give more

    async def _ask_while_busy(self) -> None:
        try:
            while self._busy or self._reported_busy:
                self._hurry.clear()
                await self._ask()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), RENEW_S)
        except Exception as e:  # a bug: do not let requests wait without an end
            self.shut(e)

    async def _ask(self) -> None:
        """Report to the limiter once, and take its lease."""
        time_s = asyncio.get_running_loop().time
        asked = time_s()
        self._asked_s = min(self._asked_s, asked)
        self._reported_busy |= self._busy
        self._delay_s(asked)  # drops lapsed permits
        report = LimiterReport(
            worker=self._worker,
            waiting=self.waiting,
            in_flight=self.in_flight,
            tokens=self._queue.tokens,
            most=self._most,
            held=len(self._permits),
            epoch=self.lease.epoch,
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
            known=self.lease.known,
        )
        try:
            lease = await self._renew(report)
        except ActorLost:
            return  # the next report goes to its successor
        now, self._asked_s = time_s(), math.inf
        if not lease.alone:
            self.alone_since_s = now
        self._reported_busy = report.waiting + report.in_flight > 0
        self._answered -= report.answered
        self._latency_s -= report.latency_s * report.answered
        self._refused -= report.refused
        self._lost -= report.lost
        self._owed -= report.owed
        if self._limits is report.limits:  # report once: another worker may see a newer limit
            self._limits = Limits()
        if not self._refused:
            self._exhausted, self._retry_after_s = False, -1.0
        # The limiter's clock said `now_s` between `asked` and `now`. Assume the latest time of each
        # permit, so that later answers move all permits to earlier times and not onto each other.
        if lease.epoch != self.lease.epoch:
            self._clock_s = math.inf
        self._clock_s = min(max(self._clock_s, lease.now_s - now), lease.now_s - asked)
        # A long round trip is forgotten by 2% a report and by 1% a second, for reports are rare
        # where round trips are long. With 2% a second, permits came too late where trips vary.
        faded = 0.98 * 0.99 ** (now - asked)
        self._trip_s = max(now - asked, faded * (self._trip_s or 0.0))
        self._paused_s = max(self._paused_s, lease.now_s + lease.pause_s - self._clock_s)
        self._sated = report.held + len(lease.permits) >= report.waiting
        if not self._reported_busy:
            self._permits.clear()  # the limiter counts them as lost
            lease = replace(lease, epoch="")
        self.lease = lease
        new = [(at_s - self._clock_s, tokens) for at_s, tokens in lease.permits]
        self._permits = deque(sorted([*self._permits, *new]))
        self.send()


async def permit(
    gates: Sequence[Gate], tokens: float, ticket: int, outdated: Outdated = lambda: False
) -> Gate | None:
    """Wait for a permit and return its gate. Several gates must share one queue. Return None, and
    take no permit, if `outdated()` is true when the request could leave."""
    for gate in gates:
        if gate._shut is not None:
            raise gate._shut
    admitted = gates[0]._queue.push(ticket, tokens, outdated)
    for gate in sorted(gates, key=lambda g: g.in_flight / max(1, g.lease.in_flight)):
        gate.send()
    try:
        return await admitted
    except asyncio.CancelledError:
        gates[0]._queue.drop(admitted)
        if admitted.done() and not admitted.cancelled() and admitted.exception() is None:
            if (taken := admitted.result()) is not None:
                taken.unsent(tokens)
        raise


def local_renew(limits: Limits) -> Renew:
    """A limiter for this process alone, for tests and benchmarks."""
    limiter = Limiter(limits)

    async def renew(report: LimiterReport) -> Lease:
        return limiter.renew(report, asyncio.get_running_loop().time())

    return renew
