"""Traces of facts that the stages made with a real client: the requests are found in its ledger."""

import asyncio
import math
from dataclasses import replace

import annotator_client
import pytest

from facttune_ray import config
from facttune_ray.knowledge import build
from facttune_ray.llm.recorded import Request
from facttune_ray.prompts import facts as facts_prompt
from facttune_ray.prompts import verdicts as verdicts_prompt
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.sampling import engines
from facttune_ray.stages import answers, facts, questions, verdicts
from facttune_ray.stages.context import Context
from facttune_ray.stages.traces import Asked, Traces
from facttune_ray.stages.work import Work

ARTICLE = {
    "title": "Mara Veldt",
    "text": ["Mara Veldt was born in Lyon. Mara Veldt sings.", "Mara Veldt plays the cello."],
}
RESPONSE = {
    "response_id": "r",
    "topic": "Mara Veldt",
    "split": "train",
    "prompt": "Write.",
    "text": "Mara Veldt was born in Rome. She plays the cello. She was born in Rome.",
    "model": "base",
    "abstained": None,
    "error": None,
}
PROMPT = {"topic": "Mara Veldt", "pronoun": "her", "lower_case": None}


@pytest.fixture(scope="module")
def url():
    with running(AnnotatorOptions()) as address:
        yield address


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    path = tmp_path_factory.mktemp("knowledge") / "k.db"
    build.write([ARTICLE], path)
    return str(path)


@pytest.fixture
def made(tmp_path, url, knowledge):
    """cfg, rows = made(*overrides): the tables of one shard, by the stages with a real client."""

    def run(*overrides):
        cfg = config.load([], [f"run.out={tmp_path}", *annotated(url), *overrides])
        rows = {"prompts": [PROMPT], "responses": [RESPONSE], "second": []}

        async def stage(module, name):
            llm = engines.endpoint(cfg) if module is answers else cfg.llm
            client = annotator_client.client(tmp_path, url, **vars(llm))
            context = Context(
                Work(name, "", {}, cfg, snapshot="base", knowledge=knowledge),
                client=client,
                rows=lambda role, shard: rows.get(role, []),
            )
            try:
                return await module.run(context, 0)
            finally:
                await context.close()

        sampled = (answers,) if cfg.sampling.engine == "api" else ()
        for module in (facts, verdicts, questions, *sampled):
            name = module.__name__.rsplit(".", 1)[-1]
            rows[name] = asyncio.run(stage(module, name))
        return cfg, rows

    return run


def annotated(url):
    prices = [f"llm.{name}={usd}" for name, usd in annotator_client.PRICED.items()]
    return ["facts.method=llm", "verdicts.estimator=chat", f"llm.base_url={url}", *prices]


def by_stage(steps):
    return {s["stage"]: s for s in steps}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("verdicts.passages=1", "facts.decontextualize=true", "questions.context=2"),
        ("verdicts.facts_per_request=2", "questions.answer=true"),
        ("verdicts.retrieval=none", "verdicts.logprobs=true", "facts.domain=bio"),
        ("verdicts.retrieval=fts", "llm.max_completion_tokens=99", "llm.params={seed: 7}"),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_every_request_is_found_with_its_answer_price_and_latency(made, knowledge, overrides):
    cfg, rows = made("evaluation.estimator=none", *overrides)
    traces = Traces(cfg, knowledge).of_shard(rows)
    assert list(traces) == [f["fact_id"] for f in rows["facts"]] and len(traces) == 3
    judged = {v["fact_id"]: v["supported"] for v in rows["verdicts"]}
    for f in rows["facts"]:
        steps = by_stage(traces[f["fact_id"]])
        assert set(steps) == {"verdicts", "facts", "questions"}
        for step in steps.values():
            (answer,) = step["answers"]
            assert answer["cost_usd"] > 0 and answer["latency_s"] > 0 and answer["model"]
            assert answer["prompt_tokens"] > answer["completion_tokens"] > 0
            assert {m[0] for m in step["messages"]} <= {"system", "user", "assistant"}
        asked, said = steps["facts"]["messages"][-1][1], steps["facts"]["answers"][0]["text"]
        assert f["sentence_text"] in asked and facts_prompt.parse(said) == [f["fact"]]
        verdict = steps["verdicts"]
        assert f["fact"].rstrip(".") in verdict["messages"][-1][1]
        if "verdicts.facts_per_request=2" in overrides:
            read = verdicts_prompt.parse_many(verdict["answers"][0]["text"], 2)
            assert judged[f["fact_id"]] in read
        else:
            assert verdicts_prompt.parse(verdict["answers"][0]["text"]) is judged[f["fact_id"]]
        assert f["fact"] in steps["questions"]["messages"][-1][1]


@pytest.mark.parametrize("form", ["chat", "completions"])
def test_answers_that_an_endpoint_sampled_are_found_by_their_seeds(made, knowledge, form):
    api = ("sampling.engine=api", f"sampling.form={form}", "sampling.llm.model=sampled")
    cfg, rows = made("evaluation.estimator=none", "answers.samples=3", *api)
    wanted = {a["question_id"]: a["answers"] for a in rows["answers"]}
    traces = Traces(cfg, knowledge).of_shard(rows)
    for q in rows["questions"]:
        step = by_stage(traces[q["fact_id"]])["answers"]
        assert step["by"] == "sampled" and step["messages"][-1][1].endswith(
            f"Question: {q['question']}\nAnswer:"
        )
        said = [a["text"].strip().split("\n")[0].strip() for a in step["answers"]]
        assert said == wanted[q["question_id"]] and len(said) == 3


def test_equal_facts_share_a_step_and_no_request_is_sent(made, knowledge, url):
    cfg, rows = made("evaluation.estimator=none")
    sent = annotator_client.stats(url)
    first, _, again = Traces(cfg, knowledge).of_shard(rows).values()
    assert by_stage(first)["verdicts"] is by_stage(again)["verdicts"]
    assert annotator_client.stats(url) == sent


def test_equal_questions_about_two_topics_have_their_own_sampled_answers():
    asked = Asked(config.load([], []))
    one, two = (Request("When was she born?", samples=[{"seed": seed}]) for seed in (1, 2))
    assert asked.step("answers", one) is asked.step("answers", one)
    assert asked.step("answers", one) is not asked.step("answers", two)


def test_a_request_that_was_not_paid_has_no_answer(made, knowledge):
    cfg, rows = made("evaluation.estimator=none", "verdicts.facts_per_request=2")
    asked = by_stage(next(iter(Traces(cfg, knowledge).of_shard(rows).values())))["verdicts"]
    # the same tables, as if each fact had been asked about by itself: nothing was paid for that
    alone = replace(cfg, verdicts=replace(cfg.verdicts, facts_per_request=1))
    steps = by_stage(next(iter(Traces(alone, knowledge).of_shard(rows).values())))
    assert steps["verdicts"]["answers"] == [] and len(asked["answers"]) == 1
    assert steps["facts"]["answers"]


def test_the_parts_of_a_lexical_score_add_up_to_it(made, knowledge):
    cfg, rows = made("evaluation.estimator=none")
    local = replace(cfg, verdicts=replace(cfg.verdicts, estimator="lexical"))
    context = Context(
        Work("verdicts", "", {}, local, knowledge=knowledge),
        rows=lambda role, shard: rows["facts"],
    )
    rows["verdicts"] = asyncio.run(verdicts.run(context, 0))
    traces = Traces(local, knowledge).of_shard(rows)
    for v in rows["verdicts"]:
        step = by_stage(traces[v["fact_id"]])["verdicts"]
        odds = sum(part for _, part in step["parts"])
        assert 1 / (1 + math.exp(-odds)) == pytest.approx(v["score"], abs=0.002)
        assert step["score"] == v["score"] and step["said"] == v["reason"]
        assert step["sentence"] in v["evidence"] and step["threshold"] == 0.5
    born = by_stage(traces[rows["facts"][0]["fact_id"]])["verdicts"]
    assert born["sentence"] == "Mara Veldt was born in Lyon."
    assert born["clause"].endswith("born in lyon")
    assert dict(born["parts"])["bound of the relation"] < 0


def test_a_verifier_with_a_model_shows_the_passages_that_it_read(made, knowledge):
    cfg, rows = made("evaluation.estimator=none", "verdicts.passages=1")
    nli = replace(cfg, verdicts=replace(cfg.verdicts, estimator="nli", nli="a/model"))
    _, cello, _ = Traces(nli, knowledge).of_shard(rows).values()
    assert by_stage(cello)["verdicts"]["passages"] == [["Mara Veldt", ARTICLE["text"][1]]]


def test_what_cannot_be_shown_is_said(made, knowledge, tmp_path):
    cfg, rows = made("evaluation.estimator=none")

    def note(cfg, knowledge):
        return by_stage(next(iter(Traces(cfg, knowledge).of_shard(rows).values())))["verdicts"][
            "note"
        ]

    assert "does not exist" in note(cfg, str(tmp_path / "gone.db"))
    dense = replace(cfg, verdicts=replace(cfg.verdicts, retrieval="dense"))
    assert "does not run the model that ranks passages" in note(dense, knowledge)
    elsewhere = replace(cfg, llm=replace(cfg.llm, ledger=str(tmp_path / "none")))
    steps = by_stage(next(iter(Traces(elsewhere, knowledge).of_shard(rows).values())))
    assert steps["verdicts"]["answers"] == [] and steps["verdicts"]["messages"]
