import numpy as np
import pyarrow as pa
import pytest

from facttune_ray.evaluation import metrics
from facttune_ray.schema import FACTS, RESPONSES, VERDICTS


def table(schema, rows):
    return pa.Table.from_pylist(rows, schema=schema)


RESPONSES_3 = table(
    RESPONSES,
    [
        {"response_id": "r1", "topic": "A", "text": "one two three", "abstained": False},
        {"response_id": "r2", "topic": "B", "text": "", "abstained": True},
        {"response_id": "r3", "topic": "B", "text": "four words are here"},
        {"response_id": "r4", "topic": "B", "text": None, "error": "no answer"},
    ],
)
FACTS_6 = table(
    FACTS,
    [
        {"fact_id": "a", "response_id": "r1", "topic": "A", "fact": "x", "human_label": "S"},
        {"fact_id": "b", "response_id": "r1", "topic": "A", "fact": "y", "human_label": "NS"},
        {"fact_id": "c", "response_id": "r1", "topic": "A", "fact": "x", "repeated": True},
        {"fact_id": "d", "response_id": "r3", "topic": "B", "fact": "z", "human_label": "S"},
        {"fact_id": "e", "response_id": "r3", "topic": "B", "fact": "w", "human_label": "IR"},
        {"fact_id": "f", "response_id": "r3", "topic": "B", "fact": None, "error": "timeout"},
    ],
)
VERDICTS_6 = table(
    VERDICTS,
    [
        {"fact_id": "a", "supported": True, "score": 0.9},
        {"fact_id": "b", "supported": False, "score": 0.2},
        {"fact_id": "c", "supported": True, "score": 0.9},
        {"fact_id": "d", "supported": None, "score": None, "reason": "no article"},
        {"fact_id": "e", "supported": True, "score": 0.8},
        {"fact_id": "f", "supported": None, "score": None},
    ],
)


def test_counts_by_hand():
    counts = metrics.response_counts(RESPONSES_3, FACTS_6, VERDICTS_6).to_pylist()
    r1, r2, r3, r4 = counts
    keys = ("correct", "incorrect", "unknown", "facts", "repeated", "total_facts", "words")
    assert [r1[k] for k in keys] == [1, 1, 0, 2, 1, 3, 3]
    assert [r3[k] for k in keys] == [1, 0, 1, 2, 0, 2, 4]
    assert (r2["no_facts"], r2["failed"]) == (True, False)
    assert r4["failed"]


def test_summary_by_hand():
    found = metrics.summarise(metrics.response_counts(RESPONSES_3, FACTS_6, VERDICTS_6))
    values = {k: v["value"] for k, v in found.items() if isinstance(v, dict)}
    assert values == pytest.approx(
        {
            "correct": 2 / 3,  # the failed response is left out
            "incorrect": 1 / 3,
            "error_rate": 1 / 3,
            "no_facts": 1 / 3,
            "repeated": 1 / 5,
            "unknown": 1 / 4,
            "length": 7 / 3,
        }
    )
    assert (found["topics"], found["responses"], found["failed"]) == (2, 3, 1)


def test_nothing_judged_is_null_not_zero():
    none = VERDICTS_6.slice(0, 0)
    found = metrics.summarise(metrics.response_counts(RESPONSES_3, FACTS_6, none))
    assert found["error_rate"] == {"value": None, "low": None, "high": None}
    assert found["correct"]["value"] == 0


def counts_of(topics):
    """Counts table from {topic: [(correct, incorrect), ...]}."""
    rows = [(t, c, i) for t, pairs in topics.items() for c, i in pairs]
    zeros = [0] * len(rows)
    return pa.table(
        {
            "topic": [r[0] for r in rows],
            "correct": [r[1] for r in rows],
            "incorrect": [r[2] for r in rows],
            "facts": [r[1] + r[2] for r in rows],
            "total_facts": [r[1] + r[2] for r in rows],
            **dict.fromkeys(("unknown", "repeated", "words"), zeros),
            **dict.fromkeys(("no_facts", "failed"), [False] * len(rows)),
        }
    )


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        rates = rng.beta(4, 6, size=60)  # mean 0.4; topics differ, responses of one agree
        drawn = {f"t{k}": [(5 - w, w) for w in rng.binomial(5, p, 4)] for k, p in enumerate(rates)}
        found = metrics.summarise(counts_of(drawn), resamples=400, seed=trial)["error_rate"]
        hits += found["low"] <= 0.4 <= found["high"]
    assert 0.90 <= hits / 200 <= 0.985


def test_comparison_is_paired_by_topic():
    base = counts_of({"A": [(1, 1)], "B": [(3, 1)], "only here": [(9, 9)]})
    tuned = counts_of({"A": [(2, 0)], "B": [(3, 1)]})
    found = metrics.compare(base, tuned)
    # common topics: 2 of 6 wrong before, 1 of 6 after
    assert found["error_rate_reduction"]["value"] == pytest.approx(0.5)
    assert found["correct_change"]["value"] == pytest.approx(0.5)
    assert found["incorrect_change"]["value"] == pytest.approx(-0.5)
    assert found["error_rate_reduction"]["low"] <= 0.5 <= found["error_rate_reduction"]["high"]


def test_human_agreement_by_hand():
    found = metrics.human_agreement(FACTS_6, VERDICTS_6, RESPONSES_3)
    assert (found["facts"], found["no_verdict"], found["no_article"]) == (2, 1, 1)
    assert (found["auroc"], found["accuracy"], found["abstained"]) == (1.0, 1.0, 1)
    assert found["pearson_score"] is None  # one response has no spread


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], 1.0),
        ([1, 0], [0.5, 0.5], 0.5),
        ([1, 1, 0], [0.9, 0.1, 0.5], 0.5),
        ([1, 1], [0.9, 0.1], None),
    ],
)
def test_auroc(labels, scores, expected):
    assert metrics.auroc(np.array(labels), np.array(scores)) == expected
