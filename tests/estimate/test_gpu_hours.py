"""Tokens and GPU hours by hand; an estimate before anything is sampled."""

from __future__ import annotations

import json

import pytest

from facttune_ray import cli
from facttune_ray.config import load
from facttune_ray.estimate.gpu_hours import Counts, Rates, gpu_rows, parameters_of
from facttune_ray.estimate.show import show_gpu_hours
from facttune_ray.estimate.topic_sample import placeholder_responses
from facttune_ray.loop.nodes import StageTable
from facttune_ray.quickstart import base_model
from facttune_ray.sources import world

COUNTS = Counts(
    prompts={"train": 10, "val": 4, "test": 5},
    prompt_tokens=20,
    response_tokens=100,
    questions=30,
    question_tokens=12,
)
WORDS = [
    "tune.fs.reward=factscore",
    "train.epochs=2",
    "model.path=Llama-2-7b",
    "evaluation.samples=2",
]
CFG = load([], WORDS)
GPT = load([], ["sampling={engine: api, llm: {model: g}}"])
MANY = load([], [*WORDS, "evaluation.samples=7"])
TABLES = [
    StageTable("base/tune", "responses", {}, CFG, ("train", "val")),
    StageTable("base/tune", "facts", {}, CFG, ("train", "val")),
    StageTable("base/tune", "answers", {}, CFG, ("train", "val")),
    StageTable("fs/round_1", "reference", {}, CFG, ("train",)),
    StageTable("gpt/test", "responses", {}, GPT, ("test",)),
    StageTable("many/test", "responses", {}, MANY, ("test",)),
]


def test_tokens_and_hours_by_hand():
    rows = gpu_rows(CFG, TABLES, ["fs/round_1"], COUNTS, Rates(1000, 100), 7e9)
    found = {r["stage"]: r for r in rows}
    assert list(found) == ["responses", "answers", "reference", "train"]
    responses = found["responses"]  # the endpoint's are nobody's GPU hours here
    assert (responses["tables"], responses["read_tokens"]) == (2, 19 * 20)
    assert responses["sampled_tokens"] == (10 * 10 + 4 * 2 + 5 * 7) * 100
    assert found["answers"]["sampled_tokens"] == 10 * 30 * 20 * 15
    assert found["answers"]["read_tokens"] == 10 * 30 * 12
    sequences = 10 * (20 + 10 * 100)
    assert found["reference"]["read_tokens"] == sequences
    assert found["train"]["trained_tokens"] == 2 * sequences
    assert found["train"]["gpu_hours"] == pytest.approx(6 * 7e9 * 2 * sequences / 1e14 / 3600)
    assert responses["gpu_hours"] == pytest.approx((14.3 + 2 * 7e9 * 380 / 1e14) / 3600)
    said = show_gpu_hours(rows, Rates(1000, 100), 7e9)
    assert "at 1,000 sampled tokens/s and 100 TFLOP/s a GPU: assumed, not measured" in said


def test_recomputed_activations_and_repeated_prompts_cost_more():
    words = [*WORDS, "train.recompute=true", "train.share_prefix=false"]
    (row,) = gpu_rows(load([], words), [], ["fs/round_1"], COUNTS, Rates(), 7e9)
    assert row["trained_tokens"] == 2 * 10 * 10 * (20 + 100)
    assert row["gpu_hours"] == pytest.approx(8 * 7e9 * row["trained_tokens"] / 150e12 / 3600)


def test_unknown_parameters_give_no_hours():
    rows = gpu_rows(CFG, [], ["fs/round_1"], COUNTS, Rates(), None)
    assert rows[0]["gpu_hours"] is None and "give --parameters" in show_gpu_hours(
        rows, Rates(), None
    )


def test_parameters_by_name_and_by_config(tmp_path):
    assert parameters_of("meta-llama/Llama-2-7b-hf") == 7e9
    assert parameters_of("org/model-0.5B-chat") == 0.5e9
    figures = base_model.pretrain(["a b c"], tmp_path / "m-9b", seed=0, steps=0, hidden=32)
    assert parameters_of(str(tmp_path / "m-9b")) == figures["parameters"]


def test_an_estimate_before_anything_is_sampled(tmp_path, capsys):
    people = world.make(0, 30, train=0, val=0, test=0, documents_per_person=5, least_documents=3)
    articles = "".join(json.dumps(a) + "\n" for a in people.articles)
    (tmp_path / "k.jsonl").write_text(articles)
    (tmp_path / "people.txt").write_text("".join(f"{p.name}\n" for p in people.people))
    words = ["bio", f"data.folder={tmp_path}", "data.topics=people.txt", "data.knowledge=k.jsonl"]
    words += [f"run.out={tmp_path / 'out'}", "llm.model=gpt-4o-mini", "llm.base_url=http://x/v1"]
    words += ["data.sizes.train=12", "data.sizes.val=4", "data.sizes.test=6"]
    llm = ["prompts.method=llm", "prompts.questions=3", "responses.max_tokens=16"]
    assert cli.main(["estimate", "--json", "--topics", "50", *words, *llm]) == 0
    found = {r["stage"]: r for r in json.loads(capsys.readouterr().out)}
    assert found["prompts"]["requests"] == 22
    assert found["facts"]["tables"] == found["verdicts"]["tables"] == 8
    assert found["responses"]["tables"] == 8 and found["train"]["tables"] == 4
    assert found["total"]["cost_usd"] > 0 and not (tmp_path / "out" / "ledger").exists()
    assert cli.main(["estimate", *words, "--tflops", "300", "--parameters", "1e9"]) == 0
    said = capsys.readouterr().out
    assert "1 billion parameters, at 2,000 sampled tokens/s and 300 TFLOP/s" in said
    assert cli.main(["estimate", *words, "--tflops", "0"]) == 2


def test_placeholder_responses_are_sentences_of_the_topics_article(tmp_path):
    from facttune_ray.knowledge import build

    text = [f"Ada did thing {i} on a day." for i in range(30)]
    build.write([{"title": "Ada", "text": [" ".join(text)]}], tmp_path / "k.db")
    row = {"prompt_id": "p", "topic": "Ada", "split": "test", "prompt": "Who?"}
    cfg = load([], ["responses.max_tokens=40", "evaluation.samples=3"])
    found = list(placeholder_responses(cfg, [row], str(tmp_path / "k.db")))
    assert len({r["text"] for r in found}) == 3
    for r in found:
        assert 20 <= len(r["text"].split()) < 27
        assert all(f"{s.strip()}." in text for s in r["text"].split(".") if s.strip())
