"""`facttune train data.groups=FILE`: DPO on preferences of the user's own.

out/given/groups, reference, train/model
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.loop.models import Snapshot, model_digest
from facttune_ray.loop.nodes import DriverTable
from facttune_ray.loop.run import Run
from facttune_ray.loop.tune import preferred, supervised
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import preflight
from facttune_ray.runtime.maker import Maker
from facttune_ray.sources import given
from facttune_ray.stages import stage
from facttune_ray.telemetry import say

SCOPE = "given"


def train_given(cfg: Config) -> tuple[list[str], list[str]]:
    """Train `model.path` on the preferences in the files of `data.groups`. -> (folders of the
    trained models, names made)"""
    from facttune_ray.training import engine, trackers

    files = given.files(cfg.data.groups)
    source = given.recipe(files, cfg.data.reward)
    engine.deepspeed_config(cfg.train)  # what is wrong, before the model is run
    for tracker in cfg.train.log:
        trackers.check(tracker)
    if not cfg.model.path:
        raise UserError("model.path is empty: name the model that is trained on data.groups")
    preflight.check_model("model.path", cfg.model.path)
    if cfg.train.loss == "fact_masked":
        raise UserError(
            "train.loss=fact_masked: needs the tables facts and verdicts, which data.groups has not"
        )
    with Maker(cfg, embedded) as maker:
        run = Run(maker)
        recipe = source | stage("groups").recipe(cfg) | {"run.shards": run.cfg.run.shards}

        def rows() -> list[dict]:
            found = given.read(files, cfg.groups, cfg.data.reward)
            if found.left_out:
                say(f"data.groups: {found.left_out:,} rows make no pair of their own: left out")
            if found.empty:
                say(f"data.groups: {found.empty:,} responses are null, as their rewards: left out")
            return found.groups

        groups = run.make(DriverTable(f"{SCOPE}/groups", "groups", rows), recipe)
        models = [Snapshot("start", cfg.model.path, model_digest(cfg.model.path))]
        if cfg.train.sft.epochs:
            models.append(supervised(run, f"{SCOPE}/sft", groups, models[-1]))
        table = run.table(SCOPE, "reference", [groups], model=models[-1])
        models.append(preferred(run, SCOPE, table, models[-1], cfg.train))
        return [m.path for m in models[1:]], maker.made
