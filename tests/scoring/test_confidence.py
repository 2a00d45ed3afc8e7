"""Confidences equal hand-computed values, for one unit and for columns of many."""

import math

import pyarrow as pa
import pytest

from facttune_ray.scoring.confidence import confidence, confidence_of, mean


def test_confidences_equal_hand_computed_values():
    found = confidence([0, 0, 1, 0])
    assert found["max_conf"] == 0.75
    assert found["exp_conf"] == pytest.approx(0.75**2 + 0.25**2)
    assert found["neg_ent"] == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_empty_answers_are_in_no_class():
    assert confidence([-1, -1, -1, -1]) is None  # the reference gives 1.0 here
    assert confidence([0, -1, -1, -1])["max_conf"] == 1.0
    assert confidence(None) is None
    assert confidence([]) is None


def test_columns_of_many_units_equal_single_units():
    lists = [[0, 1, 1, 2], None, [], [-1, 0], [-1], [0, 0, 0]]
    found = confidence_of(pa.array(lists, pa.list_(pa.int32())))
    assert found["max_conf"].to_pylist() == [0.5, None, None, 1.0, None, 1.0]
    assert found["exp_conf"].to_pylist() == [0.375, None, None, 1.0, None, 1.0]
    ent = 0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)
    assert found["neg_ent"].to_pylist() == [pytest.approx(ent), None, None, 0.0, None, 0.0]
    assert all(c.type == pa.float64() for c in found.values())
    nothing = confidence_of(pa.array([], pa.list_(pa.int32())))
    assert {k: len(v) for k, v in nothing.items()} == dict.fromkeys(found, 0)
    only_null = confidence_of(pa.array([None, None], pa.list_(pa.int32())))
    assert only_null["max_conf"].to_pylist() == [None, None]


def test_a_mean_without_values_is_unknown():
    assert mean([]) is None
    assert mean([0.5, 1.0]) == 0.75


def test_equal_means_of_different_terms_are_equal():
    assert 0.1 + 0.2 != 0.15 + 0.15  # in floating point
    assert mean([0.1, 0.2]) == mean([0.15, 0.15]) == 0.15
    ninths = [mean([a / 9, b / 9, c / 9]) for a, b, c in ((1, 5, 6), (2, 3, 7), (4, 4, 4))]
    assert len(set(ninths)) == 1
