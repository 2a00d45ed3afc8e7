"""Limits and pauses that the headers of a reply state.

limits_in({"x-ratelimit-limit-requests": "500"})  ->  Limits(requests_per_minute=500)
retry_after_s({"retry-after": "2"})               ->  2.0
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from facttune_ray.llm.limiter import Limits

MINUTE_S, DAY_S = 65.0, 86400.0  # longest `reset` of a limit per minute; of any limit
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def limits_in(headers: Mapping[str, str]) -> Limits:
    """The limits per minute in `x-ratelimit-*`; None where a header is missing."""
    return Limits(_limit_of(headers, "requests"), _limit_of(headers, "tokens"))


def count_in(headers: Mapping[str, str], name: str) -> float | None:
    """The count in `x-ratelimit-{name}`; None when it is missing or makes no sense."""
    try:
        number = float(headers[f"x-ratelimit-{name}"])
    except (KeyError, ValueError):
        return None
    return number if 0 <= number < math.inf else None


def _limit_of(headers: Mapping[str, str], kind: str) -> float | None:
    limit, left = count_in(headers, f"limit-{kind}"), count_in(headers, f"remaining-{kind}")
    reset_s = duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
    if not limit:
        return None
    # `reset` says when the used part is back (token bucket) or when the whole limit is (window).
    # Within a minute of use it tells a limit per minute from a limit per day.
    if left is None or left >= limit or reset_s <= MINUTE_S:
        return limit
    return limit * 60 / min(DAY_S, reset_s * limit / (limit - left))


def duration_s(text: str) -> float:
    """Seconds in `7m12s`, `120ms`, `1.5s`, `90`, or until a Unix time or an ISO date; 0 for any
    other text."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if number < 1e9:
            return number
        return max(0.0, (number / 1000 if number > 1e11 else number) - time.time())
    with contextlib.suppress(ValueError):
        return max(0.0, datetime.fromisoformat(text).timestamp() - time.time())
    return sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+\.?\d*)(ms|s|m|h|d)", text))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds in `retry-after-ms` (OpenAI) or `retry-after` (a number or a date); None without a
    valid header."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        with contextlib.suppress(ValueError, OverflowError):
            try:
                seconds = float(text) * scale
            except ValueError:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            if math.isfinite(seconds):
                return max(0.0, seconds)
    return None
