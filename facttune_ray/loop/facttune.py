"""FactTune (Tian et al., ICLR 2024): sample, score, prefer, train; choose by val; measure on test.

out/base/tune/                  the base model on train and val topics, up to rewards
out/facttune_fs/round_1/        its preferences, and the model that was trained on them
out/facttune_fs/round_1/tune/   that model on val topics, and on train topics for round 2
out/facttune_fs/round_2/test/   the chosen round alone, on test topics
out/dola/test/                  a contender: another model or decoder, on the same topics
"""

from __future__ import annotations

from dataclasses import dataclass

from facttune_ray.config import contenders
from facttune_ray.config.wanted import asks_model, needed, wanted
from facttune_ray.loop.contenders import contend
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.run import Run
from facttune_ray.loop.score import answer_test_topics, judge, respond, rewards, second_judge
from facttune_ray.loop.start import base, imported, knowledge, prompts
from facttune_ray.loop.tune import tune_all
from facttune_ray.stages.prompts import IMPORTED as SOURCES_WITH_RESPONSES
from facttune_ray.storage.scopes import IMPORTED


@dataclass(frozen=True)
class Outcome:
    """What is measured, and what the report is about."""

    measured: dict[str, str]  # model -> scope of its test tables
    selection: dict[str, dict]  # tuned model -> the chosen round, and what it was chosen from
    scored: str  # scope of the first table of rewards


def facttune(run: Run) -> Outcome:
    """The whole loop. Every table and model is asked of the run."""
    cfg = run.cfg
    knowledge(run)
    prompts(run)

    # Sample and score. Imported responses have no model: `first` is then the empty snapshot.
    if cfg.data.source in SOURCES_WITH_RESPONSES:
        first, source = Snapshot("imported", "", ""), IMPORTED
        imported(run)
        judge(run, source, ("train", "val", "test"))
    else:
        first, source = base(run), "base/tune"
        respond(run, first, source, ("train", "val"))
        judge(run, source, ("train", "val"))
    columns = needed(cfg, wanted(cfg))
    sampled_again = not first.path and asks_model(cfg, columns)
    rewards(run, base(run) if sampled_again else first, source, wanted(cfg))

    # Prefer and train, round by round.
    rounds = tune_all(run, first, source)

    # Choose each model's round by the val topics, and measure that round alone on the test topics.
    measured, selection = {}, {}
    chosen = {name: models[-1] for name, models in rounds.items()}
    compared = rounds if cfg.evaluation.tuned else {}
    if first.path or compared:  # the base model is what the tuned models are compared with
        measured["base"] = answer_test_topics(run, first if first.path else base(run))
    for name, models in compared.items():
        selection[name] = run.choose(models, cfg.evaluation.select)
        chosen[name] = next(m for m in models if m.name == selection[name]["chosen"])
        measured[name] = answer_test_topics(run, chosen[name])
    for contender in contenders(cfg):
        measured[contender.name] = contend(run, contender, chosen)
    second_judge(run, measured or {"": source})
    run.finish()
    return Outcome(measured, selection, source)
