"""Classes from a judge of pairs: the pairs to judge, and the classes from the decisions."""

import itertools

import pytest

from facttune_ray.scoring.judged import PairPlan

ANSWERS = ["the cello", "cello", "violoncello", "", "harp", "big fiddle", None]


def decisions(plan, *groups):
    """The pairs of a plan that a judge with these groups of equal texts calls the same."""
    return {
        pair for pair in plan.pairs if any({plan.texts[i] for i in pair} <= set(g) for g in groups)
    }


def test_answers_that_the_heuristic_merges_are_not_judged():
    plan = PairPlan.of_unit(ANSWERS, ["a cello", "viola", ""], most=12)
    assert plan.texts == ("cello", "violoncello", "harp", "big fiddle", "viola")
    assert plan.of == (0, 0, 1, -1, 2, 3, -1)
    assert plan.originals == (0, 4, -1)
    # six pairs of answers, pairs with the two cellos first; then the new original with each
    assert set(plan.pairs[:3]) == {(0, 1), (0, 2), (0, 3)}
    assert len(plan.pairs) == 6 + 4 and set(plan.pairs[6:]) == {(i, 4) for i in range(4)}


def test_classes_are_connected_components():
    plan = PairPlan.of_unit(ANSWERS, ["a cello", "viola", ""], most=12)
    # cello ~ violoncello ~ big fiddle, although the judge did not say cello ~ big fiddle
    same = {(0, 1), (1, 3)}
    assert plan.classes(same) == [0, 0, 0, -1, 1, 0, -1]
    assert plan.shares(same) == [0.8, 0.0, None]
    assert plan.shares(same | {(2, 4)}) == [0.8, 0.2, None]  # the judge says: a viola is a harp
    assert plan.classes(same | {(2, 4), (0, 4)}) == plan.classes(same)  # originals merge no classes


def test_every_answer_is_in_one_class_for_every_limit():
    answers = [f"answer number {word}" for word in "ape bee cat dog elk fox".split()]
    for most in (0, 1, 4, 15):
        plan = PairPlan.of_unit(answers, [], most)
        assert len(plan.pairs) == min(most, 15)
        classes = plan.classes(plan.pairs)  # a judge that always says yes
        assert len(classes) == 6 and min(classes) == 0
        shares = [classes.count(c) / 6 for c in set(classes)]
        assert sum(shares) == pytest.approx(1.0)


def test_plans_do_not_depend_on_the_order_of_answers():
    answers = ["Lyon", "Lyons", "Paris", "Capital of France", "Oslo"]
    groups = [{"Lyon", "Lyons"}, {"Paris", "Capital of France"}]
    partitions = set()
    for shuffled in itertools.permutations(answers):
        plan = PairPlan.of_unit(shuffled, ["Paris, France"], most=12)
        classes = plan.classes(decisions(plan, *groups))
        parts = {
            frozenset(a for a, k in zip(shuffled, classes, strict=True) if k == c) for c in classes
        }
        partitions.add(frozenset(parts))
    assert len(partitions) == 1 and len(partitions.pop()) == 3


@pytest.mark.parametrize("answers", itertools.permutations(["Johann Bach", "Joseph Bach", "harp"]))
def test_an_original_that_fits_two_answers_joins_neither(answers):
    plan = PairPlan.of_unit(answers, ["Bach"], most=12)
    assert plan.originals == (3,) and plan.shares(()) == [0.0]  # the judge decides
    assert {plan.texts[a] for a, b in plan.pairs if b == 3} == set(answers)
    clear = PairPlan.of_unit([a for a in answers if a != "Joseph Bach"], ["Bach"], most=12)
    assert clear.shares(()) == [0.5] and len(clear.texts) == 2


def test_a_unit_without_answers():
    plan = PairPlan.of_unit(["", None], ["Lyon"], most=12)
    assert plan.classes(()) == [-1, -1] and plan.shares(()) == [None]
    assert PairPlan.of_unit([], [], most=12).pairs == ()
