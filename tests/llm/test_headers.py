"""Limits and pauses in the headers of a reply."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from facttune_ray.llm.headers import duration_s, limits_in, retry_after_s
from facttune_ray.llm.limiter import Limits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7m12s", 432.0),
        ("120ms", 0.12),
        ("1.5s", 1.5),
        ("1h2m", 3720.0),
        ("6m0s", 360.0),
        ("59.7", 59.7),
        ("", 0.0),
        ("soon", 0.0),
    ],
)
def test_durations(text, seconds):
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("form", ["{:.0f}", "{:.0f}000", "date"])
def test_a_reset_may_be_a_point_in_time(form):
    then_s = time.time() + 90
    if form == "date":
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(then_s))
    else:
        text = form.format(then_s)
    assert duration_s(text) == pytest.approx(90, abs=3)


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
    daily = limits_in(headers("14400", "14370", "2m59.56s")).requests_per_minute
    assert daily == pytest.approx(10, rel=0.01)
    # a window that ends for all at once
    assert limits_in(headers("100", "99", "59s")).requests_per_minute == 100
    assert limits_in(headers("100", "99", "59")).requests_per_minute == 100
    assert limits_in(headers("10000", "9995", "30s")).requests_per_minute == 10_000
    assert limits_in(headers("60", "0", "")).requests_per_minute == 60
    day = limits_in(headers("1000", "999", "23h")).requests_per_minute
    assert day == pytest.approx(1000 / 1440)
    for limit in ("none", "0", "-1", "nan", "inf"):
        assert limits_in(headers(limit, "0", "")) == Limits()
    assert limits_in(headers("-1", "-1", "", "tokens")) == Limits()
    assert limits_in(headers("60", "-1", "1h")).requests_per_minute == 60


def test_retry_after_in_either_form():
    assert retry_after_s({"retry-after": "2", "retry-after-ms": "150"}) == 0.15
    assert retry_after_s({"retry-after": "2"}) == 2.0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after_s({"retry-after": in_a_minute}) == pytest.approx(60, abs=5)
    for text in ("soon", "inf", "nan", "1e999"):
        assert retry_after_s({"retry-after": text}) is None
    assert retry_after_s({}) is None
