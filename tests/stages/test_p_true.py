"""P(True): the questions that a model gets about its facts."""

from dataclasses import replace

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.stages import p_true
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work


class SelfJudge:
    def __init__(self):
        self.seen = []

    def judge(self, topic, facts, evidence, article=()):
        self.seen.append((topic, facts, evidence))
        return [None if "long" in f else 0.25 for f in facts]


def fact(fid, text, topic="Mara"):
    return {"fact_id": fid, "response_id": "r", "topic": topic, "fact": text, "split": "train"}


def test_each_distinct_fact_of_a_topic_is_asked_once_without_passages(run_stage):
    model = SelfJudge()
    facts = [
        fact("a", "She sings."),
        fact("b", "she  sings"),
        fact("c", "A long one."),
        fact("d", "She sings.", "Ada"),
        fact("e", None),
    ]
    found = run_stage(p_true, {"facts": facts}, resources={"self_judge": model})
    assert [(r["fact_id"], r["p_true"]) for r in found] == [
        ("a", 0.25),
        ("b", 0.25),
        ("c", None),
        ("d", 0.25),
    ]
    assert model.seen == [
        ("Mara", ["She sings.", "A long one."], [[], []]),
        ("Ada", ["She sings."], [[]]),
    ]


def test_the_judge_is_quantised_like_the_sampler():
    cfg = config.load([], ["run.out=/nonexistent"])
    quantised = replace(cfg, sampling=replace(cfg.sampling, quantize="4bit"))
    with pytest.raises(UserError, match="sampling.quantize=4bit needs a GPU"):
        _ = Context(Work("p_true", "p", {}, quantised, model_path="none")).self_judge
    assert p_true.recipe(quantised) != p_true.recipe(cfg)
