"""A worker's side of the run's budget: a request waits here until the meter has funds for it.

    funds = Funds(cfg.llm, usage, report, "a", "facts", busy=lambda: True, end=client.stop)
    await funds.take(0.003)
    ... send the request, count what it cost in `usage` ...
    funds.done(0.003)

Reports what was used to the run's meter twice a second while there is work.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached, Stopped, UserError
from facttune_ray.llm.cost import Ask, MeterLost, Report, Usage

REPORT_S = 0.5  # between two reports to the run's meter
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
    ) -> None:
        self.cfg, self.usage, self.worker, self.stage = cfg, usage, worker, stage
        self.busy, self.end = busy, end
        self._report, self._reported = report, Usage()
        self._reporting: asyncio.Task[None] | None = None
        self._allowed_usd = float("inf") if cfg.budget_usd is None or report is None else 0.0
        self._in_flight_usd = 0.0
        self._unfunded: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._stopped: Exception | None = None  # nothing more is sent
        self._lost_s: float | None = None  # since when the meter has not answered

    async def take(self, usd: float) -> None:
        """Return when the budget has this much left for us; BudgetReached when it never will."""
        if self._report is not None and (self._reporting is None or self._reporting.done()):
            self._reporting = asyncio.create_task(self._keep_reporting())
        if self._stopped is not None:
            raise self._stopped
        if self._unfunded or self._allowed_usd < usd:
            funded = asyncio.get_running_loop().create_future()
            self._unfunded.append((usd, funded))
            await funded
        else:
            self._spend(usd)

    def done(self, usd: float) -> None:
        """The request for which this was taken has ended: its cost is in `usage`."""
        self._in_flight_usd -= usd

    def stop(self, why: Exception) -> None:
        """Let nothing be sent any more: those who wait get this error."""
        self._stopped = self._stopped or why
        while self._unfunded:
            _, funded = self._unfunded.popleft()
            if not funded.done():
                funded.set_exception(self._stopped)

    async def pause(self) -> None:
        """Report all: this loop may now stand still."""
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        await self._tell()

    def _spend(self, usd: float) -> None:
        self._allowed_usd -= usd
        self._in_flight_usd += usd

    async def _keep_reporting(self) -> None:
        idle = 0
        try:
            while idle < 4:
                idle = 0 if self.busy() else idle + 1
                await self._tell()
                await asyncio.sleep(REPORT_S if self._allowed_usd else 0.1)
        except Exception as e:  # a bug: those who wait for funds must not wait for ever
            self.stop(e)

    async def _tell(self) -> None:
        """Report to the run's meter, and fund requests with what it allows."""
        if self._report is None:
            return
        used = self.usage - self._reported
        wanted = [usd for usd, _ in itertools.islice(self._unfunded, 4 * self.cfg.concurrency)]
        ask = Ask(
            worker=self.worker,
            stage=self.stage,
            used=used,
            before=self._reported,
            in_flight_usd=self._in_flight_usd,
            wants_usd=sum(wanted),
            one_usd=wanted[0] if wanted else 0.0,
        )
        try:
            allowance = await self._report(ask)
        except MeterLost as e:
            now = time.monotonic()
            self._lost_s = self._lost_s or now
            if self._unfunded and now - self._lost_s > LOST_S:
                self.stop(
                    UserError(
                        f"llm.budget_usd: what counts it has not answered for {LOST_S / 60:.0f} "
                        f"minutes ({e}): run the same command again: what is paid is kept"
                    )
                )
            return
        self._lost_s = None
        self._reported += used
        if allowance.stopped:
            self.end(Stopped("another table has failed"))
            return
        if self.cfg.budget_usd is None:
            return
        if allowance.reached:
            self.stop(BudgetReached(f"llm.budget_usd={self.cfg.budget_usd:g} is reached"))
            return
        self._allowed_usd = allowance.usd
        while self._unfunded and self._unfunded[0][0] <= self._allowed_usd:
            usd, funded = self._unfunded.popleft()
            if not funded.done():
                self._spend(usd)
                funded.set_result(None)
