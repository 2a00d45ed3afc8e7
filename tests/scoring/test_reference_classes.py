"""The reference mode equals recorded results of FactTune's scripts on the same lists."""

import json
from pathlib import Path

import pytest

from facttune_ray.scoring import confidence, equivalence, reference_classes

CASES = json.loads(Path(__file__).with_name("reference_classes.json").read_text())


def test_classes_and_rewards_equal_those_of_the_scripts():
    assert len(CASES) == 200
    for case in CASES:
        found = equivalence.classes(case["answers"], "reference")
        assert found == case["classes"], case["answers"]
        sure = confidence.confidence(found)
        for name in confidence.CONFIDENCES:
            assert sure[name] == pytest.approx(case[name], abs=1e-12), case["answers"]
        (share,) = equivalence.shares(case["answers"], [case["original"]], "reference")
        assert share == (None if case["original"] is None else pytest.approx(case["samp_conf"]))


def test_the_heuristic_gives_equal_rewards_where_the_scripts_have_no_fault():
    clean = [
        ["cello", "the cello", "Cello.", "harp"],
        ["1955"] * 3 + ["1960"],
        ["Bill Clinton", "bill clinton", "Hugh Rodham"],
        ["musicians", "musician", "musicians!", "painters"],
        ["yes, it is", "Yes", "no"],
    ]
    for answers in clean:
        ours, theirs = (
            confidence.confidence(equivalence.classes(answers, method))
            for method in ("heuristic", "reference")
        )
        assert ours == pytest.approx(theirs, abs=1e-12), answers


def test_the_scripts_faults_are_reproduced():
    """The scripts' values; test_equivalence.py has the correct values of the heuristic."""
    assert reference_classes.classes(["Paris", "", "Rome", "Oslo"]) == [0, 0, 1, 2]
    assert reference_classes.classes(["", "Paris", "Rome", "Oslo"]) == [0, 0, 0, 0]  # 1.0!
    assert reference_classes.classes(["1955", "955"]) == [0, 0]
    assert reference_classes.classes(["player", "tall player", "old player"]) == [0, 0, 0]
    assert reference_classes.classes(["tall player", "old player", "player"]) == [0, 1, 0]
    assert reference_classes.share([None], "x") is None
    assert reference_classes.share(["x"], None) is None
