"""Agreement by hand, and against scikit-learn and scipy."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from facttune_ray.evaluation import agreement
from facttune_ray.evaluation.agreement import human_agreement
from facttune_ray.storage.schema import TABLES


def table(schema, rows):
    return pa.Table.from_pylist(rows, schema=schema)


FACTS_7 = table(
    TABLES["facts"],
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
    TABLES["verdicts"],
    [
        {"fact_id": "a", "supported": True, "score": 0.9},
        {"fact_id": "b", "supported": False, "score": 0.2},
        {"fact_id": "c", "supported": True, "score": 0.9},
        {"fact_id": "d", "supported": None, "score": None, "reason": "no article"},
        {"fact_id": "e", "supported": True, "score": 0.8},
        {"fact_id": "f", "supported": None, "score": None},
    ],
)


def test_human_agreement_by_hand():
    found = human_agreement(FACTS_7, VERDICTS_6)
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
    facts = table(TABLES["facts"], [{"topic": "A", "fact": "x"} | r for r in rows])
    verdicts = table(TABLES["verdicts"], rows)
    found = human_agreement(facts, verdicts)
    # true scores 0.9 0.8 0.4, false ones 0.6 0.2 0.4: 3 + 3 + 1.5 of 9 pairs in order
    assert found["auroc"] == pytest.approx(7.5 / 9)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert (found["facts"], found["responses"]) == (6, 3)
    assert (found["human_supported"], found["estimated_supported"]) == (0.5, 0.5)
    # human shares 1/2, 1, 0; mean scores 0.75, 0.6, 0.3; shares supported 1, 1/2, 0
    assert found["pearson_score"] == pytest.approx(0.15 / np.sqrt(0.5 * 0.105))
    assert found["pearson_supported"] == pytest.approx(0.5)


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.integers(0, 12, 200) / 12
    true, false = scores[labels == 1], scores[labels == 0]
    pairs = (true[:, None] > false).mean() + 0.5 * (true[:, None] == false).mean()
    assert agreement.auroc(labels, scores) == pytest.approx(pairs)


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
    assert agreement.auroc(np.array(labels), np.array(scores)) == expected


@pytest.fixture(params=["many values", "few values"])
def scored(request):
    """(labels, scores): the second ties often."""
    rng = np.random.default_rng(7)
    scores = rng.random(400)
    if request.param == "few values":
        scores = np.round(scores, 1)
    return (rng.random(400) < 0.2 + 0.6 * scores).astype(float), scores


def test_auroc_and_kappa_are_scikit_learns(scored):
    labels, scores = scored
    assert agreement.auroc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores))
    said = (scores > 0.5).astype(float)
    expected = sklearn.cohen_kappa_score(labels, said)
    assert agreement.kappa(labels, said) == pytest.approx(expected)


def test_correlations_are_scipys(scored):
    labels, scores = scored
    other = scores + 0.3 * labels
    assert agreement.spearman(scores, other) == pytest.approx(stats.spearmanr(scores, other)[0])
    assert agreement.pearson(scores, other) == pytest.approx(stats.pearsonr(scores, other)[0])


def test_reliability_has_scikit_learns_curve(scored):
    from sklearn.calibration import calibration_curve

    labels, scores = scored
    inside = scores * (1 - 1e-9)  # on a bin's edge the two count to other sides
    found = agreement.reliability(labels, inside)
    share, mean = calibration_curve(labels, inside, n_bins=10)
    assert [b["supported"] for b in found["bins"]] == pytest.approx(share)
    assert [b["confidence"] for b in found["bins"]] == pytest.approx(mean)
    facts = [b["facts"] for b in found["bins"]]
    assert found["ece"] == pytest.approx(np.average(np.abs(share - mean), weights=facts))


def test_risk_coverage_by_hand():
    # surest first: right, wrong, right, wrong: risks 0, 1/2, 1/3, 1/2
    found = agreement.risk_coverage(np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.6]))
    aurc, best = (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4, (0 + 0 + 1 / 3 + 1 / 2) / 4
    assert found["aurc"] == pytest.approx(aurc)
    assert found["prr"] == pytest.approx((1 / 2 - aurc) / (1 / 2 - best))
    assert found["curve"] == [[0.25, 0.0], [0.5, 0.5], [0.75, pytest.approx(1 / 3)], [1.0, 0.5]]


def test_risk_coverage_is_one_for_an_oracle_and_zero_for_a_constant():
    labels = np.array([1, 1, 0, 1, 0])
    assert agreement.risk_coverage(labels, labels.astype(float))["prr"] == pytest.approx(1)
    assert agreement.risk_coverage(labels, np.full(5, 0.3))["prr"] == pytest.approx(0)
    assert agreement.risk_coverage(labels, -labels.astype(float))["prr"] < 0
    assert agreement.risk_coverage(np.ones(3), np.ones(3))["prr"] is None


def test_risk_coverage_of_ties_is_the_mean_over_their_orders():
    rng = np.random.default_rng(2)
    labels, scores = rng.integers(0, 2, 30), rng.integers(0, 4, 30) / 4
    orders = []
    for _ in range(4000):
        order = np.lexsort((rng.random(30), -scores))
        orders.append((np.cumsum(1 - labels[order]) / np.arange(1, 31)).mean())
    found = agreement.risk_coverage(labels, scores)["aurc"]
    assert found == pytest.approx(np.mean(orders), abs=0.003)


def test_reward_agreement_by_hand():
    nan = float("nan")
    a = np.array([1.0, 2.0, 3.0, 1.0, 1.0, nan])
    b = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 1.0])
    found = agreement.reward_agreement({"a": a, "b": b}, np.array([0, 0, 0, 1, 1, 1]))
    # prompt 0: (1,2) and (1,3) alike, (2,3) not; prompt 1: a ties, or is unknown
    assert found["order"] == [[1.0, pytest.approx(2 / 3)], [pytest.approx(2 / 3), 1.0]]
    assert found["spearman"][0][1] == pytest.approx(stats.spearmanr(a[:5], b[:5])[0])
    none = agreement.reward_agreement({"a": a[3:5], "b": b[3:5]}, np.array([1, 1]))
    assert none["order"] == [[None, None], [None, 1.0]]
    assert none["spearman"][0] == [None, None]
