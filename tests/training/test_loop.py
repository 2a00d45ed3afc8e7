"""The Ray Train + DeepSpeed loop on a tiny Llama."""

from __future__ import annotations

import json
import math
import random

import pytest

from facttune_ray import tables
from facttune_ray.config import TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.quickstart import base_model
from facttune_ray.training import loop

WORDS = "she was born in Lyon works as a baker plays the cello lives".split()


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """(path of a groups table of 10 prompts, path of a random tiny Llama)"""
    folder = tmp_path_factory.mktemp("groups")
    rng = random.Random(0)
    rows = []
    for i in range(10):
        texts = list({" ".join(rng.choices(WORDS, k=8)) for _ in range(4)})
        rows.append(
            {
                "prompt_id": str(i),
                "topic": str(i),
                "split": "train",
                "prompt": "Write.",
                "response_ids": texts,
                "responses": texts,
                "rewards": [float(t.count("cello")) + k / 10 for k, t in enumerate(texts)],
                "pairs": 6,
            }
        )
    tables.write_part(tables.Folder.of(str(folder)), "groups", 0, rows, {})
    base_model.pretrain(
        [t for r in rows for t in r["responses"]], folder / "model", seed=0, epochs=0, hidden=32
    )
    return str(folder / "part-00000.parquet"), str(folder / "model")


def run(groups, out, **settings) -> list[dict]:
    path, model = groups
    settings = {"lr": 1e-4, "warmup_steps": 2, "epochs": 2, "groups_per_step": 3} | settings
    cfg = TrainConfig(**settings)
    out.mkdir()
    job = loop.TrainJob(
        groups=(path,),
        model=model,
        out=str(out),
        train=cfg,
        threshold=0.0,
        chat="never",
        seed=0,
        deepspeed=loop.deepspeed_config(cfg),
    )
    steps = loop.train(job)
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert len(lines) == steps == 8  # two epochs of 3 + 3 + 3 + 1 groups
    return lines


def test_one_worker_learns_and_its_model_loads_in_plain_transformers(groups, tmp_path, ray_cluster):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = run(groups, tmp_path / "one")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one" / "model")
    before = AutoModelForCausalLM.from_pretrained(groups[1])
    assert (
        tokenizer.decode(tokenizer("She plays the cello.")["input_ids"]) == "She plays the cello."
    )
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_workers_and_zero_stages_give_the_same_curve(groups, tmp_path, ray_cluster, zero):
    one = run(groups, tmp_path / "one")
    two = run(groups, tmp_path / "two", workers=2, zero=zero)
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["margin"] == pytest.approx(a["margin"], abs=1e-3)


@pytest.mark.slow
def test_no_pair_is_one_clear_line(groups, tmp_path, ray_cluster):
    folder = tables.Folder.of(str(tmp_path / "groups"))
    row = {"prompt_id": "p", "prompt": "W.", "responses": ["a", "b"], "rewards": [1.0, 1.0]}
    tables.write_part(folder, "groups", 0, [row], {})
    with pytest.raises(UserError, match="no pair of responses whose rewards differ"):
        run((str(tmp_path / "groups" / "part-00000.parquet"), groups[1]), tmp_path / "out")


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_clear_line(groups, tmp_path, ray_cluster):
    with pytest.raises(UserError, match="Cannot load a model from") as caught:
        run((groups[0], str(tmp_path / "gone")), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_learning_rate_warms_up_and_decays():
    constant = TrainConfig(warmup_steps=4)
    assert [loop.learning_rate(constant, s, 10) for s in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    linear = TrainConfig(warmup_steps=1, schedule="linear")
    assert [loop.learning_rate(linear, s, 4) for s in range(4)] == [1, 0.75, 0.5, 0.25]
