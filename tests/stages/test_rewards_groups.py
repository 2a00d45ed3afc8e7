"""The two stages that only compute, on hand-made tables."""

import asyncio

import pytest

from facttune_ray import config, tables
from facttune_ray.stages import groups, rewards
from facttune_ray.stages.context import Context, Work


def run(stage, root, inputs, overrides=(), **work):
    """Rows of a stage on one shard of hand-made input tables."""
    cfg = config.load([], [f"run.out={root}", *overrides])
    context = Context(
        Work(stage=stage.__name__, output="out", inputs={i: i for i in inputs}, cfg=cfg, **work)
    )
    for name, rows in inputs.items():
        tables.write_part(context.root / name, name, 0, rows, {})
    return asyncio.run(stage.run(context, 0))


def response(rid, prompt_id="p", text=None, **more):
    return {
        "response_id": rid,
        "prompt_id": prompt_id,
        "topic": "Mara",
        "split": "train",
        "model": "base",
        "prompt": "Write.",
        "text": rid if text is None else text,
    } | more


def fact(fid, rid, repeated=False):
    return {"fact_id": fid, "response_id": rid, "fact": fid, "repeated": repeated}


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
        {"fact_id": "a", "question_id": "q1"},
        {"fact_id": "b", "question_id": "q2"},
        {"fact_id": "c", "question_id": "q1"},
    ],
    "answers": [
        {"question_id": "q1", "classes": [0, 0, 0, 1]},
        {"question_id": "q2", "classes": [-1, -1, -1, -1]},
    ],
}


@pytest.mark.parametrize(("distinct", "score", "count"), [("false", 2 / 3, 3), ("true", 0.5, 2)])
def test_rewards_by_hand(tmp_path, distinct, score, count):
    rows = run(rewards, tmp_path, INPUTS, [f"rewards.distinct_facts={distinct}"])
    first, second, third = rows
    assert first["factscore"] == pytest.approx(score)
    assert (first["facts"], first["repeated"]) == (count, 1)
    assert first["max_conf"] == 0.75  # q2 was never answered: left out, not 0
    assert second["factscore"] is None and second["max_conf"] is None
    assert (third["facts"], third["factscore"]) == (0, None)


def test_rewards_without_answers_leave_confidence_unknown(tmp_path):
    inputs = {k: INPUTS[k] for k in ("responses", "facts", "verdicts")}
    assert [r["max_conf"] for r in run(rewards, tmp_path, inputs)] == [None, None, None]


def test_groups_hold_unique_responses_with_a_reward(tmp_path):
    found = run(
        groups,
        tmp_path,
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


def test_pairs_need_more_than_the_threshold():
    assert groups.count_pairs([0.0, 0.5, 1.0], 0.0) == 3
    assert groups.count_pairs([0.0, 0.5, 1.0], 0.5) == 1
    assert groups.count_pairs([0.5, 0.5], 0.0) == 0
