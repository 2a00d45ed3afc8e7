"""A worker's gate, with a limiter that is a plain function, in virtual time."""

from __future__ import annotations

import asyncio
import math

import pytest
from bench.limiter import run

from facttune_ray.llm.limiter import (
    HOLD_S,
    MAX_HORIZON_S,
    RENEW_S,
    Lease,
    Limiter,
    LimiterReport,
    Limits,
)
from facttune_ray.llm.permits import ActorLost, Gate, Queue, local_renew, permit


def now_s() -> float:
    return asyncio.get_running_loop().time()


def gate_with(lease: Lease, most: int = 10, queue: Queue | None = None):
    """(gate, its reports); the limiter always gives the same lease."""
    reports: list[LimiterReport] = []

    async def renew(report: LimiterReport) -> Lease:
        reports.append(report)
        return lease

    return Gate(renew, most, "w", queue), reports


def limited(limits: Limits, there_s: float = 0.0, back_s: float = 0.0, most: int = 1000):
    """(gate, its limiter, its reports), with delays in between."""
    limiter, reports = Limiter(limits), []

    async def renew(report: LimiterReport) -> Lease:
        reports.append(report)
        await asyncio.sleep(there_s)
        lease = limiter.renew(report, now_s())
        await asyncio.sleep(back_s)
        return lease

    return Gate(renew, most, "w"), limiter, reports


def free(in_flight: int = 10) -> Lease:
    return Lease(math.inf, in_flight)


async def departures(gate: Gate, seconds: float, tokens: float = 1, count: int = 1000):
    """When `count` requests leave that come at once; each is answered at once."""
    left, began_s = [], now_s()

    async def one(ticket: int):
        await gate.acquire(tokens, ticket)
        left.append(now_s() - began_s)
        gate.answered(tokens, int(tokens), 0.0, {})

    tasks = [asyncio.create_task(one(ticket)) for ticket in range(count)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    return left


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


def test_no_more_requests_are_in_flight_than_the_lease_allows():
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
        gate, _, _ = limited(Limits(1200))
        return await departures(gate, 10.0)

    left = run(work())
    assert left[0] == 0 and len(left) == pytest.approx(0.99 * 200, rel=0.05)
    assert max(b - a for a, b in zip(left[50:], left[51:], strict=False)) < 0.06


def test_tokens_are_paced_by_what_was_used():
    async def work():
        gate, _, _ = limited(Limits(None, 6000))
        left, began_s = [], now_s()
        for ticket in range(20):
            await gate.acquire(100, ticket)
            left.append(now_s() - began_s)
            gate.answered(100, 300, 0.0, {})  # three times the estimate
        return left

    left = run(work())
    assert left[-1] == pytest.approx(19 * 300 / 99, rel=0.1)


def test_a_request_larger_than_a_minutes_tokens_is_admitted():
    async def work():
        gate, _, _ = limited(Limits(None, 6000))
        return await departures(gate, 200.0, tokens=9000, count=3)

    assert run(work()) == pytest.approx([0.0, 60.0, 120.0], abs=1.0)


def test_tokens_of_a_refused_request_are_not_used():
    async def work():
        gate, _, reports = limited(Limits(None, 6000))
        await gate.acquire(100, 0)
        gate.refused(100, {}, None)
        await asyncio.sleep(1.0)
        return sum(r.owed for r in reports)

    assert run(work()) == -100  # of its permit


def test_a_cancelled_request_leaves_the_queue():
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


def test_a_request_cancelled_in_the_step_that_admits_it_returns_its_permit_and_tokens():
    async def work():
        gate, reports = gate_with(free(in_flight=1))
        await gate.acquire(1, 0)
        first = asyncio.create_task(gate.acquire(500, 1))
        await asyncio.sleep(0.01)
        gate.answered(1, 1, 0.01, {})  # admits the next request
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await gate.pause()
        return gate.in_flight, sum(report.owed for report in reports)

    assert run(work()) == (0, 1)  # the answered request's token


@pytest.mark.parametrize("lull_s", [0.0, 0.2, 0.5, 0.9, 1.05, 1.1, 1.15, 1.2, 1.5, 2.0, 60.0])
@pytest.mark.parametrize("limit", [None, 600])
@pytest.mark.parametrize("back_s", [0.0, 0.3])
def test_one_more_request_after_a_lull_gets_its_permit(lull_s, limit, back_s):
    async def work():
        gate, _, _ = limited(Limits(limit), back_s=back_s)
        await gate.acquire(1, 0)
        gate.answered(1, 1, 0.01, {})
        await asyncio.sleep(lull_s)
        asked_s = now_s()
        await gate.acquire(1, 1)
        return now_s() - asked_s

    assert run(work()) <= 0.1 + 2 * RENEW_S + 2 * back_s


def test_no_request_is_left_behind_after_a_lull_of_any_length():
    async def work():
        gate, _, _ = limited(Limits(600), there_s=0.07, back_s=0.05)
        for ticket in range(300):
            await asyncio.wait_for(gate.acquire(1, ticket), 2.0)
            gate.answered(1, 1, 0.01, {})
            await asyncio.sleep(0.005 * ticket)

    run(work())


@pytest.mark.parametrize("trip_s", [0.4, 1.1])
@pytest.mark.parametrize("there", [0.0, 0.5, 1.0])
def test_a_slow_limiter_does_not_starve_a_low_limit(trip_s, there):
    async def work():
        gate, _, _ = limited(Limits(60), trip_s * there, trip_s * (1 - there))
        return len(await departures(gate, 20.0))

    assert 19 <= run(work()) <= 21


def test_single_requests_pass_a_far_limiter():
    async def work():
        gate, _, _ = limited(Limits(60), back_s=2.0)
        waits = []
        for ticket in range(5):
            await asyncio.sleep(30.0)
            asked_s = now_s()
            await gate.acquire(1, ticket)
            waits.append(now_s() - asked_s)
            gate.answered(1, 1, 0.1, {})
        return waits

    waits = run(work())
    assert waits[0] <= 7.0 and max(waits[1:]) <= 2.5  # the first report measures the round trip


def test_held_permits_are_used_while_a_lost_limiter_is_asked_again():
    limiter, lost = Limiter(Limits(600)), False

    async def renew(report: LimiterReport) -> Lease:
        if lost:
            raise ActorLost
        return limiter.renew(report, now_s())

    async def work():
        nonlocal lost
        gate, left = Gate(renew, 100, "w"), []

        async def one(ticket: int):
            await gate.acquire(1, ticket)
            left.append(now_s())
            gate.answered(1, 1, 0.01, {})

        tasks = [asyncio.create_task(one(ticket)) for ticket in range(200)]
        await asyncio.sleep(1.0)
        assert gate.waits(now_s())[0] == "permits" and len(left) in (11, 12)
        lost, lost_s = True, now_s()
        await asyncio.sleep(100.0)
        assert len(left) <= MAX_HORIZON_S * 9.9 + 3 and max(left) > lost_s + 3.0
        why, since_s = gate.waits(now_s())
        assert why == "an answer of the limiter" and lost_s <= since_s <= lost_s + 2 * RENEW_S
        lost, found_s = False, now_s()
        await asyncio.sleep(1.0)
        assert sum(t > found_s for t in left) >= 7
        for task in tasks:
            task.cancel()

    run(work())


def test_the_gate_says_what_requests_wait_for():
    async def work():
        gate, _ = gate_with(free(in_flight=1))
        assert gate.waits(now_s()) is None and not gate.lease.in_flight
        first = asyncio.create_task(gate.acquire(1, 0))
        await first
        began_s = now_s()
        assert gate.waits(began_s) is None and gate.lease.in_flight == 1
        second = asyncio.create_task(gate.acquire(1, 1))
        await asyncio.sleep(3.0)
        assert gate.waits(now_s()) == ("the server", began_s)
        gate.refused(1, {}, 30.0)
        await asyncio.sleep(3.0)
        assert gate.waits(now_s())[0] == "a pause the server asked for"
        await second

    run(work())


def test_permits_are_needed_from_the_first_answer_that_states_a_limit():
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "6000"}

    async def work():
        gate, _, reports = limited(Limits(), there_s=0.01)
        tasks = [asyncio.create_task(gate.acquire(1, t)) for t in range(50)]
        await asyncio.sleep(0.02)
        assert math.isinf(gate.lease.requests_per_s) and gate.in_flight == 32
        gate.answered(1, 1, 0.01, headers)
        assert gate.lease.requests_per_s == 0 and gate.in_flight == 31  # permits are needed
        asked = len(reports)
        await asyncio.sleep(0.05)  # long before the next regular report
        assert len(reports) == asked + 1 and reports[-1].limits == Limits(600, 6000)
        assert gate.lease.requests_per_s == pytest.approx(9.9)
        for task in tasks:
            task.cancel()

    run(work())


def test_a_429_pauses_and_is_reported_at_once():
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(1, 0)
        headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}
        gate.refused(1, headers, 0.2)
        started = now_s()
        await gate.acquire(1, 1)
        waited = now_s() - started
        (told,) = (r for r in reports if r.refused)
        assert told.exhausted and told.retry_after_s == 0.2
        assert told.limits.requests_per_minute == 60
        return waited

    assert run(work()) >= 0.19


def test_a_429_with_requests_and_tokens_left_does_not_exhaust_the_limit():
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(10, 0)
        left = {"x-ratelimit-remaining-requests": "50", "x-ratelimit-remaining-tokens": "900"}
        gate.refused(10, left, None)
        await gate.acquire(10, 1)
        return [r.exhausted for r in reports if r.refused]

    assert run(work()) == [False]


def test_a_429_that_is_the_requests_own_fault_causes_no_pause():
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(10, 0)
        gate.refused(10, {}, 30.0, pauses=False)
        started = now_s()
        await gate.acquire(10, 1)
        gate.answered(10, 10, 0.01, {})
        await gate.acquire(10, 2)
        gate.refused(10, {"x-ratelimit-limit-requests": "600"}, 30.0, pauses=False)
        await asyncio.sleep(1.0)
        assert not [r for r in reports if r.refused]
        assert reports[-1].limits == Limits(600.0)  # the limit in headers is reported
        return started + 1.0 - now_s()

    assert run(work()) == 0


def test_shut_gives_its_error_to_waiting_and_later_requests():
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


def test_a_bug_in_the_limiter_is_an_error_and_not_an_endless_wait():
    async def renew(report: LimiterReport) -> Lease:
        raise KeyError("a bug")

    async def work():
        with pytest.raises(KeyError, match="a bug"):
            await Gate(renew, 10, "w").acquire(1, 0)

    run(work())


@pytest.mark.parametrize("pause", [True, False])
def test_the_end_of_work_is_reported_to_the_limiter(pause):
    async def work():
        gate, reports = gate_with(free())
        await gate.acquire(1, 0)
        gate.answered(1, 1, 0.5, {})
        if pause:
            await gate.pause()
        await asyncio.sleep(5.0)
        return reports

    *_, last = run(work())
    assert (last.waiting, last.in_flight, last.answered, last.latency_s) == (0, 0, 1, 0.5)


def test_unused_permits_lapse():
    async def work():
        gate, _ = gate_with(Lease(10.0, 1, permits=((0.0, 1.0), (1.0, 1.0)), epoch="e"))
        began_s = now_s()
        await gate.acquire(1, 0)
        waiting = asyncio.create_task(gate.acquire(1, 1))
        await asyncio.sleep(0.9 * HOLD_S + 1.0)
        gate.failed()  # one more request may be in flight
        await waiting
        return now_s() - began_s

    assert run(work()) == pytest.approx(0.9 * HOLD_S + 1.0)


def test_a_clock_that_jumps_moves_the_permits_with_it():
    """After a laptop slept, the limiter's clock is an hour further ahead of this one."""
    limiter, ahead_s = Limiter(Limits(60)), 0.0

    async def renew(report: LimiterReport) -> Lease:
        return limiter.renew(report, now_s() + ahead_s)

    async def work():
        nonlocal ahead_s
        gate = Gate(renew, 100, "w")
        before = len(await departures(gate, 20.0))
        ahead_s = 3600.0
        return before, len(await departures(gate, 20.0))

    assert all(19 <= sent <= 21 for sent in run(work()))


def test_gates_share_a_queue_by_their_limits():
    async def work():
        queue = Queue()
        slow, fast = (
            Gate(local_renew(Limits(limit)), 1000, "w", queue) for limit in (3000, 12_000)
        )

        async def one(ticket: int) -> Gate:
            gate = await permit([slow, fast], 1, ticket)
            gate.answered(1, 1, 0.001, {})
            return gate

        took = await asyncio.gather(*map(one, range(300)))
        return sum(gate is fast for gate in took)

    assert 195 <= run(work()) <= 285


def test_an_unreachable_endpoint_gets_no_requests_for_a_while():
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
