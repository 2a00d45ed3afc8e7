"""Ray Data over shards: the unit of work is one shard of a table, durable once written.

CPU stages run as Ray Data tasks in worker processes that keep their context (a loaded model, an
open connection) between shards, and stay warm from stage to stage: an actor pool a stage would
start and import everything again each time. GPU stages run as an actor pool.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Any

import numpy as np

from facttune_ray import tables
from facttune_ray.errors import UserError
from facttune_ray.stages import stage
from facttune_ray.stages.context import Context, Work

Batch = dict[str, np.ndarray]


class ShardWorker:
    """Makes shards of one table. Input batch: {"shard": [i]}; output: how it went."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.context = Context(work)
        self.loop = asyncio.new_event_loop()

    def __call__(self, batch: Batch) -> Batch:
        (shard,) = batch["shard"].tolist()
        try:
            self.make(shard)
        except UserError as e:  # one line for the driver to raise, without a worker's traceback
            return {"shard": batch["shard"], "stopped": np.array([str(e)])}
        return {"shard": batch["shard"], "stopped": np.array([""])}

    def make(self, shard: int) -> None:
        before = self.context.usage()
        module = stage(self.work.stage)
        rows = self.loop.run_until_complete(module.run(self.context, shard))
        stats = {k: v - before[k] for k, v in self.context.usage().items()}
        folder = self.context.root / self.work.output
        tables.write_part(folder, self.work.stage, shard, rows, stats)

    def close(self) -> None:
        if "client" in self.context.__dict__:
            self.loop.run_until_complete(self.context.client.close())
        self.loop.close()


_kept: dict[str, ShardWorker] = {}  # this process's worker, by table: at most one


def run_shard(batch: Batch, work: Work) -> Batch:
    """`ShardWorker` as a task: made once a process and table."""
    if work.output not in _kept or _kept[work.output].work != work:
        for old in _kept.values():
            old.close()
        _kept.clear()
        _kept[work.output] = ShardWorker(work)
    return _kept[work.output](batch)


def run(work: Work, shards: set[int], workers: int, gpus: float) -> None:
    """Make these shards on the cluster; UserError when a worker stopped on bad input."""
    import ray.data

    data = ray.data.from_items(
        [{"shard": s} for s in sorted(shards)], override_num_blocks=len(shards)
    )
    size: dict[str, Any] = {"batch_size": 1, "batch_format": "numpy"}
    workers = min(workers, len(shards))
    if gpus:
        pool: Any = ray.data.ActorPoolStrategy(size=workers)
        size |= {"fn_constructor_args": (work,), "num_gpus": gpus, "num_cpus": 0}
        done = data.map_batches(ShardWorker, compute=pool, **size)
    else:
        pool = ray.data.TaskPoolStrategy(size=workers)
        task = functools.partial(run_shard, work=work)
        done = data.map_batches(task, compute=pool, num_cpus=1, **size)
    done.set_name(work.output.replace("/", "."))  # what the progress bar shows
    for row in done.iter_rows():
        if row["stopped"]:
            raise UserError(row["stopped"])


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job), or start a local one."""
    import logging
    import os

    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # Ray's default, without its warning; Ray reads it when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    import ray.data

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=max(2, os.cpu_count() or 1),  # one CPU must not starve a trainer's worker
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,  # workers' lines stay in Ray's session logs
            object_store_memory=512 * 2**20,  # tables travel as files, not as objects
        )
    for name in ("ray", "ray.data"):  # their warnings are not the user's to act on
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False
