"""A worker's gate, with a limiter that is a plain function."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from facttune_ray.llm.limiter import SHARE, Lease, Limits, Seen
from facttune_ray.llm.permits import (
    Gate,
    LimiterLost,
    Queue,
    duration_s,
    limits_in,
    permit,
)


def gate_with(*leases: Lease, most: int = 10, queue: Queue | None = None):
    """(gate, reports it made); the last lease is given for ever."""
    reports: list[Seen] = []

    async def renew(report: Seen) -> Lease:
        reports.append(report)
        return leases[min(len(reports), len(leases)) - 1]

    return Gate(renew, most, "w", queue), reports


def free(in_flight: int = 10, **limits) -> Lease:
    rates = {"requests_per_s": math.inf, "tokens_per_s": math.inf} | limits
    return Lease(in_flight=in_flight, pause_s=0.0, **rates)


def run(work) -> object:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_requests_leave_in_the_order_of_their_tickets():
    async def work():
        gate, _ = gate_with(free(in_flight=1))
        left = []

        async def one(ticket: int):
            await gate.acquire(1, ticket)
            left.append(ticket)
            gate.answered(1, 1, 0.01, {})

        await gate.acquire(1, 0)
        waiting = [asyncio.create_task(one(t)) for t in (5, 3, 9, 1)]
        await asyncio.sleep(0.02)
        assert left == [] and gate.waiting == 4
        gate.failed()
        await asyncio.gather(*waiting)
        return left

    assert run(work()) == [1, 3, 5, 9]


def test_no_more_in_flight_than_leased():
    async def work():
        gate, _ = gate_with(free(in_flight=3))
        most = 0

        async def one(ticket: int):
            nonlocal most
            await gate.acquire(1, ticket)
            most = max(most, gate.in_flight)
            await asyncio.sleep(0.001)
            gate.answered(1, 1, 0.001, {})

        await asyncio.gather(*(one(t) for t in range(30)))
        return most, gate.in_flight

    assert run(work()) == (3, 0)


def test_requests_are_paced():
    async def work():
        gate, _ = gate_with(free(in_flight=1000, requests_per_s=200.0))
        started = time.monotonic()
        for ticket in range(60):
            await gate.acquire(1, ticket)
        return time.monotonic() - started

    assert run(work()) >= 59 / 200 * 0.98


def test_tokens_are_paced_and_trued_up():
    async def work():
        gate, _ = gate_with(free(in_flight=1000, tokens_per_s=10_000.0))
        started = time.monotonic()
        for ticket in range(20):
            await gate.acquire(100, ticket)
            gate.answered(100, 300, 0.01, {})  # each used three times what was guessed
        return time.monotonic() - started

    assert run(work()) >= 19 * 300 / 10_000 * 0.9


def test_a_cancelled_request_gives_its_place_up():
    async def work():
        gate, _ = gate_with(free(in_flight=1))
        await gate.acquire(1, 0)
        first = asyncio.create_task(gate.acquire(1, 1))
        second = asyncio.create_task(gate.acquire(1, 2))
        await asyncio.sleep(0.01)
        first.cancel()
        gate.answered(1, 1, 0.01, {})
        await second
        return gate.in_flight, gate.waiting

    assert run(work()) == (1, 0)


def test_a_lost_limiter_stops_it_when_the_lease_ends_and_a_new_one_starts_it_again():
    lost = False

    async def renew(report: Seen) -> Lease:
        if lost:
            raise LimiterLost
        return Lease(math.inf, math.inf, 1000, 0.0, term_s=0.2, renew_s=0.05)

    async def work():
        nonlocal lost
        gate = Gate(renew, 10, "w")
        await gate.acquire(1, 0)
        lost = True
        await gate.acquire(1, 1)  # within the lease
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(gate.acquire(1, 2))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        lost = False
        await waiting

    run(work())


def test_a_lease_without_a_rate_heeds_the_first_answer_that_tells_a_limit():
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "6000"}

    async def work():
        gate, reports = gate_with(free(in_flight=100), most=100)
        await gate.acquire(1, 0)
        await gate.acquire(1, 1)
        gate.answered(1, 1, 0.01, headers)
        assert gate.lease.requests_per_s == pytest.approx(600 / 60 * SHARE)
        assert gate.lease.tokens_per_s == pytest.approx(6000 / 60 * SHARE)
        asked = len(reports)
        await asyncio.sleep(0.05)  # long before the lease is due to be renewed
        assert len(reports) == asked + 1 and reports[-1].limits.requests_per_minute == 600

    run(work())


def test_a_429_pauses_and_is_reported_at_once():
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(1, 0)
        headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}
        gate.refused(1, headers, 0.2)
        started = time.monotonic()
        await gate.acquire(1, 1)
        waited = time.monotonic() - started
        (told,) = (r for r in reports if r.refused)
        assert told.exhausted and told.retry_after_s == 0.2
        assert told.limits.requests_per_minute == 60
        return waited

    assert run(work()) >= 0.19


def test_a_429_with_requests_and_tokens_left_is_not_the_limit():
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(10, 0)
        left = {"x-ratelimit-remaining-requests": "50", "x-ratelimit-remaining-tokens": "900"}
        gate.refused(10, left, None)
        await gate.acquire(10, 1)
        return [r.exhausted for r in reports if r.refused]

    assert run(work()) == [False]


def test_shut_gives_its_error_to_those_who_wait_and_come():
    async def work():
        gate, _ = gate_with(free(in_flight=1))
        await gate.acquire(1, 0)
        waiting = asyncio.create_task(gate.acquire(1, 1))
        await asyncio.sleep(0.01)
        gate.shut(RuntimeError("over"))
        for late in (waiting, gate.acquire(1, 2)):
            with pytest.raises(RuntimeError, match="over"):
                await late

    run(work())


def test_a_broken_limiter_is_an_error_and_not_a_wait_for_ever():
    async def renew(report: Seen) -> Lease:
        raise KeyError("a bug")

    async def work():
        with pytest.raises(KeyError, match="a bug"):
            await Gate(renew, 10, "w").acquire(1, 0)

    run(work())


def test_the_lease_is_given_back_when_the_work_is_done():
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(1, 0)
        gate.answered(1, 1, 0.5, {})
        await gate.pause()
        return reports[-1]

    last = run(work())
    assert (last.waiting, last.in_flight, last.answered, last.latency_s) == (0, 0, 1, 0.5)


def test_gates_with_one_queue_take_from_it_as_they_can():
    async def work():
        queue = Queue()
        slow, _ = gate_with(free(in_flight=1000, requests_per_s=50.0), queue=queue)
        fast, _ = gate_with(free(in_flight=1000, requests_per_s=200.0), queue=queue)
        took = await asyncio.gather(*(permit([slow, fast], 1, t) for t in range(100)))
        return sum(gate is fast for gate in took)

    assert 65 <= run(work()) <= 95


def test_an_unreachable_endpoint_is_left_alone_for_a_while():
    async def work():
        queue = Queue()
        down, _ = gate_with(free(), queue=queue)
        up, _ = gate_with(free(), queue=queue)
        taken = await permit([down, up], 1, 0)
        taken.failed(unreachable=True)
        for ticket in range(20):
            other = await permit([down, up], 1, ticket)
            assert other is not taken
            other.answered(1, 1, 0.001, {})

    run(work())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7m12s", 432.0), ("120ms", 0.12), ("1.5s", 1.5), ("1h2m", 3720.0), ("", 0.0), ("soon", 0.0)],
)
def test_durations(text, seconds):
    assert duration_s(text) == pytest.approx(seconds)


def headers(limit: str, left: str, reset: str, kind: str = "requests") -> dict[str, str]:
    names = ("limit", "remaining", "reset")
    return {f"x-ratelimit-{n}-{kind}": v for n, v in zip(names, (limit, left, reset), strict=True)}


def test_limits_in_headers():
    assert limits_in({}) == Limits()
    assert limits_in(headers("60", "59", "1s")) == Limits(60.0, None)
    tokens = headers("150000", "149984", "6ms", "tokens")
    assert limits_in(tokens) == Limits(None, 150_000.0)
    daily = limits_in(headers("200", "199", "7m12s")).requests_per_minute
    assert daily == pytest.approx(200 / 1440)  # 200 a day
    # a window that ends for all at once
    assert limits_in(headers("100", "99", "59s")).requests_per_minute == 100
    assert limits_in(headers("10000", "9995", "30s")).requests_per_minute == 10_000
    day = limits_in(headers("1000", "999", "23h")).requests_per_minute
    assert day == pytest.approx(1000 / 1440)
    assert limits_in(headers("none", "", "")) == Limits()
    assert limits_in(headers("0", "0", "")) == Limits()
