"""Confidences of units (questions and entities), from rows of the table `classes`.

units = by_id([{"unit_id": "77d0", "classes": [0, 0, 1, 0], "originals": ["the cello"],
                "shares": [0.75], "error": None}])
of_question({"question_id": "77d0", "answer": "the cello"}, units)
->  {"neg_ent": -0.562, "max_conf": 0.75, "exp_conf": 0.625, "samp_conf": 0.75, ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from facttune_ray.scoring.confidence import CONFIDENCES, confidence_of

Unit = Mapping[str, Any]
UNIT_COLUMNS = (*CONFIDENCES, "samp_conf")


def by_id(rows: Sequence[dict]) -> dict[str, dict]:
    """unit_id -> its confidences, None for a unit whose answers are all empty."""
    import pyarrow as pa

    classes = pa.array([r["classes"] for r in rows], pa.list_(pa.int32()))
    values = {name: column.to_pylist() for name, column in confidence_of(classes).items()}
    return {
        row["unit_id"]: {
            **{name: values[name][i] for name in CONFIDENCES},
            "shares": dict(zip(row["originals"] or [], row["shares"] or [], strict=True)),
            "error": row["error"],
        }
        for i, row in enumerate(rows)
    }


def of_question(question: Mapping | None, units: Mapping[str, dict]) -> Unit:
    """The confidences of a fact's question; {} for a fact without question."""
    if question is None:
        return {}
    return of_original(units.get(question["question_id"]), question["answer"])


def of_original(unit: dict | None, original: str | None) -> Unit:
    """The unit's confidences and, as `samp_conf`, the share of this original."""
    return unit | {"samp_conf": unit["shares"].get(original)} if unit else {}
