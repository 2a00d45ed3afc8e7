"""One stage's table, made shard by shard on the cluster.

    make(work, recipe, services)

Shards that exist are kept. The requests of a stage that asks an endpoint are metered, and a spent
budget ends the stage with one line. If too many rows have failed, the table is removed, so that the
next run asks again for the failed rows; the ledger keeps what was paid.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from facttune_ray.errors import BudgetReached, UserError
from facttune_ray.llm import cost
from facttune_ray.runtime import cluster, ending, progress, worker
from facttune_ray.runtime.placement import gpus_of, worker_count
from facttune_ray.runtime.services import Services
from facttune_ray.runtime.streams import Streams
from facttune_ray.stages import STAGES, stage
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import Recipe
from facttune_ray.telemetry import say


def make(work: Work, recipe: Recipe, services: Services, streams: Streams | None = None) -> None:
    """Make the missing shards and write the manifest. `streams`: tables that are made side by
    side."""
    shards, root = work.cfg.run.shards, Folder.of(work.cfg.run.out)
    folder = root / work.output
    started = time.monotonic()
    tables.begin(folder, recipe)
    left = set(range(shards)) - tables.present(folder, shards)
    if left:
        for line in getattr(stage(work.stage), "hints", lambda cfg: [])(work.cfg):
            say(line)
        cluster.start_ray()
        gpus, kind = gpus_of(work)
        workers = work.cfg.run.workers or max(1, _workers(work, gpus, kind))
        while left:
            now = streams.ready(root, work.inputs.values(), left) if streams else left
            if work.base_url:
                _ask(work, now, workers, gpus, kind, services)
            else:
                ended = streams.stopped if streams else None
                with progress.watch(work):
                    worker.run(work, now, workers, gpus, kind, ended)
            left = left - now
    _check_errors(work, folder, streams)
    tables.write_manifest(folder, work.stage, recipe, shards, time.monotonic() - started)


def _workers(work: Work, gpus: float, kind: str) -> int:
    """Number of workers that the cluster has room for; 0 if a host is still to come. UserError when
    no host can come."""
    import ray

    if not (count := worker_count(ray.nodes(), gpus, kind)):
        if not os.environ.get("RAY_ADDRESS"):  # a local cluster never grows
            key, wanted = f"{STAGES[work.stage].gpus}.gpus", f"{gpus:g} {kind}".strip()
            raise UserError(
                f"{work.output}: {key}: this machine has not the {wanted} GPU(s) of a "
                f"worker: set it to 0, or RAY_ADDRESS to a cluster that has them"
            )
        say(f"{work.output}: waits for a host with a GPU {kind}")
    return count


def _ask(
    work: Work, left: set[int], workers: int, gpus: float, kind: str, services: Services
) -> None:
    """Make shards by requests: metered, with a progress line, and ended by a spent budget."""
    # raises UserError for a budget without a price
    cost.price_of(work.cfg.llm, STAGES[work.stage].endpoint(work.cfg))
    name, meter = services.meter()
    try:
        with ending.drained(services.end_asking), progress.watch(work, meter):
            worker.run(replace(work, meter=name), left, workers, gpus, kind)
    except BudgetReached as e:
        import ray

        spent = ray.get(meter.snapshot.remote())["spent_usd"]
        shards, root = work.cfg.run.shards, Folder.of(work.cfg.run.out)
        done = len(tables.present(root / work.output, shards))
        raise BudgetReached(
            f"{e}: ${spent:,.4f} paid by this run, {done} of {shards} parts of "
            f"{work.output} done; raise llm.budget_usd and run the same command again: what "
            f"is paid is kept"
        ) from None


def _check_errors(work: Work, folder: Folder, streams: Streams | None) -> None:
    shards, most = work.cfg.run.shards, work.cfg.run.max_error_fraction
    stats = [tables.part_stats(folder, s) for s in range(shards)]
    rows, errors = sum(s["rows"] for s in stats), sum(s["errors"] for s in stats)
    if rows and errors / rows > most:
        first = _first_error(folder, shards)
        if streams:
            streams.withdraw(Folder.of(work.cfg.run.out), work.output)
        folder.delete()
        raise UserError(
            f"{work.output}: {errors} of {rows} rows failed, more than "
            f"run.max_error_fraction={most}; the first: {first}"
        )


def _first_error(folder: Folder, shards: int) -> str:
    for shard in range(shards):
        for value in tables.read_part(folder, shard, ["error"])["error"].to_pylist():
            if value is not None:
                return value
    return "unknown"
