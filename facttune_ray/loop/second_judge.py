"""A second judge of what a run measures: another estimator's verdicts, an LLM's preferences.

out/base/test/second_opinion/verdicts     the same facts, judged by `evaluation.estimator`
out/facttune_fs/round_2/test/judgements   fluency and helpfulness against base's responses
"""

from __future__ import annotations

from collections.abc import Mapping

from facttune_ray.evaluation.breakdowns import SECOND
from facttune_ray.loop.run import Run
from facttune_ray.stages import stage


def second_judge(run: Run, scopes: Mapping[str, str]) -> None:
    """The tables, for measured responses: model -> scope."""
    cfg = run.cfg
    other = stage("verdicts").second_opinion(cfg)
    for name, scope in scopes.items():
        if other:
            inputs = [f"{scope}/facts", "knowledge"]
            run.table(f"{scope}/{SECOND}", "verdicts", inputs, cfg=other)
        if cfg.evaluation.judge_samples and name != "base" and "base" in scopes:
            pair = {"responses": f"{scope}/responses", "base": f"{scopes['base']}/responses"}
            run.table(scope, "judgements", pair)
