"""The tables of a scope, made by one Ray Data pipeline.

    for name in make([Planned(work, recipe), ...], services):
        print(name)                      a table is finished; its manifest is written

The rows of the Dataset are shards. A shard goes through the operators one after the other
(`placement.py`) and to the next operator as soon as it is written. Parts that exist are kept: a run
that was killed continues from them. The requests are metered, and a spent budget ends the pipeline
with one line. When a table has too many failed rows, it is removed with what was made from it, so
that the next run asks again for the failed rows; the ledger keeps what was paid.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from facttune_ray.errors import BudgetReached, Stopped, UserError
from facttune_ray.llm import cost
from facttune_ray.runtime import cluster, ending, worker
from facttune_ray.runtime.placement import Operator, compute, operators, pools, room
from facttune_ray.runtime.progress import Progress, Table
from facttune_ray.runtime.services import Services
from facttune_ray.stages import STAGES, stage
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import Recipe
from facttune_ray.telemetry import say

STOP = "_STOP-"  # a file of the run's folder: while it is there, the pipeline begins no shard
LOOK_S = {True: 0.3, False: 2.0}  # between two looks for new parts, in a local folder or a store


class Planned(NamedTuple):
    """A table to make."""

    work: Work
    recipe: Recipe


def make(plan: Sequence[Planned], services: Services) -> Iterator[str]:
    """Make the tables and write their manifests. Yield the name of each table that is finished.
    `plan`: tables of one run with the same shards, each after its inputs."""
    cfg = plan[0].work.cfg
    root = Folder.of(cfg.run.out)
    with tables.writing(root):
        for name in root.names():
            if name.startswith(STOP):  # of a driver that was killed while it ended
                (root / name).delete_file()
        for work, recipe in plan:
            tables.begin(root / work.output, recipe)
    parts = {p.work.output: tables.present(root / p.work.output, cfg.run.shards) for p in plan}
    left = {s for s in range(cfg.run.shards) if any(s not in made for made in parts.values())}
    works = [work for work, _ in plan if len(parts[work.output]) < cfg.run.shards]
    for work in works:
        for line in getattr(stage(work.stage), "hints", lambda cfg: [])(work.cfg):
            say(line)
        if work.base_url:  # raises UserError for a budget without a price
            cost.price_of(work.cfg.llm, STAGES[work.stage].endpoint(work.cfg))
    running = _Pipeline(plan, parts, services)
    if left:
        cluster.start_ray()  # in this thread: Ray's processes end with it
        running.start(works, sorted(left))
    with ending.drained(running.stop) if left else contextlib.nullcontext():
        yield from running.finished_tables()


class _Pipeline:
    """One pipeline that runs: a thread reads the rows of the Dataset, and the main thread follows
    the tables."""

    def __init__(
        self, plan: Sequence[Planned], parts: dict[str, set[int]], services: Services
    ) -> None:
        self.cfg, self.services = plan[0].work.cfg, services
        self.root = Folder.of(self.cfg.run.out)
        self._plan = {p.work.output: p for p in plan}
        self._there = parts
        # of the parts that this pipeline has written: their counts are read once
        self._stats: dict[str, dict[int, dict]] = {name: {} for name in parts}
        shards = self.cfg.run.shards
        self._tables = {
            name: Table(name, shards, len(made), len(made)) for name, made in parts.items()
        }
        self._marker = STOP + uuid.uuid4().hex[:8]
        self._thread: threading.Thread | None = None
        self._progress: Progress | None = None
        self._meter = None
        self._error: BaseException | None = None
        self._failed = ""  # the table that had too many failed rows
        self._since_s = time.monotonic()

    def start(self, works: Sequence[Work], shards: Sequence[int]) -> None:
        if any(work.base_url for work in works):
            name, self._meter = self.services.meter()
            works = [replace(work, meter=name) if work.base_url else work for work in works]
        found = operators(works)
        for operator in found:
            _check_gpus(operator)
        self._progress = Progress(list(self._tables.values()), found, self._meter)
        self._thread = threading.Thread(
            target=self._consume, args=(found, shards), name="pipeline", daemon=True
        )
        self._thread.start()

    def _consume(self, found: Sequence[Operator], shards: Sequence[int]) -> None:
        try:
            for row in _dataset(found, shards, self._marker).iter_rows():
                if row["kind"]:  # other shards go on: their workers keep what they paid for
                    self._fail(worker.returned_error(row))
        except BaseException as e:  # raised in the main thread
            self._fail(e)

    def _fail(self, error: BaseException) -> None:
        """Keep the first error, and let the pipeline end."""
        if self._error is None or isinstance(self._error, Stopped):
            self._error = error
            if self._progress is not None:
                self._progress.ends = (str(error).strip() or type(error).__name__).splitlines()[-1]
        self.stop()

    def stop(self) -> None:
        """Begin no shard and send no request from now on."""
        with contextlib.suppress(OSError, UserError):
            (self.root / self._marker).write_bytes(b"")
        if self._meter is not None:
            self.services.end_asking()

    def finished_tables(self) -> Iterator[str]:
        """Follow the pipeline to its end. Yield each table that is finished, then raise the error
        if there is one."""
        look_s = LOOK_S[self.root.local]
        try:
            while True:
                ended = self._thread is None or not self._thread.is_alive()
                looked_s = time.monotonic()
                for name in self._look():
                    if self._progress is not None:
                        self._progress.clear()
                    yield name
                if ended:
                    break
                assert self._thread is not None and self._progress is not None
                took_s = time.monotonic() - looked_s
                self._thread.join(max(look_s, 10 * took_s))  # a run may have thousands of parts
                self._progress.show()
        except BaseException:  # a full disk, or a second signal
            self.stop()
            raise
        finally:
            if self._progress is not None:
                self._progress.clear()
        if self._error is not None:
            (self.root / self._marker).delete_file()
            if self._failed:
                self._withdraw(self._failed)
            raise self._described(self._error)
        missing = [name for name, table in self._tables.items() if not table.finished]
        assert not missing, f"the pipeline has ended without {missing}"

    def _look(self) -> Iterator[str]:
        """Find new parts. Finish the tables that have all parts, in order."""
        for name, table in self._tables.items():
            if table.finished:
                continue
            if table.began_s is None and all(t.parts for t in self._inputs(name)):
                table.began_s = time.monotonic()
            if table.began_s is None or name == self._failed:
                continue
            folder = self.root / name
            if table.parts < table.shards:
                with tables.writing(folder):  # a store that is away is one line
                    made = tables.present(folder, table.shards)
                    new = {s: tables.part_stats(folder, s) for s in made - self._there[name]}
                self._stats[name] |= new
                table.rows += sum(stats["rows"] for stats in new.values())
                self._there[name], table.parts = made, len(made)
            if table.parts == table.shards and all(t.finished for t in self._inputs(name)):
                if not self._finish(name):
                    return
                table.finished = True
                yield name

    def _inputs(self, name: str) -> list[Table]:
        """The tables of this pipeline that the table reads."""
        read = self._plan[name].work.inputs.values()
        return [self._tables[other] for other in read if other in self._tables]

    def _finish(self, name: str) -> bool:
        """Write the manifest, or let the pipeline end if too many rows have failed. A table's time
        is the time since the table before it was finished."""
        work, recipe = self._plan[name]
        folder, shards = self.root / name, self.cfg.run.shards
        known = self._stats[name]
        with tables.writing(folder):
            stats = [known.get(s) or tables.part_stats(folder, s) for s in range(shards)]
            if error := _too_many_errors(folder, name, stats, work.cfg.run.max_error_fraction):
                self._failed = name
                self._fail(error)
                return False
            now_s = time.monotonic()
            tables.write_manifest(folder, work.stage, recipe, stats, now_s - self._since_s)
            self._since_s = now_s
        return True

    def _withdraw(self, name: str) -> None:
        """Remove the table and the tables that were made from it."""
        gone = {name}
        for other, planned in self._plan.items():
            if gone & set(planned.work.inputs.values()):
                gone.add(other)
        for other in gone:
            (self.root / other).delete()

    def _described(self, error: BaseException) -> BaseException:
        if not isinstance(error, BudgetReached):
            return error
        import ray

        assert self._meter is not None
        spent = ray.get(self._meter.snapshot.remote())["spent_usd"]
        first = next(t for t in self._tables.values() if not t.finished)
        return BudgetReached(
            f"{error}: ${spent:,.4f} paid by this run, {first.parts} of {first.shards} parts of "
            f"{first.name} done; raise llm.budget_usd and run the same command again: what is "
            f"paid is kept"
        )


def _dataset(found: Sequence[Operator], shards: Sequence[int], marker: str) -> Any:
    """The Dataset of the shards, with their errors."""
    import ray
    import ray.data

    rows = [{"shard": shard, "stopped": "", "kind": ""} for shard in shards]
    data: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
    nodes, grows = ray.nodes(), bool(os.environ.get("RAY_ADDRESS"))
    pooled = pools(found, nodes, grows)
    for i, operator in enumerate(found):
        how = compute(operator, len(shards), nodes, pooled, first=i == 0, grows=grows)
        settings = {"operator": operator, "stop": marker}
        if isinstance(how["compute"], ray.data.ActorPoolStrategy):
            kind = worker.AskingActor if operator.place.asks else worker.Actor
            named: Any = type(operator.name, (kind,), {})  # Ray's dashboard shows the name
            data = data.map_batches(named, fn_constructor_kwargs=settings, **how)
        else:
            data = data.map_batches(worker.run_task, fn_kwargs=settings, **how)
    data.set_name(found[0].works[0].output.rpartition("/")[0].replace("/", ".") or "run")
    return data


def _check_gpus(operator: Operator) -> None:
    """UserError when no host with the GPUs can come; a line when it is still to come."""
    import ray

    place, table = operator.place, operator.works[0]
    if not place.gpus or room(ray.nodes(), place.gpus, place.accelerator):
        return
    wanted = f"{place.gpus:g} {place.accelerator}".strip()
    if not os.environ.get("RAY_ADDRESS"):  # a local cluster never grows
        raise UserError(
            f"{table.output}: {STAGES[table.stage].gpus}.gpus: this machine has not the {wanted} "
            f"GPU(s) of a worker: set it to 0, or RAY_ADDRESS to a cluster that has them"
        )
    say(f"{table.output}: waits for a host with a GPU {place.accelerator}")


def _too_many_errors(
    folder: Folder, name: str, stats: Sequence[dict], most: float
) -> UserError | None:
    rows, errors = sum(s["rows"] for s in stats), sum(s["errors"] for s in stats)
    if not rows or errors / rows <= most:
        return None
    return UserError(
        f"{name}: {errors} of {rows} rows failed, more than run.max_error_fraction={most}; "
        f"the first: {_first_error(folder, len(stats))}"
    )


def _first_error(folder: Folder, shards: int) -> str:
    for shard in range(shards):
        for value in tables.read_part(folder, shard, ["error"])["error"].to_pylist():
            if value is not None:
                return value
    return "unknown"
