"""A run on disk. A node that is missing is made, a node that matches its recipe is kept, and a node
that differs is refused with the keys that differ.

    with Run(cfg, embedded) as run:
        run.table("base/tune", "verdicts", ["base/tune/facts", "knowledge"])

A node is a folder with a manifest: a table (the output of one stage, made shard by shard on the
cluster) or an artifact (a database, a model). Its recipe holds the settings that change it, the
hashes of its prompts and the fingerprints of its inputs, so a change upstream changes every recipe
downstream. The verbs are described in `loop/run.py`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from facttune_ray import telemetry
from facttune_ray.config import Config, SFTConfig, TrainConfig
from facttune_ray.errors import Missing, UserError, did_you_mean
from facttune_ray.evaluation import measure
from facttune_ray.evaluation.rewards import moments
from facttune_ray.loop.run import Snapshot, full_name
from facttune_ray.loop.start import knowledge_file
from facttune_ray.runtime import cluster, stage_table, worker
from facttune_ray.runtime.run_lock import locked
from facttune_ray.runtime.services import Embedded, Services
from facttune_ray.runtime.streams import Streams
from facttune_ray.sampling import engines
from facttune_ray.sources.shards import shards_of
from facttune_ray.stages import STAGES, STEPS, connect, stage
from facttune_ray.stages.work import Work
from facttune_ray.storage import folders, schema, tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.sharding import sharded
from facttune_ray.storage.tables import Recipe
from facttune_ray.telemetry import say
from facttune_ray.training import job


class Run:
    """The run that makes its tables and models."""

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
        self.cfg = replace(cfg, run=replace(cfg.run, shards=shards_of(cfg)))
        self.only, self._may_make = only, {only, *also}
        self.root = Folder.of(cfg.run.out)
        self.manifests: dict[str, dict] = {}  # in the order of the graph
        self.made: list[str] = []
        self._written_here: set[str] = set()  # tables that the driver writes
        self._services = Services(self.cfg, self.root, embedded)
        self._held = contextlib.ExitStack()  # the lock
        self._locked = False
        self._streams: Streams | None = None  # while tables are made side by side
        telemetry.ids.update(run=cfg.run.name, run_id=schema.digest(self.root.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._services.close()
        self._held.close()

    # -- nodes -----------------------------------------------------------------------------------

    def ensure(self, name: str, step: str, recipe: Recipe, make: Callable[[], Any]) -> str:
        """Keep, make or refuse the node. `make` writes its folder, the manifest last. -> its
        name"""
        folder = self.root / name
        found = tables.matching_manifest(folder, recipe)
        if found is None:
            if self.only is not None and step not in self._may_make:
                raise Missing(
                    f"stage {self.only} needs {name}, which is missing: "
                    f"run `facttune stage {step}` with the same config first"
                )
            if not self._locked:  # another driver may have made this very table while we wait
                self._held.enter_context(locked(self.root))
                self._locked = True
                found = tables.matching_manifest(folder, recipe)
        if found is None:
            if self._streams is not None and step in STAGES:
                # remove parts of another recipe before a table beside this one can read them
                tables.begin(folder, recipe)
                cluster.start_ray()  # in this thread: Ray's processes end with it
                self._streams.start(name, lambda: self._make(name, make))
                found = {"fingerprint": tables.fingerprint(recipe), "table": step}
            else:
                say(f"{name:<36} ...", end="\r")
                self._make(name, make)
                found = tables.manifest(folder)
        self.manifests[name] = found
        return name

    def _make(self, name: str, make: Callable[[], Any]) -> None:
        folder = self.root / name
        with tables.writing(folder):
            make()
        found = tables.manifest(folder)
        self.made.append(name)
        keys = ("rows", "errors", "calls", "cached", "tokens", "cost_usd", "wall_s", *worker.UNSURE)
        figures = {k: found[k] for k in keys if k in found}
        of = name.rsplit("/", 1)[-1]
        say(describe(self.cfg, name, found), event="table", table=name, stage=of, **figures)

    @contextlib.contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Inside, tables are made side by side if that saves time: if responses are sampled by
        other resources than they are judged by."""
        sampling, llm = self.cfg.sampling, self.cfg.llm
        other = sampling.gpus > 0 or (
            sampling.engine == "api" and engines.endpoint(self.cfg).base_url != llm.base_url
        )
        if not other or self.only is not None or self._streams is not None:
            yield
            return
        streams = self._streams = Streams(self._services.end_asking)
        try:
            yield
        except BaseException:
            streams.stop()
            raise
        finally:
            try:
                streams.finish()
            finally:
                self._streams = None
        for name in streams.threads:
            self.manifests[name] = tables.manifest(self.root / name)

    def fingerprint(self, name: str) -> str:
        return self.manifests[name]["fingerprint"]

    def rows(self, name: str) -> int:
        return self.manifests[name]["rows"]

    # -- the verbs of the loop -------------------------------------------------------------------

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
        recipe = table_recipe(
            name,
            cfg,
            {r: self.fingerprint(i) for r, i in by_role.items()},
            splits,
            model,
            reward,
            mix,
        )
        declared = STAGES[name]
        if declared.samples and cfg.sampling.engine == "api":
            cfg = replace(cfg, llm=engines.endpoint(cfg))

        def make() -> None:
            used = sorted({c for weights in (mix or {}).values() for c in weights})
            work = Work(
                stage=name,
                output=output,
                inputs=by_role,
                cfg=cfg,
                splits=splits or Work.splits,
                snapshot=model.name if model else "",
                model_path=model.path if model else "",
                reward=reward,
                mix=mix or {},
                moments=moments(self.root / by_role["rewards"], used) if mix else {},
                base_url=self._services.base_url(cfg.llm) if declared.endpoint(cfg) else "",
                knowledge=knowledge_file(self.cfg),
            )
            stage_table.make(work, recipe, self._services, self._streams)

        return self.ensure(output, name, recipe, make)

    def driver_table(
        self,
        name: str,
        table: str,
        recipe: Recipe,
        rows: Callable[[], Iterable[dict]],
        settle: Callable[[list[dict]], Iterable[dict]] = list,
    ) -> str:
        def make() -> None:
            started, folder = time.monotonic(), self.root / name
            with sharded(rows(), self.cfg.run.shards) as parts:
                tables.begin(folder, recipe)
                for shard, some in parts:
                    tables.write_part(folder, table, shard, list(settle(some)), {})
            wall_s = time.monotonic() - started
            tables.write_manifest(folder, table, recipe, self.cfg.run.shards, wall_s)

        self._written_here.add(name)
        return self.ensure(name, table, recipe, make)

    def artifact(
        self, name: str, step: str, recipe: Recipe, make: Callable[[Path], dict[str, Any]]
    ) -> str:
        def make_it() -> None:
            started, folder = time.monotonic(), self.root / name
            tables.begin(folder, recipe)
            with folders.staged(folder) as here:
                figures = make(here)
            self._finish_artifact(name, recipe, started, figures)

        return self.ensure(name, step, recipe, make_it)

    def _finish_artifact(self, name: str, recipe: Recipe, started: float, figures: dict) -> None:
        """Write the manifest of a folder that is not a table."""
        found = {
            "table": name.rsplit("/", 1)[-1],
            "recipe": recipe,
            "fingerprint": tables.fingerprint(recipe),
            "wall_s": round(time.monotonic() - started, 2),
            "errors": 0,
        }
        (self.root / name / tables.MANIFEST).write_json(found | figures)

    def train(
        self,
        scope: str,
        rows: str,
        start: Snapshot,
        recipe: Recipe,
        train: TrainConfig,
        sft: SFTConfig | None = None,
    ) -> Snapshot:
        cfg, name = self.cfg, f"{scope}/train"
        recipe = train_recipe(recipe, cfg, self.fingerprint(rows), start)
        out = self.root / name

        def make() -> None:
            from facttune_ray.runtime import training
            from facttune_ray.training import engine

            started = time.monotonic()
            settings = engine.deepspeed_config(train)
            table = self.root / rows
            if train.loss == "fact_masked" and sft is None:
                _check_masks(table, cfg.run.shards)
            tables.begin(out, recipe)
            cluster.start_ray()
            # the name holds the recipe, so checkpoints elsewhere cannot be those of another
            # training
            called = f"{cfg.run.name}-{scope}-{tables.fingerprint(recipe)[:8]}"
            steps = training.train(
                job.TrainJob(
                    rows=tuple((table / tables.part(s)).uri for s in range(cfg.run.shards)),
                    # workers run in another folder than the driver
                    model=str(Path(start.path).resolve())
                    if Path(start.path).is_dir()
                    else start.path,
                    out=out.uri,
                    train=train,
                    groups=cfg.groups,
                    seed=cfg.run.seed,
                    deepspeed=settings,
                    sft=sft,
                    name=re.sub(r"[^\w.-]+", "-", called),
                )
            )
            self._finish_artifact(name, recipe, started, {"rows": steps})

        self.ensure(name, "train", recipe, make)
        return Snapshot(scope, (out / "model").uri, self.fingerprint(name))

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        return measure.select(self.root, rounds, by)


def roles(inputs: Iterable[str]) -> dict[str, str]:
    """Input tables by their role, which is the last part of their names."""
    return {name.rsplit("/", 1)[-1]: name for name in inputs}


def table_recipe(
    name: str,
    cfg: Config,
    inputs: Mapping[str, str],
    splits: tuple[str, ...] | None = None,
    model: Snapshot | None = None,
    reward: str = "",
    mix: Mapping[str, Mapping[str, float]] | None = None,
) -> Recipe:
    """The recipe of a stage's table: all that decides its rows. `inputs`: role -> fingerprint."""
    module = stage(name)
    recipe = module.recipe(cfg) | {"stage": name, "version": module.VERSION}
    recipe |= {f"input.{role}": fingerprint for role, fingerprint in inputs.items()}
    if splits is not None:
        recipe["splits"] = list(splits)
    if reward:
        recipe["reward"] = reward
    if mix is not None:
        recipe["rewards.mix"] = mix
    if model is not None:
        recipe |= {"input.model": model.fingerprint, "snapshot": model.name}
    return recipe


def train_recipe(recipe: Recipe, cfg: Config, rows: str, start: Snapshot) -> Recipe:
    """The recipe of a trained model. `rows`: fingerprint of the table that it is trained on."""
    return recipe | {
        "input.reference": rows,
        "input.model": start.fingerprint,
        "run.seed": cfg.run.seed,
        "version": job.VERSION,
    }


def _check_masks(table: Folder, shards: int) -> None:
    """UserError when no token is masked: no sentence of the responses has a verdict."""
    import pyarrow.compute as pc

    for shard in range(shards):
        part = tables.read_part(table, shard, ["win_masks", "lose_masks"])
        for column in part.columns:
            if pc.min(pc.list_flatten(pc.list_flatten(column))).as_py() == 0:
                return
    raise UserError(
        f"train.loss=fact_masked: no sentence of the responses in {table} has "
        f"a verdict, so no token is masked: it needs data.knowledge, or take train.loss=dpo"
    )


def status(cfg: Config) -> list[tuple[str, dict | None]]:
    """Every table on disk with its manifest; None for an unfinished one."""
    root, marks = Folder.of(cfg.run.out), (tables.MANIFEST, tables.RECIPE)
    if not root.exists():
        raise UserError(f"{cfg.run.out} does not exist: nothing has been run there")
    found = {f.rsplit("/", 1)[0] for f in root.files() if f.endswith(marks)}
    if not found:
        raise UserError(f"{cfg.run.out}: no table there: name a run's folder in run.out")
    return [(name, (root / name / tables.MANIFEST).read_json()) for name in sorted(found)]


def describe(cfg: Config, name: str, manifest: dict) -> str:
    """One line about a finished table."""
    parts = [f"{name:<36} {manifest.get('rows', 0):>8,} rows {manifest['wall_s']:>7.1f} s"]
    if manifest.get("calls") or manifest.get("cached"):
        parts.append(f"{manifest['calls']:,} calls, {manifest['cached']:,} from the ledger")
    if manifest.get("cost_usd"):
        parts.append(f"${manifest['cost_usd']:.2f}")
    if manifest.get("errors"):
        parts.append(f"{manifest['errors']:,} errors")
    if estimated := manifest.get("estimated"):
        parts.append(f"{estimated:,} answers without usage: their tokens are estimates")
    if unknown := manifest.get("unknown"):
        parts.append(
            f"{unknown:,} requests may have been paid twice or for nothing "
            f"(${manifest['unknown_usd']:.2f}): `facttune ledger verify "
            f"{connect.ledger_folder(cfg)}` lists them"
        )
    return "  ".join(parts)
