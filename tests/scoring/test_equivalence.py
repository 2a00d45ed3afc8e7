"""Classes of sampled answers: single units, shuffled answers, and many units at once."""

import itertools
import random

import pyarrow as pa
import pytest

from facttune_ray.scoring import equivalence
from facttune_ray.scoring.equivalence import classes, shares
from facttune_ray.text import names

STRINGS = pa.list_(pa.string())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["the cello", "Cello", "harp", ""], [0, 0, 1, -1]),
        (["955", "1955"], [0, 1]),  # a suffix of a number is another number
        (["1,955", "1955"], [0, 0]),
        (["in Ostrava", "Ostrava."], [0, 0]),
        (["teacher", "teachers", "a teacher"], [0, 0, 0]),
        (["well-known poet", "poet well known"], [0, 0]),
        (["", " ", "..."], [-1, -1, -1]),
        (["", "Paris", "Rome", "Oslo"], [-1, 0, 1, 2]),  # an empty answer matches no other answer
        ([None, "Paris", None], [-1, 0, -1]),
        ([None, None], [-1, -1]),
        ([], []),
    ],
)
def test_answers_get_their_classes(answers, expected):
    assert classes(answers) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["Johann Bach", "Johann Sebastian Bach", "J. S. Bach"], [0, 0, 0]),
        # "Johann Bach" fits two people, so it joins neither, and they stay apart
        (["Johann Bach", "Johann Sebastian Bach", "Johann Christian Bach"], [0, 1, 2]),
        (["J. Bach", "Johann Bach", "Joseph Bach"], [0, 1, 2]),
        (["Anna Bach", "Bach", "Johann Bach"], [0, 1, 2]),
        (["Ann Lee", "ann lee", "Ann M. Lee", "Tom Lee"], [0, 0, 0, 1]),
        # a last name alone joins the only person with this name
        (["Bach", "Johann Bach", "J. S. Bach"], [0, 0, 0]),
        (["van Beethoven", "Ludwig van Beethoven", "Beethoven"], [0, 0, 0]),
        (["Player", "Basketball Player"], [0, 1]),
        (["York", "New York", "Ontario", "London, Ontario"], [0, 1, 2, 3]),
        # the same words in another order are one group, which joins no third
        (["Bach Johann", "Johann Bach", "B. Johann", "J. Bach"], [0, 0, 1, 2]),
    ],
)
def test_names_never_join_different_people_by_a_chain(answers, expected):
    assert classes(answers) == expected


def test_exact_ignores_only_case_and_outer_spaces():
    assert classes(["Cello", " cello", "the cello", " "], "exact") == [0, 0, 1, -1]


def partition(answers, order):
    found = classes([answers[i] for i in order])
    parts = {}
    for i, c in zip(order, found, strict=True):
        parts.setdefault((c, i if c < 0 else -1), set()).add(i)
    return frozenset(frozenset(p) for p in parts.values())


@pytest.mark.parametrize(
    "answers",
    [
        ["a red boat", "red boats", "boat", "the boat", "blue boat"],
        ["J. Bach", "Johann Bach", "Joseph Bach", "J. S. Bach", "Johann Sebastian Bach"],
        ["player", "tall player", "old player", "", "players"],
        ["955", "1955", "nineteen", "19", "in 1955"],
    ],
)
def test_classes_do_not_depend_on_order(answers):
    found = {partition(answers, order) for order in itertools.permutations(range(5))}
    assert len(found) == 1


def test_all_names_of_a_class_fit_each_other():
    """For random names of one family, no class holds two different people."""
    chance = random.Random(0)
    firsts, middles = (
        ["Ann ", "A. ", "Adam ", "Bo ", "B. ", ""],
        ["", "M. ", "Mary ", "Nils ", "N. "],
    )
    joined = 0
    for _ in range(500):
        people = [f"{chance.choice(firsts)}{chance.choice(middles)}Lee" for _ in range(6)]
        people = list(dict.fromkeys(people))
        found = classes(people)
        for i, j in itertools.combinations(range(len(people)), 2):
            if found[i] == found[j]:
                joined += 1
                assert names.same_name(names.name(people[i]), names.name(people[j])), people
    assert joined > 300


def test_many_units_equal_single_units():
    chance = random.Random(1)
    words = ["the cello", "Cello.", "harp", "", None, "1955", "1,955", "Ann Lee", "Ann M. Lee"]
    words += ["A. Lee", "Tom Lee", "in Rome", "rome", "June 3, 1955", "3 June 1955", "..."]
    units = [[chance.choice(words) for _ in range(chance.randint(0, 8))] for _ in range(500)]
    units[7] = None
    for method in ("heuristic", "exact", "reference"):
        found = equivalence.classes_of(pa.array(units, STRINGS), method)
        assert found.type == pa.list_(pa.int32()) and found[7].as_py() is None
        assert found.to_pylist() == [u if u is None else classes(u, method) for u in units]
    chunks = pa.chunked_array([units[:200], units[200:]], STRINGS)
    assert equivalence.classes_of(chunks).to_pylist() == [
        u if u is None else classes(u) for u in units
    ]
    cut = pa.array(units, STRINGS).slice(100, 50)  # a slice has an offset
    assert equivalence.classes_of(cut).to_pylist() == [classes(u) for u in units[100:150]]


def test_the_shares_of_originals():
    answers = ["the cello", "Cello", "harp", "", None]
    assert shares(answers, ["cellos", "a harp", "flute", "", None]) == [
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        0.0,
        None,
        None,
    ]
    assert shares(["", None], ["cello"]) == [None]
    assert shares(["Ann Lee", "Ann M. Lee", "Bo Lee"], ["A. Lee"]) == [pytest.approx(2 / 3)]
    units, originals = [answers, None, ["x"]], [["harp"], ["x"], []]
    found = equivalence.shares_of(pa.array(units, STRINGS), pa.array(originals, STRINGS))
    assert found.to_pylist() == [[pytest.approx(1 / 3)], [None], []]


def test_the_size_of_blocks_does_not_change_classes(monkeypatch):
    units = [["Ann Lee", "", f"the {i % 7} harps", f"{i % 7} harp"] for i in range(50)]
    whole = equivalence.classes_of(pa.array(units, STRINGS)).to_pylist()
    monkeypatch.setattr(equivalence, "BLOCK", 10)
    assert equivalence.classes_of(pa.array(units, STRINGS)).to_pylist() == whole
    assert whole == [[0, -1, 1, 1]] * 50
