"""Second opinions on what a run measures: another estimator's verdicts, an LLM's preferences.

out/base/test/second_opinion/verdicts     the same facts, judged by `evaluation.estimator`
out/facttune_fs/round_2/test/judgements   fluency and helpfulness against base's responses
"""

from __future__ import annotations

from collections.abc import Mapping

from facttune_ray.config import Config
from facttune_ray.evaluation.breakdowns import SECOND
from facttune_ray.evaluation.measure import by_verdicts
from facttune_ray.pipeline import Run, say
from facttune_ray.stages import stage


def opinions(run: Run, scopes: Mapping[str, str]) -> None:
    """The tables, for measured responses: model -> scope."""
    cfg, other = run.cfg, stage("verdicts").second_opinion(run.cfg)
    for name, scope in scopes.items():
        if other:
            inputs = [f"{scope}/facts", "knowledge"]
            run.table(f"{scope}/{SECOND}", "verdicts", inputs, cfg=other)
        if cfg.evaluation.judge_samples and name != "base" and "base" in scopes:
            pair = {"responses": f"{scope}/responses", "base": f"{scopes['base']}/responses"}
            run.table(scope, "judgements", pair)


def check(cfg: Config) -> None:
    """UserError for an estimator that is none. Says when tuned models are measured by nothing but
    the estimator that rewards them, and when the second opinion is a part of the first."""
    verdicts = stage("verdicts")
    other = verdicts.second_opinion(cfg)
    first = set(verdicts.estimators(cfg.verdicts))
    if other and (shared := first & set(verdicts.estimators(other.verdicts))):
        say(
            f"warning: evaluation.estimator={cfg.evaluation.estimator} has "
            f"{', '.join(sorted(shared))} in common with verdicts.estimator="
            f"{cfg.verdicts.estimator}: it is no opinion of its own"
        )
    rewarded = [n for n, t in cfg.tune.items() if t.rounds and by_verdicts(cfg, t.reward)]
    if rewarded and cfg.evaluation.tuned and not other:
        say(
            f"warning: {', '.join(rewarded)}: measured by the estimator that rewards it "
            f"({cfg.verdicts.estimator}), which flatters it: set evaluation.estimator to another"
        )
