"""A run as the loop sees it: verbs that ask for tables and models, and a maker that has them made.

    run = Run(Maker(cfg, embedded))     makes what is missing (`runtime/maker.py`)
    run = Run(DryRun(cfg))              makes nothing, and lists it (`loop/dry_run.py`)
    facts = run.table("base/tune", "facts", ["base/tune/responses"])

The verbs compute every recipe, so an estimate cannot differ from the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from facttune_ray.config import Config, SFTConfig, TrainConfig
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.nodes import DriverTable, Node, StageTable, Training
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import Recipe


class Maker(Protocol):
    """What a run needs to be made. Names of nodes are relative to `root`."""

    cfg: Config
    root: Folder

    def make(self, node: Node, recipe: Recipe) -> None:
        """See that the node will be there, made by this recipe. A table may be made later."""

    def finish(self) -> None:
        """Make what was asked for and is not there yet."""

    def rows(self, name: str) -> int:
        """Number of rows of a table."""

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        """{"chosen": name of the best round on val topics, "metric": ..., "candidates": [...]}"""


class Run:
    """One run. A verb returns the name of the node that it asked for: "base/tune/facts"."""

    def __init__(self, maker: Maker) -> None:
        self.cfg, self.root = maker.cfg, maker.root
        self.finish, self.rows, self.choose = maker.finish, maker.rows, maker.choose
        self._maker = maker
        self.recipes: dict[str, Recipe] = {}  # of every node, in the order of the loop
        self._driver_tables: set[str] = set()

    def fingerprint(self, name: str) -> str:
        """Digest of a node's recipe."""
        return tables.fingerprint(self.recipes[name])

    def table(
        self,
        scope: str,
        stage: str,
        inputs: Iterable[str] | Mapping[str, str],
        cfg: Config | None = None,
        *,
        splits: tuple[str, ...] | None = None,
        model: Snapshot | None = None,
        reward: str = "",
        mix: Mapping[str, Mapping[str, float]] | None = None,
    ) -> str:
        """The table of a stage, from tables given by their names or by {role: name}. A table that
        the driver has written is not made again.

        `cfg`: settings that replace the run's. The others are fields of `StageTable`.
        """
        if not isinstance(inputs, Mapping):  # the role of a table is the last part of its name
            inputs = {name.rsplit("/", 1)[-1]: name for name in inputs}
        node = StageTable(scope, stage, inputs, cfg or self.cfg, splits, model, reward, mix)
        if node.name in self._driver_tables:
            return node.name
        found = {role: self.fingerprint(name) for role, name in inputs.items()}
        return self.make(node, node.recipe(found))

    def train(
        self,
        scope: str,
        rows: str,
        start: Snapshot,
        settings: Recipe,
        train: TrainConfig,
        sft: SFTConfig | None = None,
    ) -> Snapshot:
        """The model `start` after training on the table `rows`. `settings`: the part of the recipe
        that `train` and `sft` decide."""
        node = Training(scope, rows, start, train, sft)
        self.make(node, node.recipe(settings, self.fingerprint(rows), self.cfg.run.seed))
        return Snapshot(scope, (self.root / node.name / "model").uri, self.fingerprint(node.name))

    def make(self, node: Node, recipe: Recipe) -> str:
        """Make a node by this recipe: a table that the driver writes, or a folder that is no table.
        `table` and `train` compute the recipes of stages and trainings."""
        if isinstance(node, DriverTable):
            self._driver_tables.add(node.name)
        self.recipes[node.name] = recipe
        self._maker.make(node, recipe)
        return node.name
