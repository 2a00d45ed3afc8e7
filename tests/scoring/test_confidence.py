import math

import pytest

from facttune_ray.scoring.confidence import confidence, mean


def test_hand_computed():
    found = confidence([0, 0, 1, 0])
    assert found["max_conf"] == 0.75
    assert found["exp_conf"] == pytest.approx(0.75**2 + 0.25**2)
    assert found["neg_ent"] == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_empty_answers_are_in_no_class():
    assert confidence([-1, -1, -1, -1]) is None  # the reference gives 1.0 here
    assert confidence([0, -1, -1, -1])["max_conf"] == 1.0
    assert confidence(None) is None


def test_mean_of_nothing_is_unknown():
    assert mean([]) is None
    assert mean([0.5, 1.0]) == 0.75
