"""A run that makes nothing and lists what would be made, in order. The loop itself runs, so an
estimate cannot differ from the run.

dry = DryRun(cfg)
outcome = facttune(dry, cfg)
dry.tables     [Planned("base/tune", "responses", ("train", "val"), cfg), ...]
dry.trained    ["facttune_fs/sft", "facttune_fs/round_1", ...]
dry.nodes      {"knowledge": {...}, "base/tune/facts": {...}}       node -> recipe
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from facttune_ray.config import Config, SFTConfig, TrainConfig
from facttune_ray.evaluation.breakdowns import SECOND
from facttune_ray.loop.run import SPLITS, Snapshot, full_name
from facttune_ray.runtime.run import roles, table_recipe, train_recipe
from facttune_ray.sources.shards import shards_of
from facttune_ray.stages import STAGES
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import Recipe


class Planned(NamedTuple):
    """A table of a stage that the run will have."""

    scope: str
    stage: str
    splits: tuple[str, ...]  # of its rows
    cfg: Config  # settings of the run, of a contender or of a second judge


def judged_scope(scope: str) -> str:
    """The scope whose responses a second judge judges; any other scope is returned as it is."""
    return scope.removesuffix(f"/{SECOND}")


class DryRun:
    """The verbs of `loop/run.py`. They make nothing."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = replace(cfg, run=replace(cfg.run, shards=shards_of(cfg)))
        self.root = Folder.of(cfg.run.out)
        self.nodes: dict[str, Recipe] = {}
        self.tables: list[Planned] = []
        self.sampled: dict[str, Planned] = {}  # scope -> its table of responses
        self.trained: list[str] = []  # scopes with a model to train
        self._written_here: set[str] = set()

    def table(
        self,
        scope: str,
        name: str,
        inputs: Iterable[str] | Mapping[str, str],
        cfg: Config | None = None,
        *,
        splits: tuple[str, ...] | None = None,
        model: Snapshot | None = None,
        reward: str = "",
        mix: Mapping[str, Mapping[str, float]] | None = None,
    ) -> str:
        output, cfg = full_name(scope, name), cfg or self.cfg
        if output in self._written_here:
            return output
        by_role = dict(inputs) if isinstance(inputs, Mapping) else roles(inputs)
        fingerprints = {role: self.fingerprint(i) for role, i in by_role.items()}
        self.nodes[output] = table_recipe(name, cfg, fingerprints, splits, model, reward, mix)
        if scope.endswith(SECOND) and not STAGES[name].endpoint(cfg):
            return output  # a second judge that sends no request
        splits = splits or SPLITS
        sampled = self.sampled.get(judged_scope(scope))
        if sampled and name != "responses":  # only splits with responses have rows
            splits = tuple(s for s in splits if s in sampled.splits)
        planned = Planned(scope, name, splits, cfg)
        if name == "responses":
            self.sampled[scope] = planned
        self.tables.append(planned)
        return output

    def driver_table(
        self,
        name: str,
        table: str,
        recipe: Recipe,
        rows: Callable[[], Iterable[dict]],
        settle: Callable[[list[dict]], Iterable[dict]] = list,
    ) -> str:
        self.nodes[name] = recipe
        self._written_here.add(name)
        return name

    def artifact(
        self, name: str, step: str, recipe: Recipe, make: Callable[[Path], dict[str, Any]]
    ) -> str:
        self.nodes[name] = recipe
        return name

    def train(
        self,
        scope: str,
        rows: str,
        start: Snapshot,
        recipe: Recipe,
        train: TrainConfig,
        sft: SFTConfig | None = None,
    ) -> Snapshot:
        name = f"{scope}/train"
        self.nodes[name] = train_recipe(recipe, self.cfg, self.fingerprint(rows), start)
        self.trained.append(scope)
        return Snapshot(scope, (self.root / name / "model").uri, self.fingerprint(name))

    def side_by_side(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def rows(self, name: str) -> int:
        return 1  # enough for the loop to go on

    def fingerprint(self, name: str) -> str:
        return tables.fingerprint(self.nodes[name])

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        return {"chosen": rounds[-1].name}
