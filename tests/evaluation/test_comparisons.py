"""Two models on the same topics, by hand."""

import numpy as np
import pytest

from facttune_ray.evaluation import comparisons, metrics


def test_comparison_is_paired_by_topic(counts_of):
    base = counts_of({"A": [(1, 3)], "B": [(3, 1)], "only here": [(9, 9)]})
    tuned = counts_of({"A": [(4, 0)], "B": [(3, 1)]})
    found = comparisons.compare(base, tuned)
    # common topics: 4 of 8 wrong before, 1 of 8 after
    assert found["error_rate_reduction"]["value"] == pytest.approx(0.75)
    assert found["correct_change"]["value"] == pytest.approx(1.5)
    assert found["incorrect_change"]["value"] == pytest.approx(-1.5)
    # drawn topics: A A (3 wrong to 0), B B (1 to 1), or both
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


def test_p_is_small_where_every_topic_gains_and_corrected_for_their_number(counts_of):
    base = counts_of({f"t{i}": [(5, 5)] for i in range(10)})
    tuned = counts_of({f"t{i}": [(8, 2)] for i in range(10)})
    found = comparisons.compare(base, tuned)
    assert found["p"]["error_rate"] == pytest.approx(2 / 2**10)  # all, or none, swapped
    same = comparisons.compare(base, base)
    both = comparisons.corrected({"fs": found, "mc": same})
    assert both["fs"]["p_holm"]["error_rate"] == pytest.approx(4 / 2**10)
    assert both["mc"]["p_holm"]["error_rate"] == 1.0
    assert comparisons.compare(base, tuned, resamples=0)["p"]["error_rate"] is None


def test_length_matched_takes_pairs_of_like_length(counts_of):
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
