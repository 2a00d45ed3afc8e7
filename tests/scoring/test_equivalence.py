import itertools

import pytest

from facttune_ray.scoring.equivalence import classes


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["the cello", "Cello", "harp", ""], [0, 0, 1, -1]),
        (["955", "1955"], [0, 1]),  # a suffix is not an equal number
        (["1,955", "1955"], [0, 0]),
        (["in Ostrava", "Ostrava."], [0, 0]),
        (["teacher", "teachers", "a teacher"], [0, 0, 0]),
        (["well-known poet", "poet well known"], [0, 0]),
        (["", " ", "..."], [-1, -1, -1]),
        ([], []),
    ],
)
def test_hand_made(answers, expected):
    assert classes(answers) == expected


def test_order_does_not_change_the_classes():
    answers = ["a red boat", "red boats", "boat", "the boat", "blue boat"]

    def partition(order):
        found = classes([answers[i] for i in order])
        return {
            frozenset(i for i, c in zip(order, found, strict=True) if c == k) for k in set(found)
        }

    assert len({frozenset(partition(p)) for p in itertools.permutations(range(5))}) == 1
