"""A worker's side of the budget: requests are funded whatever happens to the reports."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached
from facttune_ray.llm.cost import Allowance, Meter, MeterReport, Usage, Wait
from facttune_ray.llm.funds import REPORT_S, Funds
from facttune_ray.llm.permits import ActorLost


def funds(report, usage=None, budget_usd=1.0, running=(1,), gates=(), worker="a") -> Funds:
    cfg, usage = LLMConfig(budget_usd=budget_usd), usage or Usage()
    return Funds(cfg, usage, report, worker, "facts", running, gates, lambda _: None)


@pytest.mark.parametrize("after_s", [x * REPORT_S / 4 for x in range(1, 11)])
def test_a_request_that_comes_while_the_reports_end_is_funded(after_s):
    meter = Meter(budget_usd=1.0)
    running = [True]

    async def report(ask: MeterReport) -> Allowance:
        return meter.report(ask)

    async def come_again() -> None:
        one = funds(report, running=running)
        await one.take(lambda: 0.1)
        one.done(0.1)
        running.clear()  # nothing runs: the reports end some time from now
        await asyncio.sleep(after_s)
        await asyncio.wait_for(one.take(lambda: 0.1), 5.0)
        one.done(0.1)
        await one.pause()
        assert meter.workers["a"].last.in_flight_usd == pytest.approx(0)

    asyncio.run(come_again())


def test_a_request_cancelled_in_the_step_that_funds_it_gives_the_funds_back():
    async def cancelled() -> float:
        one: Funds
        taking: asyncio.Task[None]

        async def report(ask: MeterReport) -> Allowance:
            asyncio.get_running_loop().call_soon(taking.cancel)
            return Allowance(ask.wants_usd)

        one = funds(report)
        taking = asyncio.create_task(one.take(lambda: 0.1))
        with pytest.raises(asyncio.CancelledError):
            await taking
        found = one._in_flight_usd
        await one.pause()
        return found

    assert asyncio.run(cancelled()) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_where_reports_and_answers_are_lost_and_late(seed):
    """The meter hears a report before or after its worker has given up on it, twice, or never."""
    chance, meter = random.Random(seed), Meter(budget_usd=1.0)
    late: list[MeterReport] = []
    most = [0.0]

    async def report(ask: MeterReport) -> Allowance:
        if late and chance.random() < 0.3:
            meter.report(late.pop(chance.randrange(len(late))))
        kind = chance.choice(("fine", "fine", "fine", "lost", "late", "no answer", "twice"))
        await asyncio.sleep(chance.uniform(0, 0.003))
        if kind == "late":
            late.append(ask)
        if kind in ("lost", "late"):
            raise ActorLost("lost")
        found = meter.report(ask)
        if kind == "twice":
            found = meter.report(ask)
        if kind == "no answer":
            raise ActorLost("no answer")
        return found

    async def worker(name: str, sent: list[float]) -> None:
        usage = Usage()
        one = funds(report, usage, worker=name)

        async def request() -> None:
            usd = chance.uniform(0.005, 0.02)
            await one.take(lambda: usd)
            sent.append(usd)
            most[0] = max(most[0], sum(sent))
            await asyncio.sleep(chance.uniform(0, 0.01))
            usage.calls += 1
            usage.cost_usd += usd
            one.done(usd)

        found = await asyncio.gather(*(request() for _ in range(120)), return_exceptions=True)
        assert {type(f) for f in found} <= {type(None), BudgetReached}
        await one.pause()

    async def run() -> None:
        sent: list[float] = []
        await asyncio.gather(*(worker(n, sent) for n in ("a", "b", "c")))
        assert 0.9 < sum(sent) <= 1.0 + 1e-9 and most[0] <= 1.0 + 1e-9

    with pytest.MonkeyPatch.context() as m:
        m.setattr("facttune_ray.llm.funds.FUND_S", 0.001)
        asyncio.run(run())


def test_the_longest_wait_is_reported_to_the_meter():
    asked: list[MeterReport] = []

    async def report(ask: MeterReport) -> Allowance:
        asked.append(ask)
        return Allowance()

    async def wait(*gates) -> Wait | None:
        one = funds(report, gates=gates)
        taking = asyncio.create_task(one.take(lambda: 0.1))
        await asyncio.sleep(0.25)
        one.stop(BudgetReached("over"))
        with pytest.raises(BudgetReached):
            await taking
        found = asked[-1].wait
        await one.pause()
        return found

    of_the_budget = asyncio.run(wait())
    assert of_the_budget.what == "the budget" and of_the_budget.requests == 1
    gates = [
        SimpleNamespace(waits=lambda now_s, ago_s=ago_s: ("permits", now_s - ago_s), waiting=9)
        for ago_s in (60.0, 42.0)  # the queue that they share moved 42 s ago
    ]
    assert asyncio.run(wait(*gates)) == Wait("permits", pytest.approx(42.0), 9)


def test_reports_end_when_the_meter_knows_all_usage():
    async def report_all() -> list[MeterReport]:
        asked: list[MeterReport] = []
        running, usage = [True], Usage()

        async def report(ask: MeterReport) -> Allowance:
            asked.append(ask)
            if len(asked) in (2, 3):
                raise ActorLost("restarts")
            return Allowance(calls=7)

        one = funds(report, usage, None, running)
        await one.take(lambda: 0.1)
        await asyncio.sleep(0.01)
        usage.calls = 1
        running.clear()
        one.done(0.1)
        await asyncio.wait_for(one._reporting, 10)
        assert one._calls == 7
        return asked

    last = asyncio.run(report_all())[-1]
    assert (last.serial, last.used.calls, last.busy, last.in_flight_usd) == (4, 1, False, 0.0)
