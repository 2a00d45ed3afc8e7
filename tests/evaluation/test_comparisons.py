"""Two models on the same topics, by hand."""

import numpy as np
import pyarrow as pa
import pytest

from facttune_ray.evaluation import comparisons, metrics


def test_comparison_is_paired_by_topic(counts_of):
    names = "abcABC"
    base = counts_of({t: [(1, 3) if t.islower() else (3, 1)] for t in names} | {"here": [(9, 9)]})
    tuned = counts_of({t: [(4, 0) if t.islower() else (3, 1)] for t in names})
    found = comparisons.compare(base, tuned)
    # common topics: 12 of 24 wrong before, 3 of 24 after
    assert found["error_rate_reduction"]["value"] == pytest.approx(0.75)
    assert found["correct_change"]["value"] == pytest.approx(1.5)
    assert found["incorrect_change"]["value"] == pytest.approx(-1.5)
    # drawn topics: all of a to c (3 wrong to 0), all of A to C (1 to 1), or some of both
    assert found["error_rate_reduction"]["low"] == pytest.approx(0.0)
    assert found["error_rate_reduction"]["high"] == pytest.approx(1.0)


def test_pairing_narrows_the_interval(counts_of):
    rng = np.random.default_rng(3)
    rates = rng.beta(2, 2, 80)  # topics differ much; tuning makes each a little better
    wrong = [(int(30 * r), int(30 * r * 0.9)) for r in rates]
    base = counts_of({f"t{i}": [(30 - a, a)] for i, (a, _) in enumerate(wrong)})
    tuned = counts_of({f"t{i}": [(30 - b, b)] for i, (_, b) in enumerate(wrong)})
    found = comparisons.compare(base, tuned)["incorrect_change"]
    alone = [metrics.summarise(c)["incorrect"] for c in (base, tuned)]
    assert found["high"] - found["low"] < 0.5 * (alone[1]["high"] - alone[1]["low"])
    assert found["high"] < 0 and alone[1]["high"] > alone[0]["low"]


def test_no_common_topic_or_no_wrong_fact_in_base_is_null(counts_of):
    base, tuned = counts_of({"A": [(2, 0)]}), counts_of({"A": [(1, 1)], "B": [(1, 1)]})
    assert comparisons.compare(base, tuned)["error_rate_reduction"]["value"] is None
    apart = comparisons.compare(base, counts_of({"B": [(1, 1)]}))
    nothing = {"value": None, "low": None, "high": None}
    assert all(apart[name] == nothing for name in comparisons.CHANGES)
    assert apart["p"] == dict.fromkeys(comparisons.CHANGES.values())
    assert apart["wins"]["net"] == {
        "wins": 0,
        "ties": 0,
        "losses": 0,
        "win_rate": nothing,
        "p": None,
    }


def test_wins_by_topic_by_hand(counts_of):
    base = counts_of({"A": [(1, 3)], "B": [(3, 1)], "C": [(2, 2)], "D": [(0, 0)], "E": [(1, 1)]})
    tuned = counts_of({"A": [(4, 0)], "B": [(2, 2)], "C": [(1, 1)], "D": [(1, 0)], "E": [(2, 0)]})
    wins = comparisons.compare(base, tuned)["wins"]
    # rates: A, E better, B worse, C equal, D of base unknown
    rate = wins["error_rate"]
    assert (rate["wins"], rate["ties"], rate["losses"]) == (2, 1, 1)
    assert rate["win_rate"]["value"] == pytest.approx(2.5 / 4)
    assert rate["p"] == 1.0
    # net: -2 to 4, 2 to 0, 0 to 0, 0 to 1, 0 to 2
    net = wins["net"]
    assert (net["wins"], net["ties"], net["losses"]) == (3, 1, 1)
    assert net["win_rate"]["value"] == pytest.approx(3.5 / 5)


def test_p_is_small_if_every_topic_gains_and_corrected_for_the_number_of_models(counts_of):
    base = counts_of({f"t{i}": [(5, 5)] for i in range(10)})
    tuned = counts_of({f"t{i}": [(8, 2)] for i in range(10)})
    found = comparisons.compare(base, tuned)
    assert found["p"]["error_rate"] == pytest.approx(2 / 2**10)  # all, or none, swapped
    same = comparisons.compare(base, base)
    both = comparisons.corrected({"fs": found, "mc": same})
    assert both["fs"]["p_holm"]["error_rate"] == pytest.approx(4 / 2**10)
    assert both["mc"]["p_holm"]["error_rate"] == 1.0
    assert comparisons.compare(base, tuned, resamples=0)["p"]["error_rate"] is None


def test_length_matched_takes_pairs_of_similar_length(counts_of):
    # the tuned model is better only where it is short
    base = counts_of({"A": [(5, 5, 100), (1, 3, 40)], "B": [(4, 4, 80)], "C": [(1, 1, 10)]})
    tuned = counts_of({"A": [(5, 5, 110), (2, 0, 20)], "B": [(4, 4, 99)], "C": [(9, 0, 13)]})
    found = comparisons.length_matched(base, tuned)
    assert (found["pairs"], found["share"]) == (2, 0.5)  # 100 with 110, 80 with 99
    assert found["error_rate_reduction"]["value"] == pytest.approx(0.0)
    assert comparisons.compare(base, tuned)["error_rate_reduction"]["value"] > 0.2


def test_a_response_is_matched_once_the_nearest_first(counts_of):
    base = counts_of({"A": [(0, 1, 100), (1, 0, 120)]})
    tuned = counts_of({"A": [(1, 0, 119), (1, 0, 121), (1, 0, 104)]})
    found = comparisons.length_matched(base, tuned)
    assert found["pairs"] == 2  # 120 with 119 or 121, 100 with 104
    assert found["correct_change"]["value"] == pytest.approx(0.5)


def test_pairs_are_of_one_prompt(counts_of):
    base = counts_of({"A": [(0, 1, 100, "p1"), (0, 1, 50, "p2"), (2, 0, 70, "p3")]})
    tuned = counts_of({"A": [(1, 0, 50, "p1"), (1, 0, 100, "p2"), (2, 0, 80, "p3")]})
    found = comparisons.length_matched(base, tuned)
    assert found["pairs"] == 1 and found["correct_change"]["value"] == 0.0  # the answers to p3


def test_no_pair_of_similar_length_is_null(counts_of):
    base, none = counts_of({"A": [(1, 1, 100)]}), counts_of({})
    failed = base.set_column(base.column_names.index("failed"), "failed", [[True]])
    for tuned, share in ((counts_of({"A": [(1, 1, 10)]}), 0.0), (none, None), (failed, None)):
        found = comparisons.length_matched(base, tuned)
        assert (found["pairs"], found["share"]) == (0, share)
        assert found["error_rate_reduction"]["value"] is None and found["topics"] == 0


def test_few_topics_have_no_interval(counts_of):
    base = counts_of({f"t{i}": [(5, 5)] for i in range(8)})
    tuned = counts_of({f"t{i}": [(8, 2)] if i < 5 else [(0, 0)] for i in range(8)})
    found = comparisons.compare(base, tuned)
    # of eight topics five tell an error rate of both
    assert found["error_rate_reduction"] == {"value": pytest.approx(0.6), "low": None, "high": None}
    assert found["correct_change"]["low"] is not None


def test_a_base_with_few_errors_has_no_lower_end(counts_of):
    """Some draws contain none of its errors, so their cut is minus infinity."""
    base = counts_of({f"t{i}": [(9, int(i == 0))] for i in range(8)})
    tuned = counts_of({f"t{i}": [(9, 1)] for i in range(8)})
    cut = comparisons.compare(base, tuned)["error_rate_reduction"]
    assert cut["value"] < 0 and cut["low"] is None and cut["high"] is not None


def test_the_interval_of_all_wins_is_no_point(counts_of):
    base = counts_of({f"t{i}": [(5, 5)] for i in range(10)})
    tuned = counts_of({f"t{i}": [(8, 2)] for i in range(10)})
    rate = comparisons.compare(base, tuned)["wins"]["net"]["win_rate"]
    assert (rate["value"], rate["high"]) == (1.0, 1.0)
    assert rate["low"] == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)


def test_p_with_other_numbers_of_responses(counts_of):
    """Ten responses a topic against one response: topics differ much, and all gain a little."""
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    base = counts_of({f"t{r}": [(100 - 100 * r, 100 * r)] * 10 for r in rates})
    tuned = counts_of({f"t{r}": [(105 - 100 * r, 100 * r - 5)] for r in rates})
    found = comparisons.compare(base, tuned)
    assert found["p"]["error_rate"] == found["p"]["correct"] == pytest.approx(2 / 2**9)


def test_topics_without_verdicts_are_in_no_mean(counts_of):
    """No fact about a topic without an article is judged, for either model."""
    known = {f"t{i}": [(3, 1, 10)] for i in range(6)}
    both = [pa.concat_tables([counts_of(known), counts_of({"dark": [(0, 0, 10)]}, unknown=5)])] * 2
    found = comparisons.compare(*both)
    assert found["wins"]["net"]["ties"] == 6 and found["topics"] == 7
    assert comparisons.length_matched(*both)["pairs"] == 6
    gained = pa.concat_tables([counts_of(known), counts_of({"dark": [(9, 0, 10)]})])
    found = comparisons.compare(both[0], gained)
    assert found["correct_change"]["value"] == pytest.approx((6 * 3 + 9) / 7 - 3)
