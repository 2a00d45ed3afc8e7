"""Figures of rewards, by hand."""

import pytest

from facttune_ray.config import GroupsConfig
from facttune_ray.evaluation import rewards
from facttune_ray.evaluation.breakdowns import Scope
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder


@pytest.fixture
def scope(tmp_path):
    """A function that writes tables of two shards: {name: [rows of shard 0, rows of shard 1]}."""

    def write(**made):
        root = Folder.of(str(tmp_path))
        made.setdefault("responses", [[]])
        for name, shards in made.items():
            for shard, rows in enumerate(shards):
                tables.write_part(root / "base" / name, name, shard, rows, {})
            tables.write_manifest(root / "base" / name, name, {}, len(shards), 0.0)
        return root

    return write


def reward(rid, prompt, split="train", **values):
    return {"response_id": rid, "prompt_id": prompt, "split": split} | values


ROWS = [
    [
        reward("a", "p", factscore=0.0, max_conf=0.5),
        reward("b", "p", factscore=1.0, max_conf=0.5),
        reward("v", "w", split="val", factscore=9.0),
    ],
    [reward("c", "q", factscore=1.0), reward("d", "q", factscore=2.0, max_conf=0.75)],
]


RESPONSES = [
    [{"response_id": r, "text": text} for r, text in (("a", "x"), ("b", "y"), ("v", "z"))],
    [{"response_id": r, "text": text} for r, text in (("c", "x"), ("d", "y"), ("e", "y"))],
]


@pytest.mark.parametrize("value", [0.1, 0.7, 2 / 3, -1.234, 1e6 / 3])
def test_a_constant_has_no_deviation(scope, value):
    rows = [[reward(str(i), "p", factscore=value) for i in range(1001)]]
    found = rewards.moments(scope(rewards=rows) / "base/rewards", ["factscore"])
    assert found["factscore"] == (pytest.approx(value), 0.0)


def test_moments_are_of_train_responses_that_have_the_reward(scope):
    found = rewards.moments(scope(rewards=ROWS) / "base/rewards", ["factscore", "p_true"])
    assert found["factscore"] == (1.0, pytest.approx(0.5**0.5))
    assert found["p_true"] == (0.0, 0.0)


def test_pairs_of_every_reward_and_mix(scope):
    mixes = [
        [{"response_id": r, "prompt_id": "p", "split": "train", "name": "both", "value": v}]
        for r, v in (("a", 0.5), ("b", None))
    ]
    made = {"responses": RESPONSES, "rewards": ROWS, "mixes": mixes}
    found = rewards.columns(scope(**made), Scope("base"), GroupsConfig())
    assert {k: (v["responses"], v["pairs"]) for k, v in found.items()} == {
        "factscore": (4, 2),
        "max_conf": (3, 0),  # a tie, and one alone
        "both": (1, 0),
    }
    assert found["max_conf"]["mean"] == pytest.approx(1.75 / 3)


def test_a_finished_table_lacks_a_reward_that_is_newer(scope, monkeypatch):
    root = scope(responses=RESPONSES, rewards=ROWS)
    monkeypatch.setitem(rewards.REWARD_COLUMNS, "newer", "responses")
    found = rewards.columns(root, Scope("base"), GroupsConfig())
    assert "newer" not in found and found["factscore"]["responses"] == 4


def test_equal_responses_are_in_pairs_once(scope):
    twice = [ROWS[0], [*ROWS[1], reward("e", "q", factscore=2.0)]]
    root = scope(responses=RESPONSES, rewards=twice)
    found = rewards.columns(root, Scope("base"), GroupsConfig())
    assert (found["factscore"]["responses"], found["factscore"]["pairs"]) == (5, 2)


def test_pairs_are_those_that_groups_makes_in_the_shards_that_count(scope):
    one = [reward(r, "p", factscore=v) for r, v in (("a", 0.0), ("b", 1.0), ("v", 3.0))]
    root = scope(responses=RESPONSES, rewards=[one, ROWS[1]])

    def pairs(scope, **settings):
        found = rewards.columns(root, scope, GroupsConfig(**settings))["factscore"]
        return found["responses"], found["pairs"]

    assert pairs(Scope("base")) == (5, 4)
    assert pairs(Scope("base"), max_pairs=2) == (5, 3)
    assert pairs(Scope("base"), threshold=1.5) == (5, 2)
    assert pairs(Scope("base", shards=1)) == (3, 3)


def test_confidence_against_verdicts_with_bins_by_hand(scope):
    sure = {"f1": [0, 0, 0, 0], "f2": [0, 0, 0, 1], "f3": [0, 0, 1, 1], "f4": [0, 1, 2, 3]}
    right = {"f1": True, "f2": True, "f3": False, "f4": False}
    more = [("f5", True, None), ("f6", None, [0, 0, 0, 0]), ("f7", False, [0, 0, 0, 0])]
    facts = [{"fact_id": f, "fact": f, "repeated": f == "f7"} for f in [*sure, "f5", "f6", "f7"]]
    classes = {**sure, **{f: c for f, _, c in more if c}}
    root = scope(
        facts=[facts],
        verdicts=[
            [{"fact_id": f, "supported": s} for f, s in right.items()]
            + [{"fact_id": f, "supported": s} for f, s, _ in more]
        ],
        questions=[[{"fact_id": f, "question_id": f"q{f}", "answer": "x"} for f in classes]],
        classes=[
            [
                {"unit_id": f"q{f}", "classes": c, "originals": ["x"], "shares": [0.0]}
                for f, c in classes.items()
            ]
        ],
    )
    found = rewards.confidence(root, Scope("base"))
    best = found["max_conf"]  # f5 was not asked, f6 has no verdict, f7 repeats another
    assert (best["facts"], best["auroc"]) == (4, 1.0)
    assert [(b["low"], b["confidence"], b["supported"]) for b in best["bins"]] == [
        (0.2, 0.25, 0.0),
        (0.5, 0.5, 0.0),
        (0.7, 0.75, 1.0),
        (0.9, 1.0, 1.0),
    ]
    assert best["ece"] == pytest.approx((0.25 + 0.5 + 0.25 + 0.0) / 4)
    assert found["neg_ent"]["auroc"] == 1.0 and found["neg_ent"]["bins"] == []
    assert found["samp_conf"]["auroc"] == 0.5  # the same for all: chance
    assert "p_true" not in found


def test_without_tables_there_are_no_figures(scope):
    root = scope(facts=[[]])
    assert rewards.columns(root, Scope("base"), GroupsConfig()) == {}
    assert rewards.confidence(root, Scope("base")) == {}
