"""The estimate against what is then paid; the budget and the ledger from the command line."""

from __future__ import annotations

import json

import pytest

from facttune_ray import cli
from facttune_ray.config import load
from facttune_ray.estimate import Plan, estimate
from facttune_ray.llm import ledger_tools
from facttune_ray.tables import Folder

UNTUNED = ["tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0"]
PRICE = ["llm.usd_per_million_input=10", "llm.usd_per_million_output=30"]


def paid(folder) -> dict[str, dict]:
    return {row["stage"]: row for row in ledger_tools.stats(Folder.of(str(folder)))}


def test_the_plan_is_the_loop(small_preset):
    plan = Plan(load(["quickstart", small_preset]))
    plan.loop()
    asked = [f"{scope}/{stage}" for scope, stage, _ in plan.tables]
    assert asked[:3] == ["base/tune/responses", "base/tune/facts", "base/tune/verdicts"]
    assert "base/tune/questions" in asked and "facttune_fs/round_1/tune/facts" in asked
    chosen = [f"facttune_mc/round_1/test/{n}" for n in ("facts", "verdicts", "judgements")]
    assert set(chosen) <= set(asked) and asked[-1] == chosen[-1]
    assert not any("second_opinion" in name for name in asked)  # lexical asks nothing
    assert len(asked) == len(set(asked))


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


def test_what_the_cli_refuses(tmp_path, capsys):
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
    words += ["llm.base_url=embedded"]
    guessed = {r["stage"]: r for r in estimate(load(["factscore"], words))}
    assert cli.main(["run", "factscore", *words]) == 0
    found = paid(tmp_path / "ledger")
    for key in ("prompt_tokens", "completion_tokens", "cost_usd"):
        total = sum(r[key] for r in found.values())
        assert guessed["total"][key] == pytest.approx(total, rel=0.1), key
    calls = sum(r["completions"] for r in found.values())
    assert guessed["total"]["requests"] == pytest.approx(calls, rel=0.1)
