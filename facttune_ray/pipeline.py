"""The stage graph of one run: what is missing is made, what matches its recipe is kept, what
differs is refused with the keys that differ.

    with Run(cfg) as run:
        run.table("base/tune", "verdicts", ["base/tune/facts"])

A node is a folder with a manifest: a table (one stage's output, made shard by shard on the
cluster) or an artifact (a database, a model). Its recipe holds the settings that change it, its
prompts' hashes and its inputs' fingerprints, so a change upstream shows downstream.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pyarrow.fs import FileSelector

from facttune_ray import ending, schema, storage, tables, telemetry
from facttune_ray.claim import claimed
from facttune_ray.config import Config, LLMConfig
from facttune_ray.errors import BudgetReached, UserError, did_you_mean
from facttune_ray.knowledge import source
from facttune_ray.sampling import engines
from facttune_ray.spread import shards_of, spread
from facttune_ray.stages import STAGES, STEPS, stage, worker
from facttune_ray.stages.context import Work
from facttune_ray.stages.placement import SAMPLING, SECTIONS, gpus_of, place
from facttune_ray.streams import Streams
from facttune_ray.tables import Folder, Recipe
from facttune_ray.telemetry import say


class Missing(UserError):
    """`facttune stage NAME` came to a table that another stage has to make first."""


@dataclass(frozen=True)
class Snapshot:
    """A model at one point of the run: "base", "facttune_fs/round_1", "imported"."""

    name: str
    path: str  # Hugging Face folder; "" for imported responses
    fingerprint: str


class Run:
    """One run on disk, and the services it starts when a table has to be made."""

    def __init__(self, cfg: Config, only: str | None = None) -> None:
        if only is not None and only not in STEPS:
            raise UserError(f'no stage "{only}".{did_you_mean(only, STEPS)}')
        shards = shards_of(cfg)
        self.cfg, self.only = replace(cfg, run=replace(cfg.run, shards=shards)), only
        self.root = Folder.of(cfg.run.out)
        self.manifests: dict[str, dict] = {}  # in the order of the graph
        self.made: list[str] = []
        self._services = contextlib.ExitStack()
        self._claimed = False
        self._base_url = ""
        self._meter: tuple[str, Any] | None = None
        self._streams: Streams | None = None  # while tables are made side by side
        self._lock = threading.RLock()  # of what they share: meter, annotator
        telemetry.ids.update(run=cfg.run.name, run_id=schema.digest(self.root.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._services.close()

    # -- tables and artifacts ------------------------------------------------------------

    def ensure(self, name: str, step: str, recipe: Recipe, make: Callable[[], Any]) -> str:
        """Keep, make or refuse `out/name`. `make` writes the folder, its manifest last."""
        folder = self.root / name
        found = tables.finished(folder, recipe)
        if found is None:
            if self.only not in (None, step):
                raise Missing(
                    f"stage {self.only} needs {name}, which is missing: "
                    f"run `facttune stage {step}` with the same config first"
                )
            if not self._claimed:  # which may wait while another driver makes this very table
                self._services.enter_context(claimed(self.root))
                self._claimed = True
                return Run.ensure(self, name, step, recipe, make)
            if self._streams is not None and step in STAGES:
                # before its thread runs: who reads it must not take parts of another recipe for its
                tables.begin(folder, recipe)
                worker.start_ray()  # Ray's processes end with the thread that starts them
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
    def streaming(self) -> Iterator[None]:
        """Tables made inside are made side by side, part by part, where that saves time: where
        responses are sampled by other means than they are judged by."""
        sampling, llm = self.cfg.sampling, self.cfg.llm
        other = sampling.gpus > 0 or (
            sampling.engine == "api" and engines.endpoint(self.cfg).base_url != llm.base_url
        )
        if not other or self.only is not None or self._streams is not None:
            yield
            return
        streams = self._streams = Streams(self._end)
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

    def driver_table(
        self,
        name: str,
        table: str,
        recipe: Recipe,
        rows: Callable[[], Iterable[dict]],
        settle: Callable[[list[dict]], Iterable[dict]] = list,
    ) -> str:
        """A table that the driver writes by itself: prompts and imports. `settle`: what is done to
        the rows of a shard, where all of a topic are."""

        def make() -> None:
            started, folder = time.monotonic(), self.root / name
            with spread(rows(), self.cfg.run.shards) as parts:
                tables.begin(folder, recipe)
                for shard, some in parts:
                    tables.write_part(folder, table, shard, list(settle(some)), {})
            wall_s = time.monotonic() - started
            tables.finish(folder, table, recipe, self.cfg.run.shards, wall_s)

        return self.ensure(name, table, recipe, make)

    def knowledge_file(self) -> str:
        """The database that verdicts read: `data.knowledge` if it is one, else the run's own."""
        data = self.cfg.data
        if source.is_database(data.knowledge):
            return storage.join(data.folder, data.knowledge)
        return (self.root / "knowledge" / "knowledge.db").uri

    def table(
        self, scope: str, name: str, inputs: Iterable[str], cfg: Config | None = None, **work: Any
    ) -> str:
        """One stage's table `scope/name` from tables given by their full names, or by {role: full
        name}. `cfg`: settings other than the run's."""
        module, output = stage(name), full_name(scope, name)
        cfg = cfg or self.cfg
        by_role = {i.rsplit("/", 1)[-1]: i for i in inputs}
        if isinstance(inputs, Mapping):
            by_role = dict(inputs)
        recipe = module.recipe(cfg) | {"stage": name, "version": module.VERSION}
        recipe |= {f"input.{role}": self.fingerprint(i) for role, i in by_role.items()}
        if "splits" in work:
            recipe["splits"] = list(work["splits"])
        if "reward" in work:
            recipe["reward"] = work["reward"]
        if "mix" in work:
            recipe["rewards.mix"] = work["mix"]
        if name in SAMPLING and cfg.sampling.engine == "api":
            cfg = replace(cfg, llm=engines.endpoint(cfg))
        if model := work.pop("model", None):
            recipe |= {"input.model": model.fingerprint, "snapshot": model.name}
            work |= {"snapshot": model.name, "model_path": model.path}

        def make() -> None:
            job = Work(
                stage=name,
                output=output,
                inputs=by_role,
                cfg=cfg,
                base_url=self.base_url(cfg.llm) if _asks(recipe) else "",
                knowledge=self.knowledge_file(),
                **work,
            )
            self._run_stage(job, recipe)

        return self.ensure(output, name, recipe, make)

    def _run_stage(self, work: Work, recipe: Recipe) -> None:
        cfg, folder = self.cfg, self.root / work.output
        started = time.monotonic()
        tables.begin(folder, recipe)
        left = set(range(cfg.run.shards)) - tables.present(folder, cfg.run.shards)
        streams = self._streams
        if left:
            for line in getattr(stage(work.stage), "hints", lambda cfg: [])(cfg):
                say(line)
            worker.start_ray()
            import ray

            from facttune_ray import progress

            gpus, kind = gpus_of(work)
            if not (room := place(ray.nodes(), gpus, kind)):
                if not os.environ.get("RAY_ADDRESS"):  # nobody adds a host
                    key, wanted = f"{SECTIONS[work.stage]}.gpus", f"{gpus:g} {kind}".strip()
                    raise UserError(
                        f"{work.output}: {key}: this machine has not the {wanted} GPU(s) of a "
                        f"worker: set it to 0, or RAY_ADDRESS to a cluster that has them"
                    )
                say(f"{work.output}: waits for a host with a GPU {kind}")
            workers = cfg.run.workers or max(1, room)
            while left:
                now = streams.ready(self.root, work.inputs.values(), left) if streams else left
                if work.base_url:
                    self._ask(work, now, workers, gpus, kind)
                else:
                    ended = streams.stopped if streams else None
                    with progress.watch(work):
                        worker.run(work, now, workers, gpus, kind, ended)
                left = left - now
        self._check_errors(work, folder, streams)
        wall_s = time.monotonic() - started
        tables.finish(folder, work.stage, recipe, cfg.run.shards, wall_s)

    def _ask(self, work: Work, left: set[int], workers: int, gpus: float, kind: str) -> None:
        """A stage of LLM requests: metered, watched, and stopped by its budget in one line."""
        from facttune_ray import progress
        from facttune_ray.llm import cost

        section = "sampling.llm" if work.stage in SAMPLING else "llm"
        cost.price_of(work.cfg.llm, section)  # a budget without a price is refused here
        name, meter = self.meter()
        try:
            with ending.drained(self._end), progress.watch(work, meter):
                worker.run(replace(work, meter=name), left, workers, gpus, kind)
        except BudgetReached as e:
            import ray

            spent = ray.get(meter.snapshot.remote())["spent_usd"]
            done = len(tables.present(self.root / work.output, self.cfg.run.shards))
            raise BudgetReached(
                f"{e}: ${spent:,.4f} paid by this run, {done} of {self.cfg.run.shards} parts of "
                f"{work.output} done; raise llm.budget_usd and run the same command again: what "
                f"is paid is kept"
            ) from None

    def meter(self) -> tuple[str, Any]:
        """(name, handle) of this run's meter actor, started once; it knows what was paid before."""
        with self._lock:
            if self._meter is None:
                from facttune_ray.llm import actors
                from facttune_ray.stages import connect

                name = f"facttune-meter-{connect.run_id(self.cfg)}-{time.time_ns()}"
                budget, ledger = self.cfg.llm.budget_usd, connect.ledger_folder(self.cfg)
                handle = actors.start_meter(name, budget, ledger, connect.run_id(self.cfg))
                self._meter = (name, handle)
                if self._streams is not None and self._streams.stopped.is_set():
                    self._end()
            return self._meter

    def _end(self) -> None:
        """Let stages that ask an endpoint end: their workers hear of it from the meter."""
        if self._meter is not None:
            self._meter[1].stop.remote()

    def _check_errors(self, work: Work, folder: Folder, streams: Streams | None) -> None:
        stats = [tables.part_stats(folder, s) for s in range(self.cfg.run.shards)]
        rows, errors = sum(s["rows"] for s in stats), sum(s["errors"] for s in stats)
        if rows and errors / rows > self.cfg.run.max_error_fraction:
            # the parts go, so that the next run asks again what failed; the ledger keeps the rest
            first = _first_error(folder, self.cfg.run.shards)
            if streams:
                streams.withdraw(self.root, work.output)
            folder.delete()
            raise UserError(
                f"{work.output}: {errors} of {rows} rows failed, more than "
                f"run.max_error_fraction={self.cfg.run.max_error_fraction}; the first: {first}"
            )

    def base_url(self, llm: LLMConfig) -> str:
        """The LLM endpoint; `embedded` starts the annotator once for the whole run."""
        if llm.endpoints and all(e.base_url for e in llm.endpoints):
            return llm.endpoints[0].base_url
        if llm.base_url != "embedded":
            return llm.base_url
        from facttune_ray import preflight

        preflight.check_embedded(llm)
        with self._lock:
            if not self._base_url:
                if self.cfg.data.source != "world":
                    say("llm.base_url=embedded: the quickstart's annotator judges, by simple rules")
                from facttune_ray.quickstart import annotator

                folder = self.root / "annotator"
                here = Path(folder.path) if folder.local else storage.scratch(folder.uri)
                journal = here / "journal.jsonl"  # every answer is written on its own
                options = annotator.AnnotatorOptions(
                    host=worker.own_address(), journal=str(journal)
                )
                self._base_url = self._services.enter_context(annotator.running(options))
            return self._base_url

    def finish_artifact(self, name: str, recipe: Recipe, started: float, extra: dict) -> None:
        """Write the manifest of a folder that is not a table."""
        made = {
            "table": name.rsplit("/", 1)[-1],
            "recipe": recipe,
            "fingerprint": tables.fingerprint(recipe),
            "wall_s": round(time.monotonic() - started, 2),
            "errors": 0,
        }
        (self.root / name / tables.MANIFEST).write_json(made | extra)


def full_name(scope: str, name: str) -> str:
    """Name of a scope's table; the scope "" is the run's own."""
    return f"{scope}/{name}" if scope else name


def _asks(recipe: Recipe) -> bool:
    """Whether the stage asks an endpoint."""
    return "llm.model" in recipe or recipe.get("sampling.engine") == "api"


def status(cfg: Config) -> list[tuple[str, dict | None]]:
    """Every table on disk with its manifest; None for an unfinished one."""
    root, marks = Folder.of(cfg.run.out), (tables.MANIFEST, tables.RECIPE)
    if not root.exists():
        raise UserError(f"{cfg.run.out} does not exist: nothing has been run there")
    found = {f.rsplit("/", 1)[0] for f in root.files() if f.endswith(marks)}
    if not found:
        raise UserError(f"{cfg.run.out}: no table there: name a run's folder in run.out")
    return [(name, (root / name / tables.MANIFEST).read_json()) for name in sorted(found)]


def model_digest(path: str) -> str:
    """A local model by its files' names, sizes and ends (not its path); one on an object store by
    names, sizes and times; a hub id by its name."""
    if "://" in path:
        source = Folder.of(path)
        files = source.fs.get_file_info(FileSelector(source.path, allow_not_found=True))
        return schema.digest(*sorted((f.base_name, f.size, f.mtime_ns) for f in files if f.is_file))
    folder = Path(path)
    if not folder.is_dir():
        return schema.digest("hub", path)
    parts: list[object] = []
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".bin", ".model"}:
            with file.open("rb") as f:
                head = f.read(2**20)
                f.seek(max(0, file.stat().st_size - 2**20))
                parts += [file.name, file.stat().st_size, schema.digest(head, f.read())]
    if not parts:
        raise UserError(f"model.path={path}: no model files in this folder")
    return schema.digest(*parts)


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
        from facttune_ray.stages import connect

        parts.append(
            f"{unknown:,} requests may have been paid twice or for nothing "
            f"(${manifest['unknown_usd']:.2f}): `facttune ledger verify "
            f"{connect.ledger_folder(cfg)}` lists them"
        )
    return "  ".join(parts)


def _first_error(folder: Folder, shards: int) -> str:
    for shard in range(shards):
        for value in tables.read_part(folder, shard, ["error"])["error"].to_pylist():
            if value is not None:
                return value
    return "unknown"
