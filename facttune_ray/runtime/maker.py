"""The maker of a run on disk. A node that is missing is made, a node that matches its recipe is
kept, and a node that differs is refused with the keys that differ.

    with Maker(cfg, embedded) as maker:
        Run(maker).table("base/tune", "verdicts", ["base/tune/facts", "knowledge"])

A node is a folder with a manifest: a table or an artifact (a database, a model). Its recipe holds
the settings that change it, the hashes of its prompts and the fingerprints of its inputs, so a
change upstream changes every recipe downstream.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self

from facttune_ray import telemetry
from facttune_ray.config import Config
from facttune_ray.errors import Missing, UserError, did_you_mean
from facttune_ray.evaluation import measure
from facttune_ray.evaluation.rewards import moments
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.nodes import Artifact, DriverTable, Node, StageTable, Training
from facttune_ray.loop.start import knowledge_file
from facttune_ray.runtime import pipeline, settings, worker
from facttune_ray.runtime.pipeline import Planned
from facttune_ray.runtime.remarks import remarks
from facttune_ray.runtime.run_lock import locked
from facttune_ray.runtime.services import Embedded, Services
from facttune_ray.sampling import engines
from facttune_ray.sources.shards import with_shards
from facttune_ray.stages import STAGES, STEPS, connect
from facttune_ray.stages.work import Work
from facttune_ray.storage import folders, schema, tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.sharding import sharded
from facttune_ray.storage.tables import Recipe
from facttune_ray.telemetry import say


class Maker:
    """Makes the nodes of one run."""

    def __init__(
        self,
        cfg: Config,
        embedded: Embedded,
        only: str | None = None,
        also: Iterable[str] = (),
    ) -> None:
        """`embedded`: starts the endpoint of llm.base_url=embedded. `only`: the one step that may
        make nodes, beside those of `also`; Missing is raised when another step would have to."""
        if only is not None and only not in STEPS:
            raise UserError(f'no stage "{only}".{did_you_mean(only, STEPS)}')
        self.cfg = with_shards(cfg)
        self.only, self._may_make = only, {only, *also}
        self.root = Folder.of(cfg.run.out)
        self.manifests: dict[str, dict] = {}  # in the order of the graph
        self.made: list[str] = []
        self._services = Services(self.cfg, self.root, embedded)
        self._held = contextlib.ExitStack()  # the lock
        self._locked = self._kept = False
        self._asked: list[tuple[StageTable, Recipe]] = []  # tables of one scope, not made yet
        telemetry.ids.update(run=cfg.run.name, run_id=schema.digest(self.root.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._held:  # the lock ends after the services
            self._services.close()

    # -- what a run asks for -------------------------------------------------------------------

    def make(self, node: Node, recipe: Recipe) -> None:
        """Keep, make or refuse the node."""
        folder = self.root / node.name
        manifest = tables.matching_manifest(folder, recipe)
        if manifest is None:
            if self.only is not None and node.step not in self._may_make:
                self.finish()
                raise Missing(
                    f"stage {self.only} needs {node.name}, which is missing: "
                    f"run `facttune stage {node.step}` with the same config first"
                )
            if not self._locked:  # another driver may have made this very table while we wait
                self._held.enter_context(locked(self.root))
                self._locked = True
                manifest = tables.matching_manifest(folder, recipe)
        if manifest is not None:
            pass
        elif isinstance(node, StageTable):
            if node.mix or (self._asked and self._asked[0][0].scope != node.scope):
                self.finish()  # a mix needs the moments of finished rewards
            self._asked.append((node, recipe))
            manifest = {"fingerprint": tables.fingerprint(recipe), "table": node.step}
        else:
            self.finish()
            say(f"{node.name:<36} ...", end="\r")
            with tables.writing(folder):
                if isinstance(node, DriverTable):
                    self._write_table(node, recipe)
                else:
                    self._write_artifact(node, recipe)
            manifest = self._tell(node.name)
        self.manifests[node.name] = manifest

    def finish(self) -> None:
        """Make the tables that were asked for, which are of one scope, by one pipeline."""
        asked, self._asked = self._asked, []
        if asked:
            self._keep_settings()
            plan = [Planned(self._work(node), recipe) for node, recipe in asked]
            for name in pipeline.make(plan, self._services):
                self.manifests[name] = self._tell(name)

    def rows(self, name: str) -> int:
        self.finish()
        return self.manifests[name]["rows"]

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        self.finish()
        return measure.select(self.root, rounds, by)

    # -- making --------------------------------------------------------------------------------

    def _keep_settings(self) -> None:
        """Once: not before there is a table, so that a refused input leaves no folder behind."""
        if not self._kept:
            settings.keep(self.root, self.cfg)
            self._kept = True

    def _tell(self, name: str) -> dict:
        """Print a line about a folder that was made. -> its manifest"""
        self._keep_settings()
        manifest = tables.manifest(self.root / name)
        self.made.append(name)
        keys = (
            "rows",
            "errors",
            "calls",
            "cached",
            "tokens",
            "cost_usd",
            "wall_s",
            "path",
            *worker.UNSURE,
        )
        figures = {k: manifest[k] for k in keys if k in manifest}
        line = describe(self.cfg, name, manifest)
        say(line, event="table", table=name, stage=manifest["table"], **figures)
        return manifest

    def _work(self, node: StageTable) -> Work:
        cfg, declared = node.cfg, STAGES[node.step]
        endpoint = declared.endpoint(cfg)
        if declared.samples and endpoint:
            cfg = replace(cfg, llm=engines.endpoint(cfg))
        mix = node.mix or {}
        used = sorted({column for weights in mix.values() for column in weights})
        return Work(
            stage=node.step,
            output=node.name,
            inputs=node.inputs,
            cfg=cfg,
            splits=node.splits or schema.SPLITS,
            snapshot=node.model.name if node.model else "",
            model_path=node.model.path if node.model else "",
            reward=node.reward,
            mix=mix,
            moments=moments(self.root / node.inputs["rewards"], used) if mix else {},
            base_url=self._services.base_url(cfg.llm) if endpoint else "",
            knowledge=knowledge_file(self.cfg),
        )

    def _write_table(self, node: DriverTable, recipe: Recipe) -> None:
        started, folder = time.monotonic(), self.root / node.name
        with sharded(node.rows(), self.cfg.run.shards) as parts:
            tables.begin(folder, recipe)
            for shard, rows in parts:
                tables.write_part(folder, node.step, shard, list(node.settle(rows)), {})
        wall_s = time.monotonic() - started
        tables.write_manifest(folder, node.step, recipe, self.cfg.run.shards, wall_s)

    def _write_artifact(self, node: Artifact | Training, recipe: Recipe) -> None:
        started, folder = time.monotonic(), self.root / node.name
        entries: dict[str, Any]
        if isinstance(node, Training):
            from facttune_ray.runtime import training

            entries = {"rows": training.train_node(node, recipe, self.root, self.cfg)}
        else:
            tables.begin(folder, recipe)
            with folders.staged(folder) as here:
                entries = node.make(here)
        manifest = {
            "table": node.name.rsplit("/", 1)[-1],
            "recipe": recipe,
            "fingerprint": tables.fingerprint(recipe),
            "wall_s": round(time.monotonic() - started, 2),
            "errors": 0,
        }
        (folder / tables.MANIFEST).write_json(manifest | entries)


def describe(cfg: Config, name: str, manifest: dict) -> str:
    """One line about a finished table."""
    figures = f"{name:<36} {manifest.get('rows', 0):>8,} rows {manifest['wall_s']:>7.1f} s"
    return "  ".join([figures, *remarks(manifest, str(connect.ledger_folder(cfg)))])
