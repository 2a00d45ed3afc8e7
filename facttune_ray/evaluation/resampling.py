"""Intervals and tests over topics. Pure: arrays in, numbers out.

    interval(value, drawn, topics=100)        ->  {"value": 0.45, "low": 0.43, "high": 0.47}
    swap_test(a_TK, b_TK, statistic, seed=0)  ->  0.0004
    holm({"fs": 0.01, "mc": 0.04})            ->  {"fs": 0.02, "mc": 0.04}

Topics are the unit: responses of one topic are not independent (Davison & Hinkley 1997, section
3.8). Array names carry shapes: T topics, K sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

CELLS = 1 << 19  # of a resampling matrix held at once: 4 MB, twice
SWAPS = 9999  # random relabellings of a test, where not all of them are tried
LEAST = 6  # topics of an interval: of 3, 4 and 5 it holds the truth 80, 88 and 91 times in 100
Interval = dict[str, float | None]


def resampled(sums_TK: np.ndarray, resamples: int, seed: int, cells: int = CELLS) -> np.ndarray:
    """[R, K]: the sums over T topics drawn with replacement, R times; NaN without topics.
    `cells` bounds the numbers held at once and changes nothing else."""
    topics = len(sums_TK)
    out_RK = np.full((resamples, sums_TK.shape[1]), np.nan)
    if not topics:
        return out_RK
    rng, rows = np.random.default_rng(seed), max(1, cells // topics)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        times_RT = rng.multinomial(topics, np.full(topics, 1 / topics), size=size)
        out_RK[start : start + size] = times_RT @ sums_TK
    return out_RK


def interval(value: float, drawn_R: np.ndarray, topics: int) -> Interval:
    """{value, low, high}: the 95% expanded percentile interval (Hesterberg 2015, section 4.3).

    Percentiles of resampled sums are too narrow by the factor sqrt((T - 1) / T) and know no
    t distribution; the expanded interval takes the percentiles Phi(-+ sqrt(T / (T - 1)) t), t being
    the 97.5% point with T - 1 degrees of freedom: 2.5 and 97.5 for many topics, 2.1 and 97.9 for
    30. Draws without a figure (NaN) are left out, infinite ones count: an end among them is null.
    Both ends are null below LEAST topics, all where nothing could be measured.
    """
    known = drawn_R[~np.isnan(drawn_R)]
    low, high = np.nan, np.nan
    if len(known) and topics >= LEAST:
        wide = math.sqrt(topics / (topics - 1)) * t_quantile(topics - 1)
        tail = 100 * NormalDist().cdf(-wide)
        with np.errstate(invalid="ignore"):  # between an infinite draw and a finite one
            low, high = np.percentile(known, [tail, 100 - tail])
    found = {"value": value, "low": low, "high": high}
    return {k: float(v) if np.isfinite(v) else None for k, v in found.items()}


def t_quantile(freedom: int) -> float:
    """97.5% point of Student's t by Cornish and Fisher's series (Abramowitz & Stegun 26.7.5), to
    0.001 from 5 degrees of freedom on."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


def wilson(share: float, trials: int) -> Interval:
    """{value, low, high}: Wilson's 95% interval (1927) of a share of trials; a bootstrap's would be
    a point where all of them agree. All null without trials."""
    if not trials:
        return {"value": None, "low": None, "high": None}
    z = NormalDist().inv_cdf(0.975)
    middle = share + z * z / (2 * trials)
    wide = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    low, high = ((middle + side) / (1 + z * z / trials) for side in (-wide, wide))
    return {"value": share, "low": max(0.0, low), "high": min(1.0, high)}


def swap_test(
    a_TK: np.ndarray, b_TK: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> float | None:
    """p of a paired randomisation test, two-sided: is b apart from a by more than relabelling
    within topics would give? (Fisher 1935; Dror et al., ACL 2018, section 3.2)

    `statistic` maps sums [R, K] to figures [R]. Up to 13 topics all 2^T relabellings are tried and
    p is the share at least as far apart; beyond, (1 + hits) / (1 + SWAPS). None without a figure.
    """
    topics = len(a_TK)
    total_a, total_b = a_TK.sum(0, keepdims=True), b_TK.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = np.abs(statistic(total_b) - statistic(total_a))[0]
    if not topics or not np.isfinite(seen):
        return None
    exact = topics <= 13
    rng, size = np.random.default_rng(seed), 2**topics if exact else SWAPS
    hits, rows = 0, max(1, CELLS // topics)
    for start in range(0, size, rows):
        some = min(rows, size - start)
        if exact:
            swap_RT = (np.arange(start, start + some)[:, None] >> np.arange(topics)) & 1
        else:
            swap_RT = rng.integers(0, 2, (some, topics), dtype=np.int8)
        moved_RK = swap_RT @ (b_TK - a_TK)
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.abs(statistic(total_b - moved_RK) - statistic(total_a + moved_RK))
        hits += int((apart >= seen * (1 - 1e-12) - 1e-12).sum())  # equal but for rounding
    return hits / size if exact else (1 + hits) / (1 + size)


def sign_test(wins: int, losses: int) -> float | None:
    """p of wins and losses under an even chance, two-sided and exact; ties play no part."""
    n = wins + losses
    if not n:
        return None
    tail, term = 0, 1  # sums of binomial coefficients, as whole numbers
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """p values corrected for their number (Holm 1979): the k-th smallest of m times m - k + 1,
    never below the one before. A null one is no test."""
    known = sorted((value, name) for name, value in p.items() if value is not None)
    out: dict[str, float | None] = dict.fromkeys(p)
    least = 0.0
    for k, (value, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) - k) * value))
        out[name] = least
    return out
