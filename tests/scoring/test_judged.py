"""Classes by a judge of pairs: what is asked, and what follows from its answers."""

import itertools

import pytest

from facttune_ray.scoring.judged import PairPlan

ANSWERS = ["the cello", "cello", "violoncello", "", "harp", "big fiddle", None]


def told(plan, *groups):
    """The pairs of a plan whose texts stand in one group: what a consistent judge says."""
    return {
        pair for pair in plan.pairs if any({plan.texts[i] for i in pair} <= set(g) for g in groups)
    }


def test_what_the_strings_merge_needs_no_judge():
    plan = PairPlan.of_unit(ANSWERS, ["a cello", "viola", ""], most=12)
    assert plan.texts == ("cello", "violoncello", "harp", "big fiddle", "viola")
    assert plan.of == (0, 0, 1, -1, 2, 3, -1)
    assert plan.originals == (0, 4, -1)
    # six pairs of answers, those with the two cellos first; then the new original with each
    assert set(plan.pairs[:3]) == {(0, 1), (0, 2), (0, 3)}
    assert len(plan.pairs) == 6 + 4 and set(plan.pairs[6:]) == {(i, 4) for i in range(4)}


def test_classes_are_components_and_shares_follow():
    plan = PairPlan.of_unit(ANSWERS, ["a cello", "viola", ""], most=12)
    # cello ~ violoncello ~ big fiddle, though nobody said cello ~ big fiddle
    same = {(0, 1), (1, 3)}
    assert plan.classes(same) == [0, 0, 0, -1, 1, 0, -1]
    assert plan.shares(same) == [0.8, 0.0, None]
    assert plan.shares(same | {(2, 4)}) == [0.8, 0.2, None]  # a viola is a harp, says the judge
    assert plan.classes(same | {(2, 4), (0, 4)}) == plan.classes(same)  # originals merge nothing


def test_every_answer_is_in_one_class_whatever_the_cap():
    answers = [f"answer number {word}" for word in "ape bee cat dog elk fox".split()]
    for most in (0, 1, 4, 15):
        plan = PairPlan.of_unit(answers, [], most)
        assert len(plan.pairs) == min(most, 15)
        classes = plan.classes(plan.pairs)  # a judge that says yes to all it is asked
        assert len(classes) == 6 and min(classes) == 0
        shares = [classes.count(c) / 6 for c in set(classes)]
        assert sum(shares) == pytest.approx(1.0)


def test_the_order_of_answers_does_not_matter():
    answers = ["Lyon", "Lyons", "Paris", "Capital of France", "Oslo"]
    groups = [{"Lyon", "Lyons"}, {"Paris", "Capital of France"}]
    partitions = set()
    for shuffled in itertools.permutations(answers):
        plan = PairPlan.of_unit(shuffled, ["Paris, France"], most=12)
        classes = plan.classes(told(plan, *groups))
        parts = {
            frozenset(a for a, k in zip(shuffled, classes, strict=True) if k == c) for c in classes
        }
        partitions.add(frozenset(parts))
    assert len(partitions) == 1 and len(partitions.pop()) == 3


@pytest.mark.parametrize("answers", itertools.permutations(["Johann Bach", "Joseph Bach", "harp"]))
def test_an_original_that_fits_two_answers_is_neither(answers):
    plan = PairPlan.of_unit(answers, ["Bach"], most=12)
    assert plan.originals == (3,) and plan.shares(()) == [0.0]  # the judge is asked
    assert {plan.texts[a] for a, b in plan.pairs if b == 3} == set(answers)
    clear = PairPlan.of_unit([a for a in answers if a != "Joseph Bach"], ["Bach"], most=12)
    assert clear.shares(()) == [0.5] and len(clear.texts) == 2


def test_nothing_sampled():
    plan = PairPlan.of_unit(["", None], ["Lyon"], most=12)
    assert plan.classes(()) == [-1, -1] and plan.shares(()) == [None]
    assert PairPlan.of_unit([], [], most=12).pairs == ()
