"""Preference pairs among the responses of one prompt.

pairs([0.5, 1.0, 1.0, None])            ->  [(1, 0), (2, 0)]      (winner, loser)
pairs([0.0, 0.5, 1.0], most=1)          ->  [(2, 0)]
count_pairs([0.5, 1.0, 1.0, None])      ->  2
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def pairs(
    rewards: Sequence[float | None], threshold: float = 0.0, most: int = 0
) -> list[tuple[int, int]]:
    """(winner, loser) for all i < j whose rewards differ by more than `threshold`.

    Ties make no pair; null and NaN rewards are in no pair. `most`: keep only so many pairs, those
    with the largest difference; 0 keeps all.
    """
    known = [(i, r) for i, r in enumerate(rewards) if r is not None and not math.isnan(r)]
    candidates = [
        (i, j, abs(a - b)) if a > b else (j, i, abs(a - b))
        for k, (i, a) in enumerate(known)
        for j, b in known[k + 1 :]
        if abs(a - b) > threshold
    ]
    if most and len(candidates) > most:
        kept = sorted(range(len(candidates)), key=lambda p: (-candidates[p][2], p))[:most]
        candidates = [candidates[p] for p in sorted(kept)]
    return [(winner, loser) for winner, loser, _ in candidates]


def count_pairs(rewards: Sequence[float | None], threshold: float = 0.0, most: int = 0) -> int:
    """The number of `pairs`."""
    return len(pairs(rewards, threshold, most))
