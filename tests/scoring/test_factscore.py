import math

import pytest

from facttune_ray.scoring.factscore import factscore


def test_facts_without_verdict_are_ignored():
    score, penalised = factscore([True, True, False, None], gamma=10)
    assert score == pytest.approx(2 / 3)
    assert penalised == pytest.approx(2 / 3 * math.exp(1 - 10 / 3))


def test_there_is_no_penalty_above_gamma():
    assert factscore([True] * 11, gamma=10) == (1.0, 1.0)
    assert factscore([True] * 10, gamma=10) == (1.0, 1.0)  # exp(1 - 10 / 10)
    assert factscore([True], gamma=0) == (1.0, 1.0)


def test_a_response_without_verdicts_has_no_score():
    assert factscore([], 10) == (None, None)
    assert factscore([None], 10) == (None, None)
