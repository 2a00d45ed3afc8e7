"""The settings that decide the trained weights: never paths, hardware, or how passes are cut."""

from __future__ import annotations

import dataclasses

from facttune_ray.config import Config, TrainConfig
from facttune_ray.config.layers import flatten
from facttune_ray.errors import UserError
from facttune_ray.storage.schema import made_of
from facttune_ray.storage.tables import Recipe

# Fields of TrainConfig that decide speed, or files beside the model.
NOT_WEIGHTS = frozenset(
    (
        "workers min_workers gpus accelerator deepspeed pass_tokens share_prefix recompute compile "
        "save_every keep checkpoints max_failures log eval_samples"
    ).split()
)
OF_PAIRS = frozenset(
    "loss beta label_smoothing sft_weight loss_mean lr epochs pairs_per_step".split()
)


def dpo_recipe(train: TrainConfig) -> Recipe:
    """Keys of `train` that decide the weights, without features that are switched off."""
    flat = flatten({"train": dataclasses.asdict(train)})
    off = {f"train.{k}" for k in NOT_WEIGHTS}
    if not train.eval_topics:
        off.add("train.eval_topics")
    if train.best == "none":
        off |= {"train.best", "train.patience", "train.eval_every"}
    sections = ("train.sft.",) if train.lora.rank else ("train.sft.", "train.lora.")
    return {k: v for k, v in flat.items() if k not in off and not k.startswith(sections)}


def sft_recipe(train: TrainConfig) -> Recipe:
    """Keys of `train` that decide the weights of supervised tuning."""
    kept = {k: v for k, v in dpo_recipe(train).items() if k[len("train.") :] not in OF_PAIRS}
    return kept | {f"train.sft.{k}": v for k, v in vars(train.sft).items()}


def check_training(cfg: Config) -> None:
    """UserError for settings that training would refuse, before anything is paid.

    fact_masked needs verdicts on the responses that each round trains on. The first round's
    responses always have verdicts; later responses have them if their reward needs verdicts.
    """
    from facttune_ray.training import engine

    for name, tune in cfg.tune.items():
        if tune.rounds:
            engine.deepspeed_config(cfg.train)
        columns = cfg.rewards.mix.get(tune.reward, (tune.reward,))
        judged = tune.rounds < 2 or made_of(columns, "verdicts")
        if cfg.train.loss == "fact_masked" and not judged:
            raise UserError(
                f"train.loss=fact_masked: the responses that round 2 of tune.{name} trains on get "
                f"no verdicts, because {tune.reward} needs none: set tune.{name}.rounds=1, or "
                f"take factscore as its reward"
            )
