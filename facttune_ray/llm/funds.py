"""A worker's side of the run's budget: a request waits here until the meter has funds for it.

    funds = Funds(cfg.llm, usage, report, "a", "facts", busy=lambda: True, end=client.stop)
    usd = await funds.take(estimate)
    ... send the request, count what it cost in `usage` ...
    funds.done(usd)

Reports what was used to the run's meter twice a second while there is work. With a budget it holds
nothing between two reports: what the meter allows goes to those who wait, at once, and the rest is
given back. So what this worker may still pay is what it has in flight, whatever answer gets lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached, Stopped, UserError
from facttune_ray.llm.cost import Allowance, Ask, MeterLost, Report, Usage, Waits

REPORT_S = 0.5  # between two reports to the run's meter
FUND_S = 0.1  # the same at least, where requests wait for the answer
LOST_S = 300.0  # a meter that was silent for so long does not come back by itself


class Funds:
    """Of one client. `report` None: without limit, and nothing is reported."""

    def __init__(
        self,
        cfg: LLMConfig,
        usage: Usage,
        report: Report | None,
        worker: str,
        stage: str,
        busy: Callable[[], bool],
        end: Callable[[Exception], None],  # called when the run is stopped
        waits: Callable[[], Waits | None] = lambda: None,  # what funded requests wait for
    ) -> None:
        self.cfg, self.usage, self.worker, self.stage = cfg, usage, worker, stage
        self.calls = 0  # answered requests of this stage, all workers together, when last heard
        self._busy, self._end, self._waits = busy, end, waits
        self._report, self._serial = report, 0
        self._reporting: asyncio.Task[None] | None = None
        self._told = Usage(), False  # usage, and whether busy, when the meter last answered
        self._in_flight_usd = 0.0
        # the estimates of those who wait for funds, since when, and what they await
        self._unfunded: deque[tuple[Callable[[], float], float, asyncio.Future[float]]] = deque()
        self._wanted = asyncio.Event()  # somebody has come for funds
        self._stopped: Exception | None = None  # nothing more is sent
        self._lost_s: float | None = None  # since when the meter has not answered

    async def take(self, estimate: Callable[[], float]) -> float:
        """Return when the budget has as many dollars left for us as the estimate says by then, and
        how many these are; BudgetReached when it never will."""
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
        self._wanted.set()
        try:
            return await funded
        except asyncio.CancelledError:
            if funded.done() and not funded.cancelled() and funded.exception() is None:
                self.done(funded.result())  # cancelled in the same step: nobody else gives it back
            raise

    def done(self, usd: float) -> None:
        """The request for which this was taken has ended. Its cost must be in `usage` by then, or
        come there before anything else runs: a report between would count it nowhere."""
        self._in_flight_usd -= usd

    def stop(self, why: Exception) -> None:
        """Let nothing be sent any more: those who wait get this error."""
        self._stopped = self._stopped or why
        while self._unfunded:
            _, _, funded = self._unfunded.popleft()
            if not funded.done():
                funded.set_exception(self._stopped)

    async def pause(self) -> None:
        """Report all: this loop may now stand still."""
        if self._reporting is not None and not self._unfunded:
            self._reporting.cancel()
            self._reporting = None
        await self._tell()

    async def _keep_reporting(self) -> None:
        """Ends only when the meter knows all, and nobody comes in between: from the check to the
        end nothing else runs, and who comes then finds the task done and starts another."""
        try:
            while self._unfunded or self._busy() or self._told != (self.usage, False):
                self._wanted.clear()
                await self._tell()
                await asyncio.sleep(FUND_S)
                if not self._unfunded:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wanted.wait(), REPORT_S - FUND_S)
        except Exception as e:  # a bug: those who wait for funds must not wait for ever
            self.stop(e)

    async def _tell(self) -> None:
        """Report to the run's meter, and fund requests with what it allows."""
        if self._report is None:
            return
        now_s = asyncio.get_running_loop().time()
        while self._unfunded and self._unfunded[0][2].done():  # their tasks were cancelled
            self._unfunded.popleft()
        first = itertools.islice(self._unfunded, 4 * self.cfg.concurrency)
        wanted = [estimate() for estimate, _, _ in first]
        self._serial += 1
        ask = Ask(
            worker=self.worker,
            stage=self.stage,
            serial=self._serial,
            used=replace(self.usage),
            busy=self._busy(),
            in_flight_usd=self._in_flight_usd,
            wants_usd=sum(wanted),
            one_usd=wanted[0] if wanted else 0.0,
            waits=self._longest_wait(now_s),
        )
        try:
            allowance = await self._report(ask)
        except MeterLost as e:
            self._lost(e, now_s)
            return
        self._lost_s = None
        self._told, self.calls = (ask.used, ask.busy), allowance.calls
        if allowance.stopped:
            self._end(Stopped("another table has failed"))
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

    def _longest_wait(self, now_s: float) -> Waits | None:
        """Told to the meter, so that the run says what it waits for."""
        waits = self._waits()
        if self._unfunded:
            since_s_ago = now_s - self._unfunded[0][1]
            if waits is None or since_s_ago > waits.since_s_ago:
                what = "the budget" if self._lost_s is None else "the budget's meter"
                return Waits(what, since_s_ago, len(self._unfunded))
        return waits

    def _lost(self, why: MeterLost, asked_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self._lost_s = asked_s if self._lost_s is None else self._lost_s
        if self._unfunded and now_s - self._lost_s > LOST_S:
            self.stop(
                UserError(
                    f"llm.budget_usd: what counts it has not answered for {LOST_S / 60:.0f} "
                    f"minutes ({why}): run the same command again: what is paid is kept"
                )
            )
