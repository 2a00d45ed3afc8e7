"""A worker's side of the run's budget: a request waits here until the meter has funds for it.

    funds = Funds(cfg.llm, usage, report, "a", "facts", running, gates, client.stop)
    usd = await funds.take(estimate)
    ... send the request, add its cost to `usage` ...
    funds.done(usd)

While there is work, the worker reports its usage to the run's meter twice a second. Where the run
has a budget, the worker holds no funds between two reports: an allowance goes at once to the
requests that wait, and the rest is given back. So a worker can spend only what its requests in
flight cost, whatever report or answer is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached, Stopped, UserError
from facttune_ray.llm.cost import Allowance, MeterReport, Reporter, Usage, Wait
from facttune_ray.llm.permits import ActorLost, Gate

REPORT_S = 0.5  # between two reports to the run's meter
FUND_S = 0.1  # between two reports while requests wait for funds
LOST_S = 300.0  # a meter that has been silent for this long does not come back by itself


class Funds:
    """The funds of one client. `report`: sends a report to the meter; None: no meter and no limit.
    `running`: completions that have not ended. `gates`: where funded requests wait. `on_stop`:
    called with the error when the meter stops the run."""

    def __init__(
        self,
        cfg: LLMConfig,
        usage: Usage,
        report: Reporter | None,
        worker: str,
        stage: str,
        running: Sized,
        gates: Sequence[Gate],
        on_stop: Callable[[Exception], None],
    ) -> None:
        self.cfg, self.usage, self.worker, self.stage = cfg, usage, worker, stage
        self._running, self._gates, self._on_stop = running, gates, on_stop
        self._calls = 0  # answered requests of this stage by all workers, at the last report
        self._report, self._serial = report, 0
        self._reporting: asyncio.Task[None] | None = None
        self._reported = Usage(), False  # (usage, busy) of the last report that was answered
        self._in_flight_usd = 0.0
        # requests that wait for funds: (estimate, since when, future with the dollars)
        self._unfunded: deque[tuple[Callable[[], float], float, asyncio.Future[float]]] = deque()
        self._arrival = asyncio.Event()  # a request has come that needs funds
        self._stopped: Exception | None = None
        self._lost_s: float | None = None  # since when the meter has not answered

    @property
    def stage_was_answered(self) -> bool:
        """Whether any request of this stage was answered: here, by another worker, or before."""
        return self._calls + self.usage.cached > 0

    async def take(self, estimate: Callable[[], float]) -> float:
        """Wait until the budget has room for `estimate()` dollars, and return that number. Raise
        BudgetReached when the budget will never have room."""
        if self._stopped is not None:
            raise self._stopped
        if self._report is not None and (self._reporting is None or self._reporting.done()):
            self._reporting = asyncio.create_task(self._keep_reporting())
        if self._report is None or self.cfg.budget_usd is None:
            self._in_flight_usd += (usd := estimate())
            return usd
        loop = asyncio.get_running_loop()
        funded = loop.create_future()
        self._unfunded.append((estimate, loop.time(), funded))
        self._arrival.set()
        try:
            return await funded
        except asyncio.CancelledError:
            if funded.done() and not funded.cancelled() and funded.exception() is None:
                self.done(funded.result())  # cancelled in the step that funded it: give it back
            raise

    def done(self, usd: float) -> None:
        """End the request for which `usd` was taken. Add its cost to `usage` before this call, or
        after it without an await: a report in between would count the request nowhere."""
        self._in_flight_usd -= usd

    def stop(self, why: Exception) -> None:
        """Fund nothing more: every request that waits for funds ends with this error."""
        self._stopped = self._stopped or why
        while self._unfunded:
            _, _, funded = self._unfunded.popleft()
            if not funded.done():
                funded.set_exception(self._stopped)

    async def pause(self) -> None:
        """Report the usage: the event loop may stand still now."""
        if self._reporting is not None and not self._unfunded and not self._running:
            self._reporting.cancel()
            self._reporting = None
        await self._send_report()

    async def _keep_reporting(self) -> None:
        """Report until the meter knows everything. There is no await between the last check and
        the end, so a request that comes later finds this task done and starts another."""
        try:
            while self._unfunded or self._running or self._reported != (self.usage, False):
                self._arrival.clear()
                await self._send_report()
                await asyncio.sleep(FUND_S)
                if not self._unfunded:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._arrival.wait(), REPORT_S - FUND_S)
        except Exception as e:  # a bug: do not let requests wait for funds without an end
            self.stop(e)

    async def _send_report(self) -> None:
        """Report to the run's meter, and fund requests with its allowance."""
        if self._report is None:
            return
        now_s = asyncio.get_running_loop().time()
        while self._unfunded and self._unfunded[0][2].done():  # its task was cancelled
            self._unfunded.popleft()
        first = itertools.islice(self._unfunded, 4 * self.cfg.concurrency)
        wanted_usd = [estimate() for estimate, _, _ in first]
        self._serial += 1
        report = MeterReport(
            worker=self.worker,
            stage=self.stage,
            serial=self._serial,
            used=replace(self.usage),
            busy=bool(self._running),
            in_flight_usd=self._in_flight_usd,
            wants_usd=sum(wanted_usd),
            next_usd=wanted_usd[0] if wanted_usd else 0.0,
            wait=self._longest_wait(now_s),
        )
        try:
            allowance = await self._report(report)
        except ActorLost as e:
            self._lost(e, now_s)
            return
        self._lost_s = None
        self._reported, self._calls = (report.used, report.busy), allowance.calls
        if allowance.stopped:
            self._on_stop(Stopped("another table has failed"))
        elif self.cfg.budget_usd is not None:
            self._fund(allowance)

    def _fund(self, allowance: Allowance) -> None:
        if allowance.reached:
            self.stop(BudgetReached(f"llm.budget_usd={self.cfg.budget_usd:g} is reached"))
            return
        left_usd = allowance.usd
        while self._unfunded and (usd := self._unfunded[0][0]()) <= left_usd:
            _, _, funded = self._unfunded.popleft()
            if not funded.done():
                left_usd -= usd
                self._in_flight_usd += usd
                funded.set_result(usd)

    def _longest_wait(self, now_s: float) -> Wait | None:
        """The wait that the run's progress line shows for this worker."""
        # gates share a queue: it has stood still since its last request left through any of them
        found = [w for gate in self._gates if (w := gate.waits(now_s)) is not None]
        waits = [Wait(what, now_s - since_s, self._gates[0].waiting) for what, since_s in found]
        longest = min(waits, key=lambda wait: wait.since_s_ago, default=None)
        if self._unfunded:
            since_s_ago = now_s - self._unfunded[0][1]
            if longest is None or since_s_ago > longest.since_s_ago:
                what = "the budget" if self._lost_s is None else "the budget's meter"
                return Wait(what, since_s_ago, len(self._unfunded))
        return longest

    def _lost(self, error: ActorLost, asked_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self._lost_s = asked_s if self._lost_s is None else self._lost_s
        if self._unfunded and now_s - self._lost_s > LOST_S:
            self.stop(
                UserError(
                    f"llm.budget_usd: the run's meter has not answered for {LOST_S / 60:.0f} "
                    f"minutes ({error}): run the same command again: paid completions are kept"
                )
            )
