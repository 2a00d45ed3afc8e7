"""The limiter and the meter as Ray actors: shared by name, and restarted when they die."""

from __future__ import annotations

import asyncio
import math
import time
import urllib.request

import pytest

from facttune_ray.errors import UserError
from facttune_ray.llm.cost import MeterReport, Usage
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import MAX_HORIZON_S, Lease, LimiterReport, Limits
from facttune_ray.llm.permits import ActorLost
from facttune_ray.llm.replies import Completion
from facttune_ray.storage.tables import Folder


def test_two_workers_share_one_limiter(ray_cluster):
    from facttune_ray.llm import actors

    limits = Limits(requests_per_minute=6000)
    first, second = (actors.renew_at("http://a", "m", "KEY", limits) for _ in range(2))

    async def both():
        alone = await first(LimiterReport("a", waiting=500, most=10))
        half = await second(LimiterReport("b", waiting=500, most=10))
        return alone, half, await first(LimiterReport("a", waiting=500, most=10, held=500))

    alone, half, again = asyncio.run(both())
    assert alone.requests_per_s == pytest.approx(99.0)
    assert again.requests_per_s == half.requests_per_s == pytest.approx(49.5)
    assert alone.epoch == half.epoch and alone.permits and not again.permits


def test_the_limits_of_an_ended_run_are_dropped(ray_cluster):
    from facttune_ray.llm import actors

    async def rate(limits: Limits) -> float:
        renew = actors.renew_at("http://c", "m", "KEY", limits)
        lease = await renew(LimiterReport("a", waiting=500, most=10))
        await renew(LimiterReport("a"))  # nothing waits
        return lease.requests_per_s

    assert asyncio.run(rate(Limits(6000))) == pytest.approx(99.0)
    assert math.isinf(asyncio.run(rate(Limits())))


def test_a_restarted_limiter_waits_until_its_predecessors_permits_have_lapsed(
    ray_cluster,
):
    import ray

    from facttune_ray.llm import actors

    limits = Limits(requests_per_minute=6000)
    renew = actors.renew_at("http://b", "m", "KEY", limits)
    report = LimiterReport("a", waiting=500, most=10)  # a new worker: others may hold permits

    async def lease(until) -> Lease:
        """Ask until a lease fits."""
        started = time.monotonic()
        while time.monotonic() - started < 60:
            try:
                if until(found := await renew(report)):
                    return found
            except (ActorLost, ray.exceptions.RayError):
                pass
            await asyncio.sleep(0.05)
        raise AssertionError("no such lease")

    old = asyncio.run(lease(lambda found: found.permits))
    ray.kill(actors.limiter_of("http://b", "m", "KEY", limits), no_restart=False)
    first = asyncio.run(lease(lambda found: found.epoch != old.epoch))
    assert not first.permits
    again = asyncio.run(lease(lambda found: found.permits))
    assert again.permits[0][0] >= first.now_s + MAX_HORIZON_S


def test_a_restarted_meter_reads_from_the_ledger_what_was_paid(tmp_path, ray_cluster):
    import ray

    from facttune_ray.llm import actors

    folder, serial = Folder.of(str(tmp_path)), [0]

    async def pay(usd: float, writer: str) -> None:
        ledger = Ledger(folder, flush_s=0.001, run="r")
        ledger.writer = writer
        paid = Completion("x", 1, 1, "m", 1, 0.1, cost_usd=usd)
        await ledger.put(str(usd).encode().ljust(32), paid)

    async def ask(usage: Usage):
        for _ in range(100):
            try:
                serial[0] += 1
                ask = MeterReport("a", "facts", serial[0], usage, wants_usd=9.0, next_usd=0.1)
                if (found := await report(ask)).usd:
                    return found
            except ActorLost:
                pass
            await asyncio.sleep(0.2)  # a restarted meter gives no funds at first
        raise AssertionError("no meter")

    def spent_usd() -> float:
        for _ in range(50):
            try:
                return ray.get(meter.snapshot.remote())["spent_usd"]
            except ray.exceptions.RayActorError:  # the handle still points to the dead actor
                time.sleep(0.2)
        raise AssertionError("no meter")

    asyncio.run(pay(0.25, "before"))
    meter = actors.start_meter("test-meter", 1.0, folder, "r")
    report = actors.report_to("test-meter", "m")
    assert asyncio.run(ask(Usage(calls=2, cost_usd=0.5))).usd == pytest.approx(0.25)
    assert spent_usd() == 0.75
    asyncio.run(pay(0.375, "a"))  # the ledger lacks the rest of its cost
    ray.kill(meter, no_restart=False)
    for _ in range(20):  # the dead actor may still answer
        assert asyncio.run(ask(Usage(calls=2, cost_usd=0.5))).usd == pytest.approx(0.25)
        if (found := spent_usd()) == 0.75:
            break
    assert found == 0.75


def test_a_meter_that_does_not_exist_raises_actor_lost(ray_cluster):
    from facttune_ray.llm import actors

    with pytest.raises(ActorLost):
        asyncio.run(actors.report_to("no-such-meter", "m")(MeterReport("a", "facts", 1, Usage())))


def test_a_meter_that_cannot_read_the_ledger_gives_one_line(tmp_path, ray_cluster):
    from facttune_ray.llm import actors

    (tmp_path / "ledger").write_text("a file where a folder should be")
    folder = Folder.of(str(tmp_path / "ledger"))
    with pytest.raises(UserError, match="llm.budget_usd: .*/ledger: .*Not a directory") as error:
        actors.start_meter("test-no-ledger", 1.0, folder, "r")
    assert "\n" not in str(error.value)


@pytest.mark.slow  # Ray exports its metrics every few seconds
def test_paid_requests_are_counted_in_rays_metrics(tmp_path, ray_cluster):
    import ray

    from facttune_ray.llm import actors

    meter = actors.start_meter("test-metrics", None, Folder.of(str(tmp_path)), "r")
    used = Usage(calls=3, refused=2, completion_tokens=40, cost_usd=0.5)
    asyncio.run(actors.report_to("test-metrics", "a-model")(MeterReport("a", "facts", 1, used)))
    assert ray.get(meter.snapshot.remote())["spent_usd"] == 0.5
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    wanted = {"calls": 3, "refused": 2, "completion_tokens": 40, "cost_usd": 0.5}
    found: dict[str, float] = {}
    started = time.monotonic()
    while found != wanted and time.monotonic() - started < 120:
        time.sleep(1.0)
        lines = urllib.request.urlopen(url).read().decode().splitlines()
        ours = [x for x in lines if x.startswith("ray_facttune_llm_") and 'model="a-model"' in x]
        found = {
            x.partition("{")[0].removeprefix("ray_facttune_llm_").removesuffix("_total"): float(
                x.rsplit(" ", 1)[1]
            )
            for x in ours
        }
    assert found == wanted
