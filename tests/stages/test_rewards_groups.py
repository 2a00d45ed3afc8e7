"""The stages rewards, mixes and groups, on hand-made tables."""

import pytest

from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.stages import groups, mixes, rewards


def response(rid, prompt_id="p", text=None, **more):
    return {
        "response_id": rid,
        "prompt_id": prompt_id,
        "topic": "Mara",
        "split": "train",
        "model": "base",
        "prompt": "Write.",
        "text": rid if text is None else text,
        "abstained": None,
        "error": None,
    } | more


def fact(fid, rid, repeated=False, **more):
    base = {"fact_id": fid, "response_id": rid, "topic": "Mara", "fact": fid}
    return base | {"repeated": repeated, "abstained": False, "error": None} | more


INPUTS = {
    "responses": [response("r1"), response("r2"), response("r3")],
    "facts": [fact("a", "r1"), fact("b", "r1"), fact("c", "r1", repeated=True), fact("d", "r2")],
    "verdicts": [
        {"fact_id": "a", "supported": True},
        {"fact_id": "b", "supported": False},
        {"fact_id": "c", "supported": True},
        {"fact_id": "d", "supported": None},
    ],
    "questions": [
        {"fact_id": "a", "response_id": "r1", "question_id": "q1", "answer": "cello"},
        {"fact_id": "b", "response_id": "r1", "question_id": "q2", "answer": "harp"},
        {"fact_id": "c", "response_id": "r1", "question_id": "q1", "answer": "harp"},
        {"fact_id": "d", "response_id": "r2", "error": "no question in the answer ''"},
    ],
    "classes": [
        {
            "unit_id": "q1",
            "unit": "question",
            "classes": [0, 0, 0, 1],
            "originals": ["cello", "harp"],
            "shares": [0.75, 0.25],
        },
        {"unit_id": "q2", "unit": "question", "classes": [-1, -1], "originals": [], "shares": []},
        {
            "unit_id": "e1",
            "unit": "entity",
            "classes": [0, 1, 1, 2],
            "originals": ["Lyon"],
            "shares": [0.5],
        },
        {"unit_id": "e2", "unit": "entity", "originals": ["Oslo"], "shares": [None]}
        | {"error": "no samples"},
    ],
    "entities": [
        {"entity_id": "e1", "response_id": "r2", "text": "Lyon"},
        {"entity_id": "e2", "response_id": "r2", "text": "Oslo"},
    ],
    "p_true": [
        {"fact_id": "a", "response_id": "r1", "p_true": 0.8},
        {"fact_id": "b", "response_id": "r1", "p_true": 0.4},
        {"fact_id": "d", "response_id": "r2", "p_true": None},
    ],
}


@pytest.mark.parametrize(("distinct", "score", "count"), [("false", 2 / 3, 3), ("true", 0.5, 2)])
def test_rewards_by_hand(run_stage, distinct, score, count):
    rows = run_stage(rewards, INPUTS, [f"rewards.distinct_facts={distinct}"])
    first, second, third = rows
    assert first["factscore"] == pytest.approx(score)
    assert (first["facts"], first["repeated"]) == (count, 1)
    assert first["max_conf"] == 0.75  # q2 was never answered: left out, not 0
    # of one question's originals each fact's own: 0.75 for "cello", 0.25 for the repeat's "harp"
    assert first["samp_conf"] == (0.75 if distinct == "true" else 0.5)
    assert first["p_true"] == pytest.approx(0.6)
    assert second["factscore"] is None and second["max_conf"] is None and second["p_true"] is None
    assert (second["ne_max_conf"], second["ne_exp_conf"]) == (0.5, 0.375)  # 1/4, 1/2, 1/4
    assert second["ne_samp_conf"] == 0.5 and first["ne_max_conf"] is None
    assert (third["facts"], third["factscore"]) == (0, None)


def test_rewards_count_facts_answers_entities_and_errors(run_stage):
    inputs = INPUTS | {
        "responses": [
            response("r1", text="Mara plays the cello."),
            response("r2"),
            response("r3", text="I do not know her."),
            response("r4") | {"text": None, "error": "no samples"},
        ],
        "facts": [
            *INPUTS["facts"],
            fact("s", "r2", fact=None, error="no answer"),
            fact("t", "r3", fact=None, abstained=True),
        ],
    }
    first, second, third, fourth = run_stage(rewards, inputs)
    assert [first[k] for k in ("facts", "judged", "answered", "entities")] == [3, 3, 2, 0]
    assert [second[k] for k in ("facts", "judged", "answered", "entities")] == [1, 0, 0, 1]
    assert [r["words"] for r in (first, third, fourth)] == [4, 5, None]
    assert [r["abstained"] for r in (first, second, third)] == [False, False, True]
    # r2: a sentence without facts, a fact without a question, an entity without samples
    assert [r["errors"] for r in (first, second, third, fourth)] == [0, 3, 0, 1]
    assert fourth["error"] == "no samples" and fourth["max_conf"] is None


@pytest.mark.parametrize("shown", [["r1", "v", "w"], ["v", "w"]])
def test_counts_are_null_where_nothing_was_asked(run_stage, shown):
    """The other rows of the shard do not matter."""
    every = [response("r1"), response("v", split="val"), response("w", error="lost", text="")]
    kept = [r for r in every if r["response_id"] in shown]
    inputs = {k: v if "r1" in shown else [] for k, v in INPUTS.items()} | {"responses": kept}
    found = {r["response_id"]: r for r in run_stage(rewards, inputs)}
    for name in set(shown) - {"r1"}:
        assert (found[name]["answered"], found[name]["entities"]) == (None, None)
    assert "r1" not in shown or (found["r1"]["answered"], found["r1"]["entities"]) == (2, 0)


def test_rewards_without_answers_leave_confidence_unknown(run_stage):
    inputs = {k: INPUTS[k] for k in ("responses", "facts", "verdicts")}
    assert [r["max_conf"] for r in run_stage(rewards, inputs)] == [None, None, None]


def test_groups_hold_unique_responses_with_a_reward(run_stage):
    found = run_stage(
        groups,
        {
            "responses": [
                response("r1", text="x"),
                response("r2", text="x"),  # the same text is one sequence
                response("r3", text="y"),
                response("r4", text="z"),
                response("r5", prompt_id="q", text="tie one"),
                response("r6", prompt_id="q", text="tie two"),
                response("r7", text="val", split="val"),
            ],
            "rewards": [
                {"response_id": f"r{i}", "split": "train", "factscore": s}
                for i, s in enumerate([0.5, 0.5, 1.0, None, 0.5, 0.5], 1)
            ],
        },
        reward="factscore",
        splits=("train",),
    )
    assert [(g["responses"], g["rewards"], g["pairs"]) for g in found] == [
        (["x", "y"], [0.5, 1.0], 1)
    ]


def test_a_mix_is_a_weighted_sum_of_z_scores(run_stage):
    row = {"split": "train", "prompt_id": "p", "topic": "Mara"}
    found = run_stage(
        mixes,
        {
            "rewards": [
                row | {"response_id": "r1", "factscore": 1.0, "max_conf": 0.5},
                row | {"response_id": "r2", "factscore": 0.5, "max_conf": None},
            ]
        },
        mix={"both": {"factscore": 2.0, "max_conf": -1.0}, "one": {"factscore": 1.0}},
        moments={"factscore": (0.75, 0.25), "max_conf": (0.25, 0.5)},
    )
    # 2 * (1 - 0.75) / 0.25 - (0.5 - 0.25) / 0.5; unknown when one part is
    assert [(r["response_id"], r["name"], r["value"]) for r in found] == [
        ("r1", "both", 1.5),
        ("r1", "one", 1.0),
        ("r2", "both", None),
        ("r2", "one", -1.0),
    ]
    flat = {"factscore": (0.5, 0.0)}  # the same everywhere: adds nothing
    assert mixes.mixed({"factscore": 0.5}, {"factscore": 3.0}, flat) == 0.0


def test_mixes_that_differ_by_rounding_tie():
    moments = {"factscore": (0.0, 1.0), "max_conf": (0.0, 1.0)}
    weights = {"factscore": 1.0, "max_conf": 1.0}
    rows = [{"factscore": 0.1, "max_conf": 0.2}, {"factscore": 0.15, "max_conf": 0.15}]
    values = [mixes.mixed(row, weights, moments) for row in rows]
    assert values == [0.3, 0.3] and count_pairs(values, 0.0) == 0


def test_groups_take_a_mix_by_its_name(run_stage):
    mixed = [("r1", "both", 0.1), ("r1", "other", 9.0), ("r2", "both", 0.3), ("r2", "other", 9.0)]
    found = run_stage(
        groups,
        {
            "responses": [response("r1"), response("r2")],
            "mixes": [
                {"response_id": r, "split": "train", "name": n, "value": v} for r, n, v in mixed
            ],
        },
        reward="both",
        splits=("train",),
    )
    assert [(g["rewards"], g["pairs"]) for g in found] == [([0.1, 0.3], 1)]


def test_pairs_need_more_than_the_threshold():
    assert count_pairs([0.0, 0.5, 1.0], 0.0) == 3
    assert count_pairs([0.0, 0.5, 1.0], 0.5) == 1
    assert count_pairs([0.5, 0.5], 0.0) == 0
    assert count_pairs([0.5, None, 1.0], 0.0) == 1
