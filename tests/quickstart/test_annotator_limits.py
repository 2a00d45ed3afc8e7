"""The server's limits through HTTP: bursts, halving, refusals, slots, /stats."""

import concurrent.futures
import json
import math
import time
import urllib.error
import urllib.request

import pytest

from facttune_ray.errors import UserError
from facttune_ray.prompts import facts
from facttune_ray.quickstart import chat_api
from facttune_ray.quickstart.annotator import AnnotatorOptions, running, serve

MESSAGES = facts.render("Mara Veldt", "She plays the cello.")
BODY = json.dumps({"model": "m", "messages": MESSAGES}).encode()


def ask(url, body=BODY, timeout=30):
    """(status, headers) of one chat request."""
    request = urllib.request.Request(url + "/chat/completions", data=body)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, reply.headers
    except urllib.error.HTTPError as e:
        return e.code, e.headers


def stats(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=30) as reply:
        return json.load(reply)


def at_once(url, n):
    """Statuses of n requests sent together."""
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        return [status for status, _ in pool.map(lambda _: ask(url), range(n))]


@pytest.fixture
def clock(monkeypatch):
    """Sets the time that the limits see."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        time = monotonic

    clock = Clock()
    monkeypatch.setattr(chat_api, "time", clock)
    return clock


def test_a_small_burst_refuses_requests_that_a_full_minute_would_admit():
    with running(AnnotatorOptions(requests_per_minute=60, burst_s=2.0)) as url:
        first, headers = ask(url)
        assert (first, headers["x-ratelimit-limit-requests"]) == (200, "60")
        assert int(headers["x-ratelimit-remaining-requests"]) <= 1
        # two are there at once, and one more a second: 20 take far longer than that
        assert at_once(url, 20).count(429) > 0
        assert ask(url)[1]["Retry-After"] in ("1", None)
    with running(AnnotatorOptions(requests_per_minute=60)) as url:
        assert at_once(url, 20) == [200] * 20


def test_bucket_of_one_second(clock):
    bucket = chat_api.Bucket(12_000, 1.0)
    assert bucket.wait_s(200) == 0
    bucket.take(200)
    assert bucket.wait_s(1) == pytest.approx(1 / 200)
    clock.now += 0.5
    assert bucket.wait_s(100) == 0 and bucket.wait_s(101) > 0
    clock.now += 60
    assert bucket.wait_s(5_000) == 0  # more than it holds: let through once it is full
    bucket.take(5_000)
    assert bucket.wait_s(1) == pytest.approx(4_801 / 200)
    assert chat_api.Bucket(30, 1.0).wait_s(1) == 0  # holds half a request


def test_limits_halve(clock):
    limits = chat_api.Limits(
        AnnotatorOptions(requests_per_minute=120, tokens_per_minute=1201, halve_after_s=5)
    )
    clock.now += 100  # counted from the first request
    assert limits.admit(10) == 0
    clock.now += 4.9
    assert limits.admit(10) == 0
    assert limits.headers()["x-ratelimit-limit-requests"] == "120"
    clock.now += 0.2
    assert limits.admit(10) == 0
    headers = limits.headers()
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-limit-tokens"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "59"
    clock.now += 1000
    assert limits.admit(10) == 0
    assert limits.requests.per_minute == 60  # once


def test_halved_limits_show_in_headers_and_stats():
    with running(AnnotatorOptions(requests_per_minute=600, halve_after_s=0.1)) as url:
        ask(url)
        time.sleep(0.2)
        assert ask(url)[1]["x-ratelimit-limit-requests"] == "300"
        assert stats(url)["limits"] == {
            "requests_per_minute": 300,
            "tokens_per_minute": 500_000_000,
        }


def test_bursts_of_refusals(clock):
    limits = chat_api.Limits(AnnotatorOptions(refuse_every_s=10, refuse_for_s=2))
    for period in range(3):
        clock.now = 100 + 10 * period
        assert limits.admit(10) == 0
        clock.now += 7.9
        assert limits.admit(10) == 0
        clock.now += 0.2
        level = limits.requests.level
        assert limits.admit(10) == pytest.approx(1.9)
        clock.now += 1.8
        assert limits.admit(10) == pytest.approx(0.1)
        assert limits.requests.level == level  # these take nothing
    assert limits.refused == 6
    assert limits.traffic()[:3] == [
        {"t": 0, "accepted": 1, "rejected": 0, "tokens": 10},
        {"t": 7, "accepted": 1, "rejected": 0, "tokens": 10},
        {"t": 8, "accepted": 0, "rejected": 1, "tokens": 0},
    ]


def test_refusals_say_when_to_try_again():
    # refuses all but the first instant of each minute
    options = AnnotatorOptions(refuse_every_s=60, refuse_for_s=59.99, headers=False)
    with running(options) as url:
        assert ask(url)[0] == 200
        time.sleep(0.05)
        status, headers = ask(url)
        assert status == 429
        assert 20 <= int(headers["Retry-After"]) <= 60
        assert math.ceil(int(headers["retry-after-ms"]) / 1000) == int(headers["Retry-After"])
        assert not [h for h in headers if h.lower().startswith("x-ratelimit")]
        counted = stats(url)
        assert (counted["rejected_429"], counted["refused_429"], counted["received"]) == (1, 1, 2)


def test_no_headers():
    with running(AnnotatorOptions(headers=False, requests_per_minute=1)) as url:
        answered, refused = ask(url), ask(url)
        assert (answered[0], refused[0]) == (200, 429)
        assert refused[1]["Retry-After"]
        for _, headers in (answered, refused):
            assert not [h for h in headers if h.lower().startswith("x-ratelimit")]


def test_requests_beyond_the_slots_queue():
    options = AnnotatorOptions(slots=2, latency_min_ms=250, latency_max_ms=250)
    with running(options) as url:
        started = time.monotonic()
        assert at_once(url, 8) == [200] * 8
        assert time.monotonic() - started >= 4 * 0.25  # four rounds of two
        counted = stats(url)
        assert counted["answered"] == counted["received"] == 8
        assert counted["rejected_429"] == 0
        assert 2 < counted["max_running"] <= 8  # the queue is inside


def test_a_client_that_gives_up_in_the_queue_is_not_answered():
    options = AnnotatorOptions(slots=1, latency_min_ms=1000, latency_max_ms=1000)
    with running(options) as url:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(ask, url, timeout=0.1) for _ in range(4)]
        assert all(isinstance(c.exception(), OSError) for c in calls)
        assert ask(url)[0] == 200
        assert stats(url)["answered"] <= 2  # the one that had the slot, and the last


def test_stats_of_traffic():
    with running(AnnotatorOptions(requests_per_minute=3)) as url:
        assert stats(url)["seconds"] == [] and stats(url)["max_running"] == 0
        assert ask(url, b"{}")[0] == 400  # not well-formed: not counted
        statuses = [ask(url)[0] for _ in range(5)]
        counted = stats(url)
        assert counted["received"] == 5 and counted["max_running"] == 1
        assert counted["rejected_429"] == statuses.count(429) > 0
        assert counted["refused_429"] == 0
        seconds = counted["seconds"]
        assert [s["t"] for s in seconds] == sorted({s["t"] for s in seconds})
        assert sum(s["accepted"] for s in seconds) == statuses.count(200)
        assert sum(s["rejected"] for s in seconds) == statuses.count(429)
        with running(AnnotatorOptions()) as other:
            request = urllib.request.Request(other + "/chat/completions", data=BODY)
            with urllib.request.urlopen(request, timeout=30) as reply:
                one = json.load(reply)["usage"]["total_tokens"]
        assert sum(s["tokens"] for s in seconds) == one * statuses.count(200)
        assert counted["limits"]["requests_per_minute"] == 3


@pytest.mark.parametrize(
    "options",
    [
        AnnotatorOptions(burst_s=0),
        AnnotatorOptions(halve_after_s=-1),
        AnnotatorOptions(refuse_for_s=1),
        AnnotatorOptions(refuse_every_s=2, refuse_for_s=2),
        AnnotatorOptions(slots=-1),
        AnnotatorOptions(batch_max_requests=0),
        AnnotatorOptions(batch_delay_s=-1),
        AnnotatorOptions(batch_error_share=1.1),
    ],
)
def test_bad_options(options):
    with pytest.raises(UserError):
        serve(options)
