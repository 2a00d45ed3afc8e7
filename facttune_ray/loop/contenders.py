"""Contenders: other models and decoders, sampled and judged on the run's test topics."""

from __future__ import annotations

from dataclasses import replace

from facttune_ray.config import Contender
from facttune_ray.loop.models import Snapshot, model_digest
from facttune_ray.loop.run import Run
from facttune_ray.loop.score import judge
from facttune_ray.loop.start import base


def contend(run: Run, one: Contender, tuned: dict[str, Snapshot]) -> str:
    """The contender's responses to the test topics, judged as all others are. -> their scope

    `tuned`: the chosen round of each tuned model.
    """
    scope, asked = f"{one.name}/test", "prompts"
    if one.own_prompts:
        asked = run.table(one.name, "prompts", ["topics"], cfg=one.cfg)
    model = replace(_model(run, one, tuned), name=one.name)
    run.table(scope, "responses", [asked], cfg=one.cfg, model=model, splits=("test",))
    judge(run, scope, ("test",))
    return scope


def _model(run: Run, one: Contender, tuned: dict[str, Snapshot]) -> Snapshot:
    path = one.cfg.model.path
    if one.cfg.sampling.engine == "api":
        return Snapshot(one.name, f"api:{one.cfg.sampling.llm.model}", "api")
    if one.of:
        return tuned[one.of]
    if path and path != run.cfg.model.path:
        return Snapshot(one.name, path, model_digest(path))
    return base(run)
