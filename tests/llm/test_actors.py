"""The limiter and the meter as actors: found by name, shared, and replaced when they die."""

from __future__ import annotations

import asyncio
import time

import pytest

from facttune_ray.llm.cost import Ask, MeterLost, Usage
from facttune_ray.llm.limiter import Limits, Report
from facttune_ray.llm.permits import LimiterLost


def test_two_workers_share_one_limiter(ray_cluster):
    from facttune_ray.llm import actors

    limits = Limits(requests_per_minute=6000)
    first, second = (actors.renew_at("http://a", "m", "KEY", limits) for _ in range(2))

    async def both():
        alone = await first(Report("a", waiting=500, most=10))
        none_left = await second(Report("b", waiting=500, most=10))
        again = await first(Report("a", waiting=500, most=10))
        return alone, none_left, again, await second(Report("b", waiting=500, most=10))

    alone, none_left, again, half = asyncio.run(both())
    assert alone.requests_per_s == pytest.approx(99.0)
    assert none_left.requests_per_s == 0.0  # it is all out; the first one's next lease is half
    assert again.requests_per_s == half.requests_per_s == pytest.approx(49.5)


def test_a_killed_limiter_comes_back_quiet_and_then_gives_again(ray_cluster):
    import ray

    from facttune_ray.llm import actors

    limits = Limits(requests_per_minute=6000)
    renew = actors.renew_at("http://b", "m", "KEY", limits)
    report = Report("a", waiting=500, most=10, leased_s=0.9)

    async def lease(until) -> None:
        """Ask until a lease fits."""
        started = time.monotonic()
        while time.monotonic() - started < 60:
            try:
                if until(await renew(report)):
                    return
            except LimiterLost:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError("no such lease")

    asyncio.run(lease(lambda found: found.requests_per_s > 0))
    ray.kill(actors.limiter_of("http://b", "m", "KEY", limits), no_restart=False)
    asyncio.run(lease(lambda found: found.requests_per_s == 0 and found.pause_s > 0))
    asyncio.run(lease(lambda found: found.requests_per_s > 0))


def test_the_meter_counts_for_every_worker_and_a_lost_one_is_named(ray_cluster):
    import ray

    from facttune_ray.llm import actors

    meter = actors.start_meter("test-meter", budget_usd=1.0, spent_usd=0.25)
    report = actors.report_to("test-meter", "m")

    async def ask():
        return await report(Ask("a", "facts", Usage(calls=2, cost_usd=0.5), 0.0, 9.0, 0.1))

    assert asyncio.run(ask()).usd == pytest.approx(0.25)
    assert ray.get(meter.snapshot.remote())["spent_usd"] == 0.75
    with pytest.raises(MeterLost):
        asyncio.run(actors.report_to("no-such-meter", "m")(Ask("a", "facts", Usage())))
