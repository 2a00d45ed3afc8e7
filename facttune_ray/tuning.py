"""From preferences to a tuned model: the nodes groups, reference and train of one scope.

    out/facttune_fs/round_1/groups, reference, train/model
    out/facttune_fs/sft/reference, train/model     train.sft.epochs: what round 1 then starts from
    out/given/groups, reference, train/model       files of one's own, `facttune train`

Recipes hold what decides the weights: never paths, hardware, or how a pass is cut.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facttune_ray import tables
from facttune_ray.config import Config, SFTConfig, TrainConfig
from facttune_ray.config_layers import flatten
from facttune_ray.errors import UserError
from facttune_ray.pipeline import Run, Snapshot, model_digest, say
from facttune_ray.schema import REWARD_COLUMNS
from facttune_ray.stages import stage
from facttune_ray.tables import Recipe

GIVEN = "given"  # scope of files of one's own
# of TrainConfig: what decides speed, or what is written beside the model
AROUND = frozenset(
    (
        "workers min_workers gpus accelerator deepspeed pass_tokens share_prefix recompute compile "
        "save_every keep checkpoints max_failures log eval_samples"
    ).split()
)
OF_PAIRS = frozenset(
    "loss beta label_smoothing sft_weight loss_mean lr epochs pairs_per_step".split()
)


class Tuning(Run):
    """A run that trains."""

    also: frozenset[str] = frozenset()  # made, too, where `only` names one stage

    def ensure(self, name: str, step: str, recipe: Recipe, make: Callable[[], Any]) -> str:
        allowed = self.only if self.only and step in self.also else step
        return super().ensure(name, allowed, recipe, make)

    def check_pairs(self, groups: str, rewards: str, reward: str) -> None:
        """UserError when no prompt has a pair: why, from the rewards that they come from."""
        if self.manifests[groups]["rows"]:
            return
        key = reward if reward in REWARD_COLUMNS else "value"
        folder, known = self.root / rewards, 0
        for shard in range(self.cfg.run.shards):
            known += sum(
                r["split"] == "train" and r.get("name", reward) == reward and r[key] is not None
                for r in tables.rows(folder, shard)
            )
        if not known:
            raise UserError(
                f"{folder}: {reward} is null for every train response: nothing to train on. "
                f"Its `error` and count columns say why"
            )
        raise UserError(
            f"{folder}: no two responses of a prompt whose {reward} differ by more than "
            f"groups.threshold={self.cfg.groups.threshold}: nothing to train on. Lower it, or "
            f"sample more"
        )

    def supervised(self, scope: str, groups: str, start: Snapshot) -> Snapshot:
        """The model `start` after `train.sft` on the groups' responses."""
        train = self.cfg.train
        if train.best != "none":  # the only figure that is not about pairs
            train = dataclasses.replace(train, best="loss")
        rows = self.table(scope, "reference", [groups], model=start)
        return self._fit(scope, rows, start, sft_recipe(train), train, train.sft)

    def preferred(self, scope: str, rows: str, start: Snapshot, train: TrainConfig) -> Snapshot:
        """The model `start` after preference training on the table `rows`."""
        recipe = dpo_recipe(train) | {f"groups.{k}": v for k, v in vars(self.cfg.groups).items()}
        return self._fit(scope, rows, start, recipe, train, None)

    def _fit(
        self,
        scope: str,
        rows: str,
        start: Snapshot,
        recipe: Recipe,
        train: TrainConfig,
        sft: SFTConfig | None,
    ) -> Snapshot:
        """`scope/train`: the tuned model in its folder model/."""
        from facttune_ray.training import engine, loop

        cfg, name = self.cfg, f"{scope}/train"
        recipe |= {"input.reference": self.fingerprint(rows), "input.model": start.fingerprint}
        recipe |= {"run.seed": cfg.run.seed, "version": loop.VERSION}
        out = self.root / name

        def make() -> None:
            from facttune_ray.stages import worker

            started = time.monotonic()
            settings = engine.deepspeed_config(train)
            if train.loss == "fact_masked" and sft is None:
                self._check_masks(rows)
            tables.begin(self.root / name, recipe)
            worker.start_ray()
            table = self.root / rows
            # the recipe is in the name: checkpoints elsewhere are never those of another training
            called = f"{cfg.run.name}-{scope}-{tables.fingerprint(recipe)[:8]}"
            job = loop.TrainJob(
                rows=tuple((table / tables.part(s)).uri for s in range(cfg.run.shards)),
                # workers stand in another folder than the driver
                model=str(Path(start.path).resolve()) if Path(start.path).is_dir() else start.path,
                out=out.uri,
                train=train,
                groups=cfg.groups,
                seed=cfg.run.seed,
                deepspeed=settings,
                sft=sft,
                name=re.sub(r"[^\w.-]+", "-", called),
            )
            steps = loop.train(job)
            self.finish_artifact(name, recipe, started, {"rows": steps})

        self.ensure(name, "train", recipe, make)
        return Snapshot(scope, (out / "model").uri, self.fingerprint(name))

    def _check_masks(self, rows: str) -> None:
        """UserError when no token is masked: no sentence of the responses has a verdict."""
        import pyarrow.compute as pc

        for shard in range(self.cfg.run.shards):
            part = tables.read_part(self.root / rows, shard, ["win_masks", "lose_masks"])
            for column in part.columns:
                if pc.min(pc.list_flatten(pc.list_flatten(column))).as_py() == 0:
                    return
        raise UserError(
            f"train.loss=fact_masked: no sentence of the responses in {self.root / rows} has "
            f"a verdict, so no token is masked: it needs data.knowledge, or take train.loss=dpo"
        )


def dpo_recipe(train: TrainConfig) -> Recipe:
    """Keys of `train` that decide the weights. What is switched off is not named."""
    flat = flatten({"train": dataclasses.asdict(train)})
    off = {f"train.{k}" for k in AROUND}
    if not train.eval_topics:
        off.add("train.eval_topics")
    if train.best == "none":
        off |= {"train.best", "train.patience", "train.eval_every"}
    sections = ("train.sft.",) if train.lora.rank else ("train.sft.", "train.lora.")
    return {k: v for k, v in flat.items() if k not in off and not k.startswith(sections)}


def sft_recipe(train: TrainConfig) -> Recipe:
    """The same of supervised tuning."""
    kept = {k: v for k, v in dpo_recipe(train).items() if k[len("train.") :] not in OF_PAIRS}
    return kept | {f"train.sft.{k}": v for k, v in vars(train.sft).items()}


def check_training(cfg: Config) -> None:
    """UserError for settings that training would stop at, before anything is paid.

    fact_masked needs verdicts on the responses that each round trains on: those of the first are
    always judged, later ones where their reward needs it.
    """
    from facttune_ray.training import engine

    for name, tune in cfg.tune.items():
        if tune.rounds:
            engine.deepspeed_config(cfg.train)
        columns = cfg.rewards.mix.get(tune.reward, (tune.reward,))
        judged = tune.rounds < 2 or any(c.startswith("factscore") for c in columns)
        if cfg.train.loss == "fact_masked" and not judged:
            raise UserError(
                f"train.loss=fact_masked: the responses that round 2 of tune.{name} trains on get "
                f"no verdicts, because {tune.reward} needs none: set tune.{name}.rounds=1, or "
                f"take factscore as its reward"
            )


def train_given(cfg: Config) -> tuple[list[str], list[str]]:
    """Train `model.path` on the preferences in the files of `data.groups`. -> (folders of the
    trained models, names made)"""
    from facttune_ray import preflight
    from facttune_ray.interop import given
    from facttune_ray.training import engine, trackers

    files = given.files(cfg.data.groups)
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
    with Tuning(cfg) as this:
        recipe = (
            given.recipe(files, cfg.data.reward)
            | stage("groups").recipe(cfg)
            | {"run.shards": this.cfg.run.shards}
        )

        def rows() -> list[dict]:
            found = given.read(files, cfg.groups, cfg.data.reward)
            if found.left_out:
                say(f"data.groups: {found.left_out:,} rows make no pair of their own: left out")
            return found.groups

        groups = this.driver_table(f"{GIVEN}/groups", "groups", recipe, rows)
        models = [Snapshot("start", cfg.model.path, model_digest(cfg.model.path))]
        if cfg.train.sft.epochs:
            models.append(this.supervised(f"{GIVEN}/sft", groups, models[-1]))
        table = this.table(GIVEN, "reference", [groups], model=models[-1])
        models.append(this.preferred(GIVEN, table, models[-1], cfg.train))
        return [m.path for m in models[1:]], this.made
