"""The rounds of the tuned models: preferences from rewards, then training.

out/facttune_fs/round_1/groups, reference, train/model
out/facttune_fs/sft/reference, train/model   with train.sft.epochs: round 1 starts from this model
out/facttune_fs/round_1/tune/                scored responses of the model, for val and round 2
"""

from __future__ import annotations

import dataclasses

from facttune_ray.config import TrainConfig, TuneConfig
from facttune_ray.config.wanted import by_verdicts
from facttune_ray.errors import Missing, UserError
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.run import Run
from facttune_ray.loop.score import judge, respond, rewards
from facttune_ray.loop.start import base
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import REWARD_COLUMNS
from facttune_ray.training.recipe import dpo_recipe, sft_recipe


def tune_all(run: Run, first: Snapshot, source: str) -> dict[str, list[Snapshot]]:
    """All rounds of every tuned model. If tables of one model are missing, the other models are
    made first, and Missing is raised at the end."""
    rounds, missing = {}, None
    for name, tune in run.cfg.tune.items():
        try:
            if tune.rounds:
                rounds[name] = tune_one(run, name, tune, first, source)
        except Missing as e:
            missing = missing or e
    if missing is not None:
        raise missing
    return rounds


def tune_one(run: Run, name: str, tune: TuneConfig, first: Snapshot, source: str) -> list[Snapshot]:
    """All rounds of one tuned model. A round trains on scored responses of the round before it."""
    cfg = run.cfg
    model = first if first.path else base(run)
    rounds: list[Snapshot] = []
    for number in range(1, tune.rounds + 1):
        model = train_round(run, name, tune, number, model, source)
        rounds.append(model)
        more = number < tune.rounds
        val = ("val",) if cfg.evaluation.tuned else ()
        if not more and not val:
            continue
        source = f"{model.name}/tune"
        train = ("train",) if more else ()
        judged = train if by_verdicts(cfg, tune.reward) else ()
        respond(run, model, source, train + val)
        judge(run, source, judged + val)
        if more:
            rewards(run, model, source, {tune.reward})
    return rounds


def train_round(
    run: Run,
    name: str,
    tune: TuneConfig,
    number: int,
    start: Snapshot,
    source: str,
) -> Snapshot:
    """One round: groups from the rewards of the scope `source`, then DPO from the model `start`.
    With train.sft.epochs the model is first tuned on the responses of the groups."""
    cfg, scope = run.cfg, f"{name}/round_{number}"
    table = f"{source}/{'mixes' if tune.reward in cfg.rewards.mix else 'rewards'}"
    groups = run.table(
        scope, "groups", [table, f"{source}/responses"], reward=tune.reward, splits=("train",)
    )
    if run.rows(groups) == 0:
        raise UserError(_why_no_pairs(run.root / table, tune.reward, cfg.groups.threshold))
    if number == 1 and cfg.train.sft.epochs:
        start = supervised(run, f"{name}/sft", groups, start)
    masked = cfg.train.loss == "fact_masked"
    judged = [f"{source}/facts", f"{source}/verdicts"] if masked else []
    rows = run.table(scope, "reference", [groups, *judged], model=start)
    chosen = dataclasses.replace(
        cfg.train,
        lr=tune.lr if tune.lr is not None else cfg.train.lr,
        epochs=tune.epochs if tune.epochs is not None else cfg.train.epochs,
    )
    return preferred(run, scope, rows, start, chosen)


def supervised(run: Run, scope: str, groups: str, start: Snapshot) -> Snapshot:
    """The model `start` after `train.sft` on the groups' responses."""
    train = run.cfg.train
    if train.best != "none":  # the loss is the only held-out figure that needs no pairs
        train = dataclasses.replace(train, best="loss")
    rows = run.table(scope, "reference", [groups], model=start)
    return run.train(scope, rows, start, sft_recipe(train), train, train.sft)


def preferred(run: Run, scope: str, rows: str, start: Snapshot, train: TrainConfig) -> Snapshot:
    """The model `start` after preference training on the table `rows`."""
    recipe = dpo_recipe(train) | {f"groups.{k}": v for k, v in vars(run.cfg.groups).items()}
    return run.train(scope, rows, start, recipe, train)


def _why_no_pairs(rewards: Folder, reward: str, threshold: float) -> str:
    """The error for groups without a pair; `rewards`: the table that they were made from."""
    key = reward if reward in REWARD_COLUMNS else "value"
    known = any(
        r["split"] == "train" and r.get("name", reward) == reward and r[key] is not None
        for r in tables.rows(rewards)
    )
    if not known:
        return (
            f"{rewards}: {reward} is null for every train response: nothing to train on. "
            f"Its `error` and count columns say why"
        )
    return (
        f"{rewards}: no two responses of a prompt whose {reward} differ by more than "
        f"groups.threshold={threshold}: nothing to train on. Lower it, or "
        f"sample more"
    )
