"""A maker that makes nothing and lists what would be made, in order.

    dry = DryRun(cfg)
    outcome = facttune(Run(dry))
    dry.tables     [StageTable("base/tune", "responses", splits=("train", "val"), ...), ...]
    dry.trained    ["facttune_fs/sft", "facttune_fs/round_1", ...]

The loop itself runs, so an estimate cannot differ from the run.
"""

from __future__ import annotations

from dataclasses import replace

from facttune_ray.config import Config
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.nodes import Node, StageTable, Training
from facttune_ray.sources.shards import with_shards
from facttune_ray.stages import STAGES
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import SPLITS
from facttune_ray.storage.scopes import SECOND
from facttune_ray.storage.tables import Recipe


def judged_scope(scope: str) -> str:
    """The scope whose responses a second judge judges; any other scope is returned as it is."""
    return scope.removesuffix(f"/{SECOND}")


def splits_of(table: StageTable) -> tuple[str, ...]:
    return table.splits or SPLITS


class DryRun:
    """Notes about a run."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = with_shards(cfg)
        self.root = Folder.of(cfg.run.out)
        self.tables: list[StageTable] = []  # `splits`: the splits that its rows will have
        self.sampled: dict[str, StageTable] = {}  # scope -> its table of responses
        self.trained: list[str] = []  # scopes with a model to train

    def make(self, node: Node, recipe: Recipe) -> None:
        if isinstance(node, Training):
            self.trained.append(node.scope)
        if not isinstance(node, StageTable):
            return
        if node.scope.endswith(SECOND) and not STAGES[node.step].endpoint(node.cfg):
            return  # a second judge that sends no request
        splits, sampled = splits_of(node), self.sampled.get(judged_scope(node.scope))
        if sampled and node.step != "responses":  # only splits with responses have rows
            splits = tuple(s for s in splits if s in splits_of(sampled))
        planned = replace(node, splits=splits)
        if node.step == "responses":
            self.sampled[node.scope] = planned
        self.tables.append(planned)

    def finish(self) -> None:
        pass

    def rows(self, name: str) -> int:
        return 1  # enough for the loop to go on

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        return {"chosen": rounds[-1].name}
