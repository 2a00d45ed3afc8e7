"""A model's confidence, from the equivalence classes of its sampled answers (FactTune, 3.2).

    confidence([0, 0, 1, 0])  ->  {"neg_ent": -0.562, "max_conf": 0.75, "exp_conf": 0.625}

p_c is the share of class c among the non-empty answers. An empty answer has class -1, which is no
class, so four empty answers give no confidence instead of 1.0.

    neg_ent = sum p ln p        max_conf = max p        exp_conf = sum p^2
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CONFIDENCES = ("neg_ent", "max_conf", "exp_conf")


def confidence(classes: list[int] | None) -> dict[str, float] | None:
    """The confidences of one unit; None when all answers are empty."""
    columns = confidence_of(pa.array([classes], pa.list_(pa.int32())))
    values = {name: column[0].as_py() for name, column in columns.items()}
    return None if values["max_conf"] is None else values


def confidence_of(classes: pa.ListArray) -> dict[str, pa.Array]:
    """The confidences of U units, given their lists of classes: three columns of U float64, null
    for a unit whose answers are all empty."""
    units = len(classes)
    lengths_U = pc.fill_null(pc.list_value_length(classes), 0).to_numpy(zero_copy_only=False)
    unit_N = np.repeat(np.arange(units), lengths_U)
    class_N = pc.list_flatten(classes).to_numpy(zero_copy_only=False)
    kept = class_N >= 0
    unit_N, class_N = unit_N[kept], class_N[kept].astype(np.int64)
    classes_max = int(class_N.max()) + 1 if len(class_N) else 1
    # the P pairs (unit, class) that occur, in order, with their counts
    pair_P, count_P = np.unique(unit_N * classes_max + class_N, return_counts=True)
    unit_P = pair_P // classes_max
    total_U = np.bincount(unit_N, minlength=units)
    p_P = count_P / total_U[unit_P]
    known = total_U > 0
    max_U = np.zeros(units)
    np.maximum.at(max_U, unit_P, p_P)
    columns = {
        "neg_ent": np.bincount(unit_P, p_P * np.log(p_P), minlength=units),
        "max_conf": max_U,
        "exp_conf": np.bincount(unit_P, p_P * p_P, minlength=units),
    }
    return {name: pa.array(values, mask=~known) for name, values in columns.items()}


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean, rounded to 12 digits so that equal means of different terms are equal
    floats; None without values."""
    terms = list(values)
    return round(math.fsum(terms) / len(terms), 12) if terms else None
