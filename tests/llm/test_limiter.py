"""The limiter in simulated time: leases, faults, and workers against a server with a bucket."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest

from facttune_ray.llm.limiter import SHARE, TERM_S, Limiter, Limits, Seen, shares

RPM = Limits(requests_per_minute=12_000)  # 200/s


def test_shares_are_max_min_fair_and_sum_to_the_total():
    assert shares({"a": 10.0, "b": 500.0, "c": 500.0}, 100.0) == {"a": 10.0, "b": 45.0, "c": 45.0}
    assert shares({"a": 10.0, "b": 30.0}, 80.0) == {"a": 20.0, "b": 60.0}
    assert sum(shares({"a": 1.0, "b": 7.0, "c": 2.0}, 5.0).values()) == pytest.approx(5.0)


def busy(worker: str, **seen) -> Seen:
    return Seen(worker, waiting=5000, in_flight=50, tokens=1e6, most=200, **seen)


def test_leases_that_are_out_never_pass_the_limit():
    limiter, out, chance = Limiter(RPM), {}, random.Random(0)
    now = 0.0
    for _ in range(3000):
        now += chance.uniform(0.001, 0.1)
        name = chance.choice("abcdefgh")
        need = chance.choice([0, 1, 20, 5000])
        lease = limiter.renew(Seen(name, waiting=need, most=50), now)
        out[name] = (now + TERM_S, lease.requests_per_s)
        live = sum(rate for ends, rate in out.values() if ends > now)
        assert live <= 200 * SHARE + 1e-6


def test_a_worker_that_leaves_or_dies_frees_its_share():
    limiter = Limiter(RPM)
    assert limiter.renew(busy("a"), 0.0).requests_per_s == pytest.approx(198)
    assert limiter.renew(busy("b"), 0.1).requests_per_s == 0
    assert limiter.renew(busy("a"), 0.2).requests_per_s == pytest.approx(99)
    assert limiter.renew(busy("b"), 0.3).requests_per_s == pytest.approx(99)
    limiter.renew(Seen("a"), 0.4)  # nothing waits, nothing is in flight
    assert limiter.renew(busy("b"), 0.5).requests_per_s == pytest.approx(198)
    limiter.renew(busy("c"), 0.6)
    limiter.renew(busy("b"), 0.7)
    limiter.renew(busy("c"), 0.8)  # and then c is silent
    assert limiter.renew(busy("b"), 1.7).requests_per_s == pytest.approx(99)
    assert limiter.renew(busy("b"), 1.9).requests_per_s == pytest.approx(198)


def test_it_is_busy_while_a_lease_is_out():
    limiter = Limiter()
    assert not limiter.busy(0.0)
    limiter.renew(busy("a"), 0.0)
    assert limiter.busy(0.9) and not limiter.busy(1.1)


def test_a_lease_of_a_predecessor_makes_it_wait():
    limiter = Limiter(RPM)
    first = limiter.renew(busy("a", leased_s=0.7), 10.0)
    assert first.requests_per_s == 0 and first.pause_s == pytest.approx(TERM_S)
    assert limiter.renew(busy("b"), 10.9).requests_per_s == 0
    assert limiter.renew(busy("b"), 11.1).requests_per_s > 0


def test_limits_come_from_headers_when_none_are_configured():
    limiter = Limiter()
    assert math.isinf(limiter.renew(busy("a"), 0.0).requests_per_s)
    seen = Limits(6000, 90_000)
    lease = limiter.renew(busy("a", limits=seen), 0.3)
    assert lease.requests_per_s == pytest.approx(99) and lease.tokens_per_s == pytest.approx(1485)


def test_a_configured_limit_is_believed_until_the_server_refuses():
    limiter = Limiter(RPM)
    lower = Limits(6000, None)
    assert limiter.renew(busy("a", limits=lower), 0.0).requests_per_s == pytest.approx(198)
    refused = busy("a", limits=lower, refused=3, exhausted=True, retry_after_s=0.2)
    lease = limiter.renew(refused, 0.3)
    assert lease.requests_per_s == pytest.approx(99)  # the header's limit, and no cut beside it
    assert lease.pause_s == pytest.approx(0.2)


def test_one_cut_a_burst_and_the_whole_cluster_pauses_once():
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


def test_a_429_that_is_not_about_the_limit_pauses_but_cuts_no_rate():
    limiter = Limiter(RPM)
    limiter.renew(busy("a", refused=5, exhausted=False, retry_after_s=0.5), 0.0)
    assert limiter.factor == 1.0 and limiter.pause_until_s == pytest.approx(0.5)


class Server:
    """A provider's token bucket, refilled by the clock, of one second."""

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
    """Two busy workers that send as their leases let them. -> per second: [answered, refused]"""
    step, renew = 0.005, {"a": 0.0, "b": 0.125}
    lease, carry = {}, {"a": 0.0, "b": 0.0}
    seen = {name: {"answered": 0, "refused": 0} for name in renew}
    flying = {name: deque() for name in renew}  # when each will be answered
    history = [[0, 0] for _ in range(int(seconds) + 1)]
    now = 0.0
    while now < seconds:
        if now >= halve_s:
            server.rate, halve_s = server.rate / 2, math.inf
        for name, mine in flying.items():
            while mine and mine[0] <= now:
                mine.popleft()
                seen[name]["answered"] += 1
            if now >= renew[name]:
                report = Seen(
                    name,
                    waiting=5000,
                    in_flight=len(mine),
                    tokens=1e6,
                    most=200,
                    latency_s=LATENCY_S,
                    exhausted=seen[name]["refused"] > 0,
                    retry_after_s=0.1 if seen[name]["refused"] else None,
                    **seen[name],
                )
                lease[name] = (limiter.renew(report, now), now)
                seen[name] = {"answered": 0, "refused": 0}
                renew[name] = now + 0.25
            if name not in lease:
                continue
            given, since = lease[name]
            if now < since + given.pause_s:
                continue
            carry[name] = min(carry[name] + given.requests_per_s * step, 1e9)
            while carry[name] >= 1 and len(mine) < given.in_flight:
                carry[name] -= 1
                if server.admits(now):
                    history[int(now)][0] += 1
                    mine.append(now + LATENCY_S)
                else:
                    history[int(now)][1] += 1
                    seen[name]["refused"] += 1
                    renew[name] = now  # a 429 is reported at once
                    break
            carry[name] = min(carry[name], 0.4 * given.requests_per_s + 1)
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
    assert sum(s[0] for s in later) / len(later) >= 0.6 * 100  # and it is used


@pytest.mark.parametrize("rate", [5.0, 20.0, 200.0])
def test_a_limit_that_nobody_tells_is_learned_from_refusals(rate):
    """The first 40 s at the limit, then at half of it."""
    history = simulate(Limiter(), Server(rate), 120, halve_s=40.0)
    for start, end, limit in ((2, 40, rate), (50, 119, rate / 2)):
        answered, refused = (sum(s[i] for s in history[start:end]) for i in (0, 1))
        assert answered >= 0.93 * limit * (end - start)
        assert refused <= max(12, 0.01 * answered)


def test_a_learned_limit_that_was_too_low_is_left_behind():
    limiter = Limiter()
    limiter.renew(busy("a", refused=1, exhausted=True), 0.0)  # 50 in flight: 75/s, cut to 52.5
    assert limiter.renew(busy("a"), 0.0).requests_per_s == pytest.approx(52.5 * SHARE)
    rates = [limiter.renew(busy("a"), 1.0 + i / 2).requests_per_s for i in range(61)]
    assert rates[20] == pytest.approx(75 * SHARE)  # after the pause of 1 s and 10 s of work
    assert rates[60] == pytest.approx(75 * (1 + 0.3 * 8) * SHARE)  # 30 s
    limiter.renew(busy("a", limits=Limits(6000)), 32.0)  # and a limit that is told wins
    assert limiter.renew(busy("a"), 32.1).requests_per_s == pytest.approx(100 * SHARE)


def test_latency_that_grows_without_429s_shrinks_the_window():
    """A server with 8 slots of 1 s each and a queue before them, as a busy vLLM."""
    limiter, now, most, window = Limiter(), 0.0, 0, 0
    slots, sent, answers = [0.0] * 8, [], []  # when a slot is free; (arrival, end) of requests
    while now < 120:
        answers = [(begun, end) for begun, end in sent if end <= now]
        sent = [(begun, end) for begun, end in sent if end > now]
        latencies = [end - begun for begun, end in answers]
        report = Seen(
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
    assert most > 30  # it tried
    assert 8 <= window <= 8 * 3  # never idle, and a queue of at most twice the work


def test_a_fast_server_is_not_slowed_by_its_growing_milliseconds():
    limiter, now = Limiter(), 0.0
    for _ in range(100):
        report = busy("a", answered=200, latency_s=0.003 + now / 100)
        lease = limiter.renew(report, now)
        now += 0.25
    assert lease.in_flight >= 60
