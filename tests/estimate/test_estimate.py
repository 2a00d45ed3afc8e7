"""Estimates against the payments of a run; budget and ledger from the command line."""

from __future__ import annotations

import json

import pytest

from facttune_ray import cli
from facttune_ray.config import load
from facttune_ray.estimate.estimate import estimate
from facttune_ray.llm import ledger_tools
from facttune_ray.loop.dry_run import DryRun
from facttune_ray.loop.facttune import facttune
from facttune_ray.loop.run import Run
from facttune_ray.quickstart import annotator
from facttune_ray.sources import world
from facttune_ray.storage.tables import Folder

UNTUNED = ["tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0"]
PRICE = ["llm.usd_per_million_input=10", "llm.usd_per_million_output=30"]


def paid(folder) -> dict[str, dict]:
    return {row["stage"]: row for row in ledger_tools.stats(Folder.of(str(folder)))}


def test_a_dry_run_lists_the_tables_of_the_loop(small_preset):
    plan = DryRun(load(["quickstart", small_preset]))
    facttune(Run(plan))
    asked = [f"{t.scope}/{t.step}" for t in plan.tables]
    assert asked[:3] == ["base/tune/responses", "base/tune/facts", "base/tune/verdicts"]
    assert "base/tune/questions" in asked and "facttune_fs/round_1/tune/facts" in asked
    chosen = [f"facttune_mc/round_1/test/{n}" for n in ("facts", "verdicts", "judgements")]
    assert set(chosen) <= set(asked) and asked[-1] == chosen[-1]
    assert not any("second_opinion" in name for name in asked)  # lexical asks nothing
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("tuned", [True, False])
def test_base_answers_test_topics_beside_ready_made_responses_where_a_model_is_tuned(
    tmp_path, tuned
):
    (tmp_path / "m.jsonl").write_text('{"topic": "Ada", "input": "Who?", "output": "Ada sings."}\n')
    (tmp_path / "knowledge.jsonl").write_text('{"title": "Ada", "text": "Ada sings."}\n')
    words = [f"data.folder={tmp_path}", "data.files=[m.jsonl]", f"run.out={tmp_path / 'out'}"]
    words += ["tune.facttune_fs.rounds=1", f"evaluation.tuned={tuned}", "facts.method=rules"]
    plan = DryRun(load(["factscore"], words))
    outcome = facttune(Run(plan))
    measured = {"base": "base/test", "facttune_fs": "facttune_fs/round_1/test"}
    assert outcome.measured == (measured if tuned else {})
    asked = {t.scope: t.splits for t in plan.tables if t.step == "responses"}
    assert ("base/test" in asked) == tuned and asked.get("base/test", ("test",)) == ("test",)


def test_a_second_opinion_that_asks_is_planned_by_its_own_settings(small_preset):
    words = ["verdicts.estimator=lexical", "evaluation.estimator=chat"]
    plan = DryRun(load(["quickstart", small_preset], words))
    facttune(Run(plan))
    second = [t for t in plan.tables if t.scope.endswith("second_opinion")]
    assert [t.scope.split("/")[0] for t in second] == ["base", "facttune_fs", "facttune_mc"]
    assert {t.splits for t in second} == {("test",)}
    assert {t.cfg.verdicts.estimator for t in second} == {"chat"}


def test_a_second_opinion_that_asks_is_counted(tmp_path):
    """It sends the requests of a first estimator, but only for test topics."""
    people = world.make(0, 30, train=0, val=0, test=0, documents_per_person=5, least_documents=3)
    (tmp_path / "k.jsonl").write_text("".join(json.dumps(a) + "\n" for a in people.articles))
    (tmp_path / "people.txt").write_text("".join(f"{p.name}\n" for p in people.people))
    words = ["data.source=topics", f"data.folder={tmp_path}", "data.topics=people.txt"]
    words += ["data.knowledge=k.jsonl", "facts.method=rules", "llm.model=gpt-4o-mini"]
    words += ["data.sizes.train=12", "data.sizes.val=4", "data.sizes.test=6"]

    def asked(first, second, *others):
        more = [f"verdicts.estimator={first}", f"evaluation.estimator={second}", *others]
        cfg = load([], [*words, f"run.out={tmp_path / first}", *more])
        return {r["stage"]: r for r in estimate(cfg)}["verdicts"]

    every, test = asked("chat", "none"), asked("lexical", "chat")
    assert (every["tables"], test["tables"]) == (2, 1)
    assert test["requests"] == pytest.approx(every["requests"] * 6 / 22, abs=1)
    assert asked("chat", "chat+lexical")["requests"] == pytest.approx(
        every["requests"] * (1 + 6 / 22), abs=2
    )
    # a masked LM would have to be loaded, and asks nothing
    assert asked("chat+npm", "none", "verdicts.npm=/nowhere")["requests"] == every["requests"]
    same, thrice = (
        asked("chat", "none", f"contenders.dola={{evaluation: {{samples: {n}}}}}") for n in (5, 15)
    )
    more = [found["requests"] - every["requests"] for found in (same, thrice)]
    assert more[0] > 0 and more[1] == pytest.approx(3 * more[0], abs=2)


@pytest.mark.slow
def test_estimate_then_budget_then_run(tmp_path, small_preset, ray_cluster, capsys):
    out = tmp_path / "out"
    words = ["quickstart", small_preset, f"run.out={out}", *UNTUNED, *PRICE]
    assert cli.main(["estimate", *words]) == 2
    assert "facttune stage responses" in capsys.readouterr().err
    for stage in ("knowledge", "prompts", "pretrain", "responses"):
        assert cli.main(["stage", stage, *words]) == 0
    capsys.readouterr()
    assert cli.main(["estimate", "--json", "--topics", "1000", *words]) == 0
    rows = {r["stage"]: r for r in json.loads(capsys.readouterr().out)}
    assert not (out / "ledger").exists()  # nothing was asked
    total = rows["total"]

    budget = total["cost_usd"] / 3
    assert cli.main(["run", *words, f"llm.budget_usd={budget}"]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "raise llm.budget_usd" in error and "of 4 parts of base/tune/facts done" in error
    spent = sum(r["cost_usd"] for r in paid(out / "ledger").values())
    assert 0.9 * budget < spent < 1.05 * budget
    # once more: nothing is left to spend, and what is paid counts as paid
    assert cli.main(["run", *words, f"llm.budget_usd={budget}"]) == 3
    assert sum(r["cost_usd"] for r in paid(out / "ledger").values()) == pytest.approx(spent)

    capsys.readouterr()
    assert cli.main(["run", *words]) == 0
    found = paid(out / "ledger")
    for stage in ("facts", "verdicts"):
        assert rows[stage]["requests"] == pytest.approx(found[stage]["completions"], rel=0.1)
        tokens = found[stage]["prompt_tokens"] + found[stage]["completion_tokens"]
        guessed = rows[stage]["prompt_tokens"] + rows[stage]["completion_tokens"]
        assert guessed == pytest.approx(tokens, rel=0.1)
    capsys.readouterr()
    assert cli.main(["estimate", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["requests"] == 0  # all is paid

    for action in ("stats", "compact", "verify", "gc"):
        assert cli.main(["ledger", action, str(out / "ledger")]) == 0
    said = capsys.readouterr().out
    assert "completions" in said and "-> 1;" in said and "0 repeated" in said


def test_bad_arguments_are_refused(tmp_path, capsys):
    assert cli.main(["ledger", "stats", str(tmp_path / "none")]) == 2
    assert "no ledger there" in capsys.readouterr().err
    words = ["factscore", "facts.method=llm", "llm.budget_usd=1", "llm.model=unknown"]
    assert cli.main(["estimate", *words]) == 2
    assert cli.main(["estimate", "factscore", "--topics", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_config_without_an_llm_costs_nothing(labelled_data, tmp_path, capsys):
    words = ["factscore", f"data.folder={labelled_data}", f"run.out={tmp_path}"]
    assert cli.main(["estimate", *words]) == 0
    assert "asks no LLM" in capsys.readouterr().out


@pytest.mark.slow
def test_estimate_is_within_a_tenth_on_real_text(labelled_data, tmp_path, ray_cluster):
    words = [f"data.folder={labelled_data}", f"run.out={tmp_path}", "facts.method=llm"]
    words += ["verdicts.estimator=chat", "llm.model=gpt-4o-mini"]
    guessed = {r["stage"]: r for r in estimate(load(["factscore"], words))}
    with annotator.running(annotator.AnnotatorOptions()) as url:
        assert cli.main(["run", "factscore", *words, f"llm.base_url={url}"]) == 0
    found = paid(tmp_path / "ledger")
    for key in ("prompt_tokens", "completion_tokens", "cost_usd"):
        total = sum(r[key] for r in found.values())
        assert guessed["total"][key] == pytest.approx(total, rel=0.1), key
    calls = sum(r["completions"] for r in found.values())
    assert guessed["total"]["requests"] == pytest.approx(calls, rel=0.1)
