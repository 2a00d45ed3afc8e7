"""Intervals and tests: by hand, against scipy, and their coverage in simulations."""

import numpy as np
import pytest
from scipy import stats

from facttune_ray.evaluation import metrics, resampling


@pytest.mark.parametrize("freedom", [5, 9, 29, 124, 5000])
def test_t_quantile_is_scipys(freedom):
    expected = stats.t.ppf(0.975, freedom)
    assert resampling.t_quantile(freedom) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("wins", "trials"), [(0, 1), (10, 10), (7.5, 20), (50, 100)])
def test_wilson_is_scipys(wins, trials):
    found = resampling.wilson(wins / trials, trials)
    if wins == int(wins):
        expected = stats.binomtest(int(wins), trials).proportion_ci(method="wilson")
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected))
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert resampling.wilson(0.0, 0) == {"value": None, "low": None, "high": None}


def test_interval_is_that_of_the_listed_resamples(counts_of):
    counts = counts_of({f"t{i}": [(i, 5), (2, i % 3)] for i in range(9)})
    found = metrics.summarise(counts, resamples=50, seed=4)
    times = np.random.default_rng(4).multinomial(9, np.full(9, 1 / 9), size=50)
    correct = np.array([i + 2 for i in range(9)])
    tail = 100 * stats.norm.cdf(-np.sqrt(9 / 8) * resampling.t_quantile(8))
    low, high = np.percentile(times @ correct / (times.sum(1) * 2), [tail, 100 - tail])
    assert found["correct"] == pytest.approx({"value": 54 / 18, "low": low, "high": high})
    sums = np.arange(18.0).reshape(9, 2)
    few = resampling.resampled(sums, 50, 4, cells=18)  # two resamples at a time
    assert (few == times @ sums).all()


def test_fewer_than_six_topics_have_no_interval(counts_of):
    found = metrics.summarise(counts_of({f"t{i}": [(3, 1)] for i in range(5)}))["error_rate"]
    assert found == {"value": 0.25, "low": None, "high": None}
    six = metrics.summarise(counts_of({f"t{i}": [(3, 1)] for i in range(6)}))["error_rate"]
    assert six == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_an_infinite_draw_counts_and_an_undefined_one_does_not():
    drawn = np.concatenate([np.full(50, -np.inf), np.linspace(0, 1, 950), np.full(500, np.nan)])
    found = resampling.interval(0.5, drawn, topics=100)
    assert found["low"] is None and 0.95 < found["high"] < 1
    finite = resampling.interval(0.5, drawn[50:], topics=100)
    assert 0 < finite["low"] < 0.05 and finite["high"] == pytest.approx(found["high"], abs=0.01)


TRIALS = 1000  # of a study: its own error is 0.7%


@pytest.mark.parametrize(("topics", "least"), [(6, 0.91), (20, 0.93), (100, 0.93)])
def test_intervals_cover_the_truth_93_to_97_times_in_100(topics, least):
    """Topics differ in difficulty and in facts a response; responses of a topic agree. The tuned
    model halves every topic's error rate."""
    hits = {"error_rate": 0, "correct": 0, "cut": 0, "change": 0}
    for trial in range(TRIALS):
        rng = np.random.default_rng([topics, trial])
        rates, facts = rng.beta(4, 6, topics), rng.poisson(9, topics) + 1  # means 0.4 and 10
        stated = np.repeat(facts[:, None], 2, axis=1)
        wrong = [rng.binomial(stated, share * rates[:, None]).sum(1) for share in (1.0, 0.5)]
        both = np.stack([2 * facts, wrong[0], wrong[1], np.full(topics, 2)], axis=1).astype(float)
        drawn = resampling.resampled(both, 400, trial)

        def inside(figure, truth, both=both, drawn=drawn):
            found = resampling.interval(figure(both.sum(0)[None])[0], figure(drawn), topics)
            return found["low"] <= truth <= found["high"]

        hits["error_rate"] += inside(lambda s: s[:, 1] / s[:, 0], 0.4)
        hits["correct"] += inside(lambda s: (s[:, 0] - s[:, 1]) / s[:, 3], 6.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            hits["cut"] += inside(lambda s: 1 - s[:, 2] / s[:, 1], 0.5)
        hits["change"] += inside(lambda s: (s[:, 1] - s[:, 2]) / s[:, 3], 2.0)
    assert all(least <= n / TRIALS <= 0.97 for n in hits.values()), hits


def test_interval_of_the_whole_path_covers_the_truth(counts_of):
    hits = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        rates = rng.beta(4, 6, size=60)  # mean 0.4; topics differ, responses of one agree
        made = {f"t{k}": [(5 - w, w) for w in rng.binomial(5, p, 4)] for k, p in enumerate(rates)}
        found = metrics.summarise(counts_of(made), resamples=400, seed=trial)["error_rate"]
        hits += found["low"] <= 0.4 <= found["high"]
    assert 0.92 <= hits / 200 <= 0.98


def mean(sums):
    return sums[:, 0] / sums[:, 1]


@pytest.mark.parametrize("topics", [6, 40])
def test_swap_test_is_scipys_permutation_test(topics):
    rng = np.random.default_rng(topics)
    a = rng.normal(size=topics)
    b = a + rng.normal(0.45, 1, size=topics)
    one = np.ones(topics)
    found = resampling.swap_test(np.stack([a, one], 1), np.stack([b, one], 1), mean, seed=0)
    expected = stats.permutation_test(
        (b, a),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=1,
    ).pvalue
    assert found == pytest.approx(expected, abs=1e-9 if topics == 6 else 0.015)
    assert 0.005 < found < 0.9


def test_swap_test_of_equal_models_and_without_topics():
    same = np.ones((5, 2))
    assert resampling.swap_test(same, same, mean, seed=0) == 1.0
    assert resampling.swap_test(np.zeros((0, 2)), np.zeros((0, 2)), mean, seed=0) is None
    assert resampling.swap_test(np.zeros((3, 2)), np.zeros((3, 2)), mean, seed=0) is None


def test_swap_test_keeps_its_level():
    """For equal models, p is below 0.05 about one time in twenty."""
    low = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        a, b = rng.normal(size=(2, 12, 1))
        one = np.ones((12, 1))
        low += resampling.swap_test(np.hstack([a, one]), np.hstack([b, one]), mean, trial) <= 0.05
    assert 0.02 <= low / 300 <= 0.08


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (3, 0), (7, 7), (12, 3), (40, 60), (900, 800)]
)
def test_sign_test_is_scipys(wins, losses):
    found = resampling.sign_test(wins, losses)
    if not wins + losses:
        assert found is None
    else:
        assert found == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)


def test_holm_by_hand():
    found = resampling.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert found == {"a": pytest.approx(0.03), "c": 0.06, "b": 0.06, "d": None}
    assert resampling.holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert resampling.holm({}) == {}
