"""Preferences among the responses of one prompt.

count_pairs([0.5, 1.0, 1.0, None], threshold=0.0)  ->  2
"""

from __future__ import annotations

from collections.abc import Sequence


def count_pairs(rewards: Sequence[float | None], threshold: float) -> int:
    """Pairs i < j whose rewards differ by more than `threshold`; ties, null and NaN never."""
    known = [r for r in rewards if r is not None]
    return sum(abs(a - b) > threshold for i, a in enumerate(known) for b in known[i + 1 :])
