"""The tables that score the responses of one model. They are the same for every model of a run.

responses -> facts -> verdicts -> rewards. Rewards by confidence also need questions -> answers ->
classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from facttune_ray.config.wanted import needed
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.run import Run
from facttune_ray.stages import stage
from facttune_ray.storage.schema import made_of
from facttune_ray.storage.scopes import SECOND

TRAIN = ("train",)


def respond(run: Run, model: Snapshot, scope: str, splits: tuple[str, ...]) -> None:
    """`scope/responses`, sampled from the model; imported responses are already there."""
    if model.path:
        run.table(scope, "responses", ["prompts"], model=model, splits=splits)


def judge(run: Run, scope: str, splits: tuple[str, ...]) -> None:
    """`scope/facts`, and `scope/verdicts` for the responses of these splits."""
    facts = run.table(scope, "facts", [f"{scope}/responses"])
    if splits:
        run.table(scope, "verdicts", [facts, "knowledge"], splits=splits)


def answer_test_topics(run: Run, model: Snapshot) -> str:
    """The model's responses to the test topics, judged. -> their scope"""
    scope = f"{model.name}/test"
    respond(run, model, scope, ("test",))
    judge(run, scope, ("test",))
    return scope


def rewards(run: Run, model: Snapshot, scope: str, wanted: set[str]) -> None:
    """`scope/rewards` with the columns that the wanted rewards need, and `scope/mixes` for the
    wanted rewards that are weighted sums."""
    columns, mixes = needed(run.cfg, wanted), run.cfg.rewards.mix
    responses, facts = f"{scope}/responses", f"{scope}/facts"
    inputs, sampled = [responses, facts], []
    if not columns or made_of(columns, "verdicts"):
        inputs.append(f"{scope}/verdicts")
    if made_of(columns, "questions"):
        questions = run.table(scope, "questions", [facts, "prompts"], splits=TRAIN)
        sampled += [questions, run.table(scope, "answers", [questions], model=model)]
        inputs.append(questions)
    if made_of(columns, "entities"):
        sampled.append(run.table(scope, "entities", [responses], model=model, splits=TRAIN))
        inputs.append(sampled[-1])
    if sampled:
        inputs.append(run.table(scope, "classes", sampled))
    if made_of(columns, "p_true"):
        inputs.append(run.table(scope, "p_true", [facts], model=model, splits=TRAIN))
    table = run.table(scope, "rewards", inputs)
    if mix := {name: dict(weights) for name, weights in mixes.items() if name in wanted}:
        run.table(scope, "mixes", [table], mix=mix)


def second_judge(run: Run, scopes: Mapping[str, str]) -> None:
    """Tables by a second judge of the measured responses: `scope/second_opinion/verdicts` by
    `evaluation.estimator`, and `scope/judgements`, an LLM's comparison with base's responses.
    `scopes`: model -> scope."""
    cfg = run.cfg
    other = stage("verdicts").second_opinion(cfg)
    for name, scope in scopes.items():
        if other:
            inputs = [f"{scope}/facts", "knowledge"]
            run.table(f"{scope}/{SECOND}", "verdicts", inputs, cfg=other)
        if cfg.evaluation.judge_samples and name != "base" and "base" in scopes:
            pair = {"responses": f"{scope}/responses", "base": f"{scopes['base']}/responses"}
            run.table(scope, "judgements", pair)
