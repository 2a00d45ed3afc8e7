"""How far a model agrees with itself, from the classes of its sampled answers (paper, 3.2).

    confidence([0, 0, 1, 0])  ->  {"neg_ent": -0.562, "max_conf": 0.75, "exp_conf": 0.625}

p_c is the share of class c among the answers that are in a class; an empty answer (class -1) is
in none, so four empty answers give no confidence instead of 1.0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

CONFIDENCES = ("neg_ent", "max_conf", "exp_conf")


def confidence(classes: list[int] | None) -> dict[str, float] | None:
    """neg_ent = sum p ln p; max_conf = max p; exp_conf = sum p^2. None: nothing was answered."""
    counts = Counter(c for c in classes or [] if c >= 0)
    total = sum(counts.values())
    if not total:
        return None
    shares = [n / total for n in counts.values()]
    return {
        "neg_ent": math.fsum(p * math.log(p) for p in shares) + 0.0,
        "max_conf": max(shares),
        "exp_conf": math.fsum(p * p for p in shares),
    }


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def confidence_of(classes):
    import pyarrow as pa

    found = [confidence(c) or {} for c in classes.to_pylist()]
    return {n: pa.array([f.get(n) for f in found], pa.float64()) for n in CONFIDENCES}
