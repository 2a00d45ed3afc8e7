import time

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
        {"response_id": "r1", "topic": "A", "text": "one two three"},
        {"response_id": "r2", "topic": "B", "text": ""},
        {"response_id": "r3", "topic": "B", "text": "four words are here"},
        {"response_id": "r4", "topic": "B", "text": None, "error": "no answer"},
    ],
)
FACTS_7 = table(
    FACTS,
    [
        {"fact_id": "a", "response_id": "r1", "topic": "A", "fact": "x", "human_label": "S"},
        {"fact_id": "b", "response_id": "r1", "topic": "A", "fact": "y", "human_label": "NS"},
        {"fact_id": "c", "response_id": "r1", "topic": "A", "fact": "x", "repeated": True},
        {"fact_id": "d", "response_id": "r3", "topic": "B", "fact": "z", "human_label": "S"},
        {"fact_id": "e", "response_id": "r3", "topic": "B", "fact": "w", "human_label": "IR"},
        {"fact_id": "f", "response_id": "r3", "topic": "B", "fact": None, "error": "timeout"},
        {"fact_id": "g", "response_id": "r2", "topic": "B", "fact": None, "abstained": True},
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
    counts = metrics.response_counts(RESPONSES_3, FACTS_7, VERDICTS_6).to_pylist()
    r1, r2, r3, r4 = counts
    keys = ("correct", "incorrect", "unknown", "facts", "repeated", "total_facts", "words")
    assert [r1[k] for k in keys] == [1, 1, 0, 2, 1, 3, 3]
    assert [r3[k] for k in keys] == [1, 0, 1, 2, 0, 2, 4]
    assert (r2["no_facts"], r2["abstained"], r2["failed"]) == (True, True, False)
    assert (r1["supported"], r1["judged"], r1["abstained"]) == (2, 3, False)
    assert (r3["supported"], r3["judged"]) == (1, 1)
    assert r4["failed"]


def test_factscore_by_hand():
    counts = metrics.response_counts(RESPONSES_3, FACTS_7, VERDICTS_6)
    found = metrics.factscore(counts, gamma=2.0)
    # r1: 2 of 3, above gamma; r3: 1 of 1, penalised by exp(1 - 2/1); r2 abstained, r4 failed
    assert found["factscore"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["factscore_lp"] == pytest.approx((2 / 3 + np.exp(-1)) / 2)
    assert found["respond_ratio"] == pytest.approx(2 / 3)
    assert (found["facts_per_response"], found["abstained"]) == (2.5, 1)
    assert metrics.factscore(counts, gamma=0.0)["factscore_lp"] == pytest.approx(5 / 6)
    none = metrics.factscore(counts.slice(1, 1), gamma=10.0)
    assert (none["factscore"], none["respond_ratio"], none["facts_per_response"]) == (None, 0, None)


def random_tables(responses, facts, seed=0):
    """Facts spread at random over responses, with nulls, repeats and missing verdicts."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, responses, facts)
    ids = [f"f{i}" for i in range(facts)]
    chance = rng.random((4, facts))
    stated = [None if c < 0.05 else "x" for c in chance[0]]
    table_of_facts = pa.table(
        {
            "fact_id": ids,
            "response_id": [f"r{i}" for i in of],
            "topic": [f"t{i % 7}" for i in of],
            "fact": pa.array(stated, pa.string()),
            "repeated": [None if c < 0.1 else c > 0.8 for c in chance[1]],
            "error": pa.array(["timeout" if s is None else None for s in stated], pa.string()),
            "abstained": pa.nulls(facts, pa.bool_()),
        }
    )
    supported = [None if c < 0.1 else c > 0.5 for c in chance[2]]
    reasons = pa.array(["no article" if c < 0.02 else None for c in chance[3]], pa.string())
    verdicts = pa.table({"fact_id": ids, "supported": supported, "reason": reasons})
    verdicts = verdicts.take(rng.permutation(facts)[: int(0.9 * facts)])
    table_of_responses = pa.table(
        {
            "response_id": [f"r{i}" for i in range(responses)],
            "topic": [f"t{i % 7}" for i in range(responses)],
            "text": pa.array(["some  words\nhere "] * responses),
            "error": pa.array(["broken" if i % 11 == 0 else None for i in range(responses)]),
        }
    )
    return table_of_responses, table_of_facts, verdicts


def test_counts_equal_those_counted_one_by_one():
    responses, facts, verdicts = random_tables(300, 1200)
    judged = {v["fact_id"]: v["supported"] for v in verdicts.to_pylist()}
    without = {v["fact_id"] for v in verdicts.to_pylist() if v["reason"]}
    for row, response in zip(
        metrics.response_counts(responses, facts, verdicts).to_pylist(),
        responses.to_pylist(),
        strict=True,
    ):
        mine = [f for f in facts.to_pylist() if f["response_id"] == response["response_id"]]
        stated = [f for f in mine if f["fact"] is not None]
        distinct = [judged.get(f["fact_id"]) for f in stated if not f["repeated"]]
        expected = {
            "response_id": response["response_id"],
            "topic": response["topic"],
            "correct": distinct.count(True),
            "incorrect": distinct.count(False),
            "unknown": distinct.count(None),
            "abstained": False,
            "no_article": any(f["fact_id"] in without for f in mine),
            "supported": sum(judged.get(f["fact_id"]) is True for f in stated),
            "judged": sum(judged.get(f["fact_id"]) is not None for f in stated),
            "facts": len(distinct),
            "repeated": len(stated) - len(distinct),
            "total_facts": len(stated),
            "no_facts": not stated,
            "words": 3,
            "failed": response["error"] is not None or (len(mine) > 0 and not stated),
        }
        assert row == expected


def test_a_hundred_thousand_facts_in_a_second():
    tables = random_tables(10_000, 100_000)
    best = float("inf")
    for _ in range(3):  # the best of three: others may be at work on this machine
        started = time.monotonic()
        metrics.response_counts(*tables)
        best = min(best, time.monotonic() - started)
    assert best < 1


def test_facts_of_an_unknown_response_are_a_bug():
    with pytest.raises(ValueError, match="2 facts"):
        metrics.response_counts(RESPONSES_3.slice(0, 1), FACTS_7.slice(2, 3), VERDICTS_6)


def test_summary_by_hand():
    found = metrics.summarise(metrics.response_counts(RESPONSES_3, FACTS_7, VERDICTS_6))
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
    found = metrics.summarise(metrics.response_counts(RESPONSES_3, FACTS_7, none))
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
            **dict.fromkeys(("no_facts", "no_article", "failed"), [False] * len(rows)),
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
    base = counts_of({"A": [(1, 3)], "B": [(3, 1)], "only here": [(9, 9)]})
    tuned = counts_of({"A": [(4, 0)], "B": [(3, 1)]})
    found = metrics.compare(base, tuned)
    # common topics: 4 of 8 wrong before, 1 of 8 after
    assert found["error_rate_reduction"]["value"] == pytest.approx(0.75)
    assert found["correct_change"]["value"] == pytest.approx(1.5)
    assert found["incorrect_change"]["value"] == pytest.approx(-1.5)
    # drawn topics: A A (3 wrong to 0), B B (1 to 1), or both
    assert found["error_rate_reduction"]["low"] == pytest.approx(0.0)
    assert found["error_rate_reduction"]["high"] == pytest.approx(1.0)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(3)
    rates = rng.beta(2, 2, 80)  # topics differ much; tuning makes each a little better
    wrong = [(int(30 * r), int(30 * r * 0.9)) for r in rates]
    base = counts_of({f"t{i}": [(30 - a, a)] for i, (a, _) in enumerate(wrong)})
    tuned = counts_of({f"t{i}": [(30 - b, b)] for i, (_, b) in enumerate(wrong)})
    found = metrics.compare(base, tuned)["incorrect_change"]
    alone = [metrics.summarise(c)["incorrect"] for c in (base, tuned)]
    assert found["high"] - found["low"] < 0.5 * (alone[1]["high"] - alone[1]["low"])
    assert found["high"] < 0 and alone[1]["high"] > alone[0]["low"]


def test_no_common_topic_or_no_wrong_fact_in_base_is_null():
    base, tuned = counts_of({"A": [(2, 0)]}), counts_of({"A": [(1, 1)], "B": [(1, 1)]})
    assert metrics.compare(base, tuned)["error_rate_reduction"]["value"] is None
    apart = metrics.compare(base, counts_of({"B": [(1, 1)]}))
    assert all(v == {"value": None, "low": None, "high": None} for v in apart.values())


def test_interval_is_that_of_the_listed_resamples():
    counts = counts_of({f"t{i}": [(i, 5), (2, i % 3)] for i in range(9)})
    found = metrics.summarise(counts, resamples=50, seed=4)
    times = np.random.default_rng(4).multinomial(9, np.full(9, 1 / 9), size=50)
    correct = np.array([i + 2 for i in range(9)])
    low, high = np.percentile(times @ correct / (times.sum(1) * 2), [2.5, 97.5])
    assert found["correct"] == pytest.approx({"value": 54 / 18, "low": low, "high": high})
    sums = np.arange(18.0).reshape(9, 2)
    few = metrics._resampled(sums, 50, 4, cells=18)  # two resamples at a time
    assert (few == times @ sums).all()


def test_only_failed_responses_leave_nothing():
    found = metrics.summarise(metrics.response_counts(*(t.slice(0, 0) for t in TABLES_3)))
    assert (found["topics"], found["responses"], found["failed"]) == (0, 0, 0)
    failed = metrics.response_counts(RESPONSES_3.slice(3, 1), FACTS_7.slice(0, 0), VERDICTS_6)
    found = metrics.summarise(failed)
    assert (found["topics"], found["responses"], found["failed"]) == (0, 0, 1)
    assert found["length"] == {"value": None, "low": None, "high": None}


TABLES_3 = (RESPONSES_3, FACTS_7, VERDICTS_6)


def test_human_agreement_by_hand():
    found = metrics.human_agreement(FACTS_7, VERDICTS_6)
    assert (found["facts"], found["no_verdict"], found["no_article"]) == (2, 1, 1)
    assert (found["auroc"], found["accuracy"], found["abstained"]) == (1.0, 1.0, 1)
    assert found["pearson_score"] is None  # one response has no spread


LABELLED = [  # response, human label, score, supported
    ("r1", "S", 0.9, True),
    ("r1", "NS", 0.6, True),
    ("r2", "S", 0.8, True),
    ("r2", "S", 0.4, False),
    ("r2", "IR", 0.1, False),
    ("r3", "NS", 0.2, False),
    ("r3", "NS", 0.4, False),
]


def test_agreement_over_responses_by_hand():
    names = ("response_id", "human_label", "score", "supported")
    rows = [dict(zip(names, r, strict=True)) | {"fact_id": str(i)} for i, r in enumerate(LABELLED)]
    facts = table(FACTS, [{"topic": "A", "fact": "x"} | r for r in rows])
    verdicts = table(VERDICTS, rows)
    found = metrics.human_agreement(facts, verdicts)
    # true scores 0.9 0.8 0.4, false ones 0.6 0.2 0.4: 3 + 3 + 1.5 of 9 pairs in order
    assert found["auroc"] == pytest.approx(7.5 / 9)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert (found["facts"], found["responses"]) == (6, 3)
    assert (found["human_supported"], found["estimated_supported"]) == (0.5, 0.5)
    # human shares 1/2, 1, 0; mean scores 0.75, 0.6, 0.3; shares supported 1, 1/2, 0
    assert found["pearson_score"] == pytest.approx(0.15 / np.sqrt(0.5 * 0.105))
    assert found["pearson_supported"] == pytest.approx(0.5)
    lower = metrics.human_agreement(facts, verdicts, threshold=0.4)
    assert lower["accuracy"] == pytest.approx(4 / 6)  # two of the false ones pass now
    assert lower["estimated_supported"] == pytest.approx(5 / 6)


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.integers(0, 12, 200) / 12
    true, false = scores[labels == 1], scores[labels == 0]
    pairs = (true[:, None] > false).mean() + 0.5 * (true[:, None] == false).mean()
    assert metrics.auroc(labels, scores) == pytest.approx(pairs)


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
