"""Preference pairs of hand-made rewards."""

import math

import pytest

from facttune_ray.scoring.pairs import count_pairs, pairs


def test_ties_and_unknown_rewards_make_no_pair():
    assert pairs([0.5, 1.0, None, 0.5]) == [(1, 0), (1, 3)]
    assert pairs([math.nan, 1.0]) == []
    assert count_pairs([i / 10 for i in range(10)]) == 45


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.25, 2), (0.5, 1), (0.75, 0)])
def test_rewards_of_a_pair_differ_by_more_than_the_threshold(threshold, count):
    assert count_pairs([0.0, 0.25, 0.75], threshold) == count


def test_the_pairs_with_the_largest_difference_are_kept():
    rewards = [0.0, 1.0, 0.5, 0.75]
    assert pairs(rewards, most=2) == [(1, 0), (3, 0)]
    assert pairs(rewards, most=6) == pairs(rewards)
    assert pairs([0.0, 1.0, 1.0], most=1) == [(1, 0)]  # among equals: the first
