"""Which tables and models a run will have, in order, with nothing made.

plan = Plan(cfg)
plan.loop()
plan.tables    [("base/tune", "responses", ("train", "val"), cfg), ("base/tune", "facts", ...), ...]
plan.trained   ["facttune_fs/sft", "facttune_fs/round_1", ...]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from facttune_ray.config import Config
from facttune_ray.evaluation.breakdowns import SECOND
from facttune_ray.facttune import FactTune
from facttune_ray.pipeline import Snapshot, full_name
from facttune_ray.stages import stage

SPLITS = ("train", "val", "test")


class Planned(NamedTuple):
    """A table that a run will have."""

    scope: str
    stage: str
    splits: tuple[str, ...]  # of its rows
    cfg: Config  # the run's, or that of a contender or a second opinion


def judged_scope(scope: str) -> str:
    """The scope whose responses a second opinion is about; another scope is itself."""
    return scope.removesuffix(f"/{SECOND}")


class Plan(FactTune):
    """The loop with nothing made: which tables a run will have, in order."""

    makes = False

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.tables: list[Planned] = []
        self.sampled: dict[str, Planned] = {}  # scope -> its responses
        self.trained: list[str] = []  # scopes with a model to train

    def table(
        self, scope: str, name: str, inputs: Iterable[str], cfg: Config | None = None, **work: Any
    ) -> str:
        if full_name(scope, name) in self.taken:
            return f"{scope}/{name}"
        cfg = cfg or self.cfg
        if scope.endswith(SECOND) and "llm.model" not in stage(name).recipe(cfg):
            return full_name(scope, name)  # another estimator's verdicts, which ask nothing
        splits = tuple(work.get("splits", SPLITS))
        judged = self.sampled.get(judged_scope(scope))
        there = judged.splits if judged and name != "responses" else splits
        made = Planned(scope, name, tuple(s for s in splits if s in there), cfg)
        if name == "responses":
            self.sampled[scope] = made
        self.tables.append(made)
        return full_name(scope, name)

    def driver_table(self, name: str, *args: Any) -> str:
        return name

    def knowledge(self) -> None:
        pass

    def moments(self, rewards: str, columns: set[str]) -> dict[str, tuple[float, float]]:
        return {}

    def base(self) -> Snapshot:
        return Snapshot("base", "base", "")

    def train(self, name: str, tune: Any, number: int, *args: Any) -> Snapshot:
        scope = f"{name}/round_{number}"
        first = [f"{name}/sft"] if number == 1 and self.cfg.train.sft.epochs else []
        for each in (*first, scope):
            self.table(each, "reference", [], splits=("train",))
            self.trained.append(each)
        return Snapshot(scope, scope, "")

    def select(self, rounds: list[Snapshot]) -> dict:
        return {"chosen": rounds[-1].name}
