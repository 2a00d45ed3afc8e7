"""The limiter in simulated time: leases, faults, and workers against a server with a bucket."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from bench.limiter import LIMITS, used

from facttune_ray.llm.limiter import (
    HOLD_S,
    LAG_S,
    MAX_HORIZON_S,
    SHARE,
    Limiter,
    LimiterReport,
    Limits,
    horizon,
    shares,
)

RPM = Limits(requests_per_minute=12_000)  # 200/s


def test_shares_are_max_min_fair_and_sum_to_the_total():
    assert shares({"a": 10.0, "b": 500.0, "c": 500.0}, 100.0) == {"a": 10.0, "b": 45.0, "c": 45.0}
    assert shares({"a": 10.0, "b": 30.0}, 80.0) == {"a": 20.0, "b": 60.0}
    assert sum(shares({"a": 1.0, "b": 7.0, "c": 2.0}, 5.0).values()) == pytest.approx(5.0)


def busy(worker: str, trip_s: float | None = 0.0, **seen) -> LimiterReport:
    return LimiterReport(
        worker, waiting=5000, in_flight=50, tokens=100, most=200, trip_s=trip_s, **seen
    )


def most_above(times: list[float], rate: float) -> float:
    """The most permits beyond `rate` in any window."""
    times, least, most = sorted(times), math.inf, 0.0
    for k, at in enumerate(times):
        least = min(least, k - at * rate)
        most = max(most, k + 1 - at * rate - least)
    return most


@pytest.mark.parametrize("limit", [7, 20, 600, 12_000])
def test_permits_never_exceed_the_limit(limit):
    limiter, chance = Limiter(Limits(limit)), random.Random(limit)
    now, times = 0.0, []
    for _ in range(3000):
        now += chance.choice([0.0, 0.01, 0.1, 3.0])
        report = LimiterReport(
            chance.choice("abcdefgh"),
            waiting=chance.choice([0, 1, 20, 5000]),
            in_flight=chance.choice([0, 1, 50]),
            most=50,
            held=chance.choice([0, 3]),
            trip_s=chance.choice([None, 0.0, 1.0]),
        )
        lease = limiter.renew(report, now)
        assert all(now <= at < now + MAX_HORIZON_S for at, _ in lease.permits)
        times += [at for at, _ in lease.permits]
    rate = limit / 60 * SHARE
    assert most_above(times, rate) <= 1 + rate * LAG_S + 1e-6
    # no minute has more than the limit, also when permits are used as late as possible
    assert 60 * rate + (HOLD_S + LAG_S) * rate <= limit


def counts(limiter: Limiter, names: str, seconds: float, limit_trips=(0.0,), **seen) -> dict:
    """Permits of workers that report four times a second and use each permit in its time."""
    held: dict[str, list[float]] = {name: [] for name in names}
    given, now = dict.fromkeys(names, 0), 0.0
    while now < seconds:
        for k, name in enumerate(names):
            held[name] = [at for at in held[name] if at > now]
            trip_s = limit_trips[k % len(limit_trips)]
            lease = limiter.renew(busy(name, trip_s, held=len(held[name]), **seen), now)
            held[name] += [at for at, _ in lease.permits]
            given[name] += len(lease.permits)
        now += 0.25
    return given


def test_eight_workers_at_20_a_minute_take_turns():
    given = counts(Limiter(Limits(20)), "abcdefgh", 240.0)
    assert min(given.values()) >= 9 and max(given.values()) <= 11


def test_a_far_worker_gets_its_share_beside_near_ones():
    given = counts(Limiter(RPM), "abcd", 60.0, limit_trips=(2.0, 0.0))
    assert min(given.values()) >= 0.9 * 60 * 198 / 4


def test_other_workers_get_what_a_worker_does_not_need():
    limiter, now, b = Limiter(RPM), 0.0, 0
    while now < 60.0:
        limiter.renew(LimiterReport("a", in_flight=100, most=200, trip_s=0.0), now)  # nothing waits
        b += len(limiter.renew(busy("b"), now).permits)
        now += 0.25
    assert b >= 0.98 * 60 * 198


def test_a_worker_that_leaves_or_dies_frees_its_share():
    limiter = Limiter(RPM)
    assert limiter.renew(busy("a"), 0.0).requests_per_s == pytest.approx(198)
    assert limiter.renew(busy("b"), 0.1).requests_per_s == pytest.approx(99)
    limiter.renew(LimiterReport("a"), 0.4)  # nothing waits, nothing is in flight
    assert limiter.renew(busy("b"), 0.5).requests_per_s == pytest.approx(198)
    limiter.renew(busy("c"), 0.8)  # then c is silent
    assert limiter.renew(busy("b"), 1.7).requests_per_s == pytest.approx(99)
    assert limiter.renew(busy("b"), 1.9).requests_per_s == pytest.approx(198)


def test_the_limiter_is_busy_while_a_worker_is_busy():
    limiter = Limiter()
    assert not limiter.busy(0.0)
    limiter.renew(busy("a"), 0.0)
    assert limiter.busy(0.9) and not limiter.busy(1.1)


@pytest.mark.parametrize("how", ["restarted", "told by a worker"])
@pytest.mark.parametrize("limit", [20, 12_000])
def test_a_successor_issues_nothing_for_the_time_of_its_predecessors_permits(how, limit):
    before = Limiter(Limits(limit))
    times = [at for at, _ in before.renew(busy("a", None), 10.0).permits]
    after = Limiter(Limits(limit), restarted=how == "restarted")
    assert after.epoch != before.epoch
    epoch = "" if how == "restarted" else before.epoch
    now, later = 10.1, []
    while now < 22.0:
        later += [at for at, _ in after.renew(busy("b", epoch=epoch), now).permits]
        now += 0.25
    assert later and min(later) >= 10.1 + MAX_HORIZON_S
    assert most_above(times + later, limit / 60 * SHARE) <= 1 + LAG_S * limit / 60


def test_permits_are_issued_further_ahead_for_longer_round_trips():
    for trip_s, ahead_s in ((0.0, 0.5), (1.0, 2.5), (2.0, 4.5), (None, 5.0), (60.0, 5.0)):
        lease = Limiter(RPM).renew(busy("a", trip_s), 0.0)
        assert lease.horizon_s == horizon(trip_s) == ahead_s
        latest_s = max((at for at, _ in lease.permits), default=ahead_s)
        assert ahead_s - LAG_S - 0.01 <= latest_s <= ahead_s


def test_a_request_waits_for_its_tokens_and_a_minute_at_most():
    limiter = Limiter(Limits(None, 6000))  # 99 tokens/s
    one = LimiterReport("a", waiting=1, tokens=990, most=9)
    assert limiter.renew(one, 0.0).permits == ((0.0, 990),)
    at = [at for now in range(20) for at, _ in limiter.renew(one, now).permits]
    assert at == pytest.approx([10.0, 20.0], abs=LAG_S)
    owing = LimiterReport(
        "a", waiting=1, tokens=990, most=9, owed=1e9
    )  # used more tokens than its permits had
    assert not limiter.renew(owing, 20.0).permits
    assert not limiter.renew(one, 60.0).permits and limiter.renew(one, 86.0).permits


def test_both_limits_hold():
    limiter, now = Limiter(Limits(600, 6000)), 0.0
    times, held = [], []
    while now < 60.0:
        held = [at for at in held if at > now]
        lease = limiter.renew(busy("a", held=len(held)), now)  # 100 tokens each: 59.4 a minute
        held += [at for at, _ in lease.permits]
        times += [at for at, _ in lease.permits]
        now += 0.25
    assert len(times) in (60, 61)


def test_limits_come_from_headers_when_none_are_configured():
    limiter = Limiter()
    assert math.isinf(limiter.renew(busy("a"), 0.0).requests_per_s)
    lease = limiter.renew(busy("a", limits=Limits(6000, 90_000)), 0.3)
    assert lease.requests_per_s == pytest.approx(14.85)  # 100 tokens each


def test_a_configured_limit_holds_until_the_server_refuses():
    limiter = Limiter(RPM)
    lower = Limits(6000, None)
    assert limiter.renew(busy("a", limits=lower), 0.0).requests_per_s == pytest.approx(198)
    refused = busy("a", limits=lower, refused=3, exhausted=True, retry_after_s=0.2)
    lease = limiter.renew(refused, 0.3)
    assert lease.requests_per_s == pytest.approx(99)  # the header's limit without a cut
    assert lease.pause_s == pytest.approx(0.2)
    assert all(at >= 0.5 for at, _ in lease.permits)


def test_a_burst_cuts_the_rate_once_and_pauses_the_cluster_once():
    limiter = Limiter(RPM)
    for name in "abc":
        limiter.renew(busy(name), 0.0)
    no_more = {"refused": 40, "exhausted": True, "retry_after_s": 1.0}
    assert limiter.renew(busy("a", **no_more), 1.0).pause_s == pytest.approx(1.0)
    assert limiter.renew(busy("b", **no_more), 1.2).pause_s == pytest.approx(1.0)
    assert limiter.renew(busy("c"), 1.3).pause_s == pytest.approx(0.9)
    assert limiter.factor == pytest.approx(0.7)
    assert limiter.renew(busy("a"), 4.0).pause_s == 0
    limiter.renew(busy("a"), 6.0)
    assert 0.7 < limiter.factor < 0.8  # 2% of the limit a second
    limiter.renew(busy("a"), 500.0)
    assert limiter.factor == 1.0


def test_a_429_with_limit_left_pauses_but_cuts_no_rate():
    limiter = Limiter(RPM)
    limiter.renew(busy("a", refused=5, exhausted=False, retry_after_s=0.5), 0.0)
    assert limiter.factor == 1.0 and limiter.pause_until_s == pytest.approx(0.5)


class Server:
    """A provider's token bucket of one second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.level, self.now = rate, rate, 0.0

    def admits(self, now: float) -> bool:
        self.level = min(self.rate, self.level + (now - self.now) * self.rate)
        self.now = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


LATENCY_S = 0.2


def simulate(limiter: Limiter, server: Server, seconds: float, halve_s: float = math.inf):
    """Two busy workers send by their permits. Return [answered, refused] of each second."""
    step, renew = 0.005, {"a": 0.0, "b": 0.125}
    lease, permits, paused = {}, {name: deque() for name in renew}, {}
    seen = {name: {"answered": 0, "refused": 0} for name in renew}
    flying = {name: deque() for name in renew}  # when each will be answered
    history = [[0, 0] for _ in range(int(seconds) + 1)]
    now = 0.0
    while now < seconds:
        if now >= halve_s:
            server.rate, halve_s = server.rate / 2, math.inf
        for name, mine in flying.items():
            held = permits[name]
            while mine and mine[0] <= now:
                mine.popleft()
                seen[name]["answered"] += 1
            while held and held[0] < now - HOLD_S:
                held.popleft()
            if now >= renew[name]:
                report = LimiterReport(
                    name,
                    waiting=5000,
                    in_flight=len(mine),
                    most=200,
                    held=len(held),
                    trip_s=0.0,
                    latency_s=LATENCY_S,
                    exhausted=seen[name]["refused"] > 0,
                    retry_after_s=0.1 if seen[name]["refused"] else None,
                    **seen[name],
                )
                lease[name] = limiter.renew(report, now)
                paused[name] = now + lease[name].pause_s
                held.extend(at for at, _ in lease[name].permits)
                seen[name] = {"answered": 0, "refused": 0}
                renew[name] = now + 0.25
            if now < paused.get(name, math.inf):
                continue
            free = math.isinf(lease[name].requests_per_s)
            while len(mine) < lease[name].in_flight and (free or (held and held[0] <= now)):
                if not free:
                    held.popleft()
                if server.admits(now):
                    history[int(now)][0] += 1
                    mine.append(now + LATENCY_S)
                else:
                    history[int(now)][1] += 1
                    seen[name]["refused"] += 1
                    renew[name] = now  # a 429 is reported at once
                    break
        now += step
    return history


def test_a_steady_server_is_used_to_97_percent_without_429s():
    history = simulate(Limiter(RPM), Server(200.0), 30)
    sent, refused = (sum(s[i] for s in history[3:29]) for i in (0, 1))
    assert sent / 26 >= 0.97 * 200 and refused <= 0.005 * sent


def test_a_limit_halved_without_headers_is_kept_within_five_seconds():
    history = simulate(Limiter(RPM), Server(200.0), 60, halve_s=20.0)
    later = history[25:59]
    assert sum(s[1] for s in later) <= 0.02 * sum(s[0] for s in later)
    assert sum(s[0] for s in later) / len(later) >= 0.6 * 100  # the limit is used


@pytest.mark.parametrize("rate", [5.0, 20.0, 200.0])
def test_an_unknown_limit_is_learned_from_refusals(rate):
    """40 s at one limit, then at half of it."""
    history = simulate(Limiter(), Server(rate), 120, halve_s=40.0)
    for start, end, limit in ((2, 40, rate), (50, 119, rate / 2)):
        answered, refused = (sum(s[i] for s in history[start:end]) for i in (0, 1))
        assert answered >= 0.93 * limit * (end - start)
        assert refused <= max(12, 0.01 * answered)


def test_a_learned_limit_that_was_too_low_grows():
    limiter = Limiter()
    limiter.renew(busy("a", refused=1, exhausted=True), 0.0)  # 50 in flight: 75/s, cut to 52.5
    assert limiter.renew(busy("a"), 0.0).requests_per_s == pytest.approx(52.5 * SHARE)
    rates = [limiter.renew(busy("a"), 1.0 + i / 2).requests_per_s for i in range(61)]
    assert rates[20] == pytest.approx(75 * SHARE)  # after the pause of 1 s and 10 s of work
    assert rates[60] == pytest.approx(75 * (1 + 0.3 * 8) * SHARE)  # 30 s
    limiter.renew(busy("a", limits=Limits(6000)), 32.0)  # a limit in headers replaces it
    assert limiter.renew(busy("a"), 32.1).requests_per_s == pytest.approx(100 * SHARE)


def test_latency_that_grows_without_429s_shrinks_the_window():
    """A server with 8 slots of 1 s each behind a queue, like a busy vLLM."""
    limiter, now, most, window = Limiter(), 0.0, 0, 0
    slots, sent, answers = [0.0] * 8, [], []  # when a slot is free; (arrival, end) of requests
    while now < 120:
        answers = [(begun, end) for begun, end in sent if end <= now]
        sent = [(begun, end) for begun, end in sent if end > now]
        latencies = [end - begun for begun, end in answers]
        report = LimiterReport(
            "a",
            waiting=1000,
            in_flight=len(sent),
            most=500,
            answered=len(latencies),
            latency_s=sum(latencies) / max(1, len(latencies)),
        )
        window = limiter.renew(report, now).in_flight
        while len(sent) < window:
            slot = slots.index(min(slots))
            slots[slot] = max(slots[slot], now) + 1.0
            sent.append((now, slots[slot]))
        most = max(most, window)
        now += 0.25
    assert most > 30  # the window grew first
    assert 8 <= window <= 8 * 3  # all slots busy, and at most twice as many in the queue


def test_the_window_halves_while_a_server_answers_few_requests_in_time():
    """A server with one slot of 6 s, which also works on requests that timed out after 60 s."""
    limiter, now, free_s, sent, window, came = Limiter(), 0.0, 0.0, [], 0, 0
    while now < 3600:
        ended = [(begun, end) for begun, end in sent if end <= now or begun + 60 <= now]
        sent = [request for request in sent if request not in ended]
        answered = [end - begun for begun, end in ended if end <= begun + 60]
        report = LimiterReport(
            "a",
            waiting=1000,
            in_flight=len(sent),
            most=128,
            answered=len(answered),
            latency_s=sum(answered) / max(1, len(answered)),
            lost=len(ended) - len(answered),
            lost_s=60.0,
        )
        came += len(answered) if now > 1800 else 0
        window = limiter.renew(report, now).in_flight
        while len(sent) < window:
            free_s = max(free_s, now) + 6.0
            sent.append((now, free_s))
        now += 1.0
    assert came > 0.8 * 1800 / 6  # most of its capacity
    assert window <= 10


def test_single_lost_answers_among_many_do_not_shrink_the_window():
    limiter, now = Limiter(), 0.0
    for i in range(400):
        lease = limiter.renew(busy("a", answered=40, latency_s=0.1, lost=i % 2, lost_s=3.0), now)
        now += 0.25
    assert lease.in_flight >= 60


def test_milliseconds_of_latency_do_not_shrink_the_window():
    limiter, now = Limiter(), 0.0
    for _ in range(100):
        report = busy("a", answered=200, latency_s=0.003 + now / 100)
        lease = limiter.renew(report, now)
        now += 0.25
    assert lease.in_flight >= 60


EACH = [pytest.param(n, marks=pytest.mark.slow) if n > 1000 else n for n in LIMITS]
WAYS = {
    "before the limiter": lambda s: (s, 0.0),
    "after it": lambda s: (0.0, s),
    "around it": lambda s: (s / 2, s / 2),
}
# fast tests take one variant, slow tests all
SOME_WAYS = [w if "around" in w else pytest.param(w, marks=pytest.mark.slow) for w in WAYS]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("trip_s", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("way", SOME_WAYS)
@pytest.mark.parametrize("limit", EACH)
def test_95_percent_of_the_limit_is_used_at_any_round_trip(limit, way, trip_s, workers):
    found = used(limit, lambda: WAYS[way](trip_s), workers)
    assert found.share >= 0.95 and found.most_in_60_s <= limit


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("way", SOME_WAYS)
@pytest.mark.parametrize("limit", EACH)
def test_95_percent_of_the_limit_is_used_when_the_round_trip_changes(limit, way, workers):
    chance = random.Random(0)
    found = used(limit, lambda: WAYS[way](chance.uniform(0, 2)), workers)
    spread_s = max(WAYS[way](2.0))
    assert found.share >= 0.95 and found.most_in_60_s <= limit + limit / 60 * spread_s


def test_workers_make_progress_alike_at_a_low_limit():
    found = used(20, lambda: (0.1, 0.1), workers=8, seconds=240.0)
    assert found.share >= 0.95 and min(found.by_worker) >= 8 and max(found.by_worker) <= 12
