"""Shards of a table on the cluster, by Ray Data. A shard is the unit of work.

CPU stages run as Ray Data tasks. Their worker processes keep the context (a loaded model, an open
connection) between shards, and their imports between stages; an actor pool for each stage would
start and import everything anew about thirty times in the quickstart. A stage that asks an endpoint
is one task for each worker: one event loop sends the requests of all its shards, and a shard begins
before the last answers of the shard before it have come. GPU stages run as an actor pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import traceback
from collections.abc import Coroutine
from typing import Any

import numpy as np

from facttune_ray import errors, telemetry
from facttune_ray.errors import UserError
from facttune_ray.secrets import redact
from facttune_ray.stages import stage
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.folders import outage
from facttune_ray.storage.memory import release_memory
from facttune_ray.storage.schema import digest
from facttune_ray.telemetry import say

Batch = dict[str, np.ndarray]
OPEN_SHARDS = 64  # shards that a worker makes at a time: their rows are in memory
UNSURE = ("estimated", "unknown", "unknown_usd")  # fields of Usage; in a manifest if above 0
TASKS = 32  # most tasks per worker. A task holds several shards: the driver's work stays constant


class ShardWorker:
    """Makes shards of one table.

    Input batch: {"shards": ["0,2,4"]}; output: {"stopped": [line of an error, or ""], "kind": [name
    of its class]}.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.context = Context(work)
        self.loop = asyncio.new_event_loop()
        run_id = digest(self.context.root.path)
        telemetry.ids.update(run=work.cfg.run.name, run_id=run_id, stage=work.stage)

    def __call__(self, batch: Batch) -> Batch:
        shards = [int(s) for s in batch["shards"][0].split(",")]
        try:
            make = self.ask_all if self.work.base_url else self.make_all
            self.loop.run_until_complete(make(shards))
        except UserError as e:  # the driver raises it as one line, without the worker's traceback
            return {"stopped": np.array([str(e)]), "kind": np.array([type(e).__name__])}
        except OSError as e:  # an object store that stays away
            if (line := outage(e)) is None:
                raise
            line = f"{self.work.output}: {line}"
            return {"stopped": np.array([line]), "kind": np.array(["UserError"])}
        except Exception:  # a bug: its traceback goes to the logs
            raise RuntimeError(redact(traceback.format_exc())) from None
        return {"stopped": np.array([""]), "kind": np.array([""])}

    async def make_all(self, shards: list[int]) -> None:
        done = self._done()
        for shard in shards:
            if shard not in done:
                await self.make(shard)

    def _done(self) -> set[int]:
        """Shards that are written already: Ray may run a task again whose worker was lost."""
        return tables.present(self.context.root / self.work.output, self.work.cfg.run.shards)

    async def ask_all(self, shards: list[int]) -> None:
        """Make shards of a stage that asks an endpoint, as many at a time as keep it busy."""
        client = self.context.client
        await asyncio.to_thread(client.ledger.refresh)
        done = self._done()
        running: set[asyncio.Task[None]] = set()
        try:
            for shard in shards:
                if shard in done:
                    continue
                running.add(asyncio.create_task(self.make(shard)))
                await asyncio.sleep(0.01)  # the new task reads its rows and creates its requests
                while running and (len(running) >= OPEN_SHARDS or not client.hungry()):
                    full = len(running) >= OPEN_SHARDS
                    running = await _some_done(running, None if full else client.until_hungry())
            while running:
                running = await _some_done(running)
        except Exception as e:
            # Requests in flight are paid, so wait for their answers, also after a bug. The shards
            # that wait get a UserError: a RowError would become the error of a row.
            why = e if isinstance(e, UserError) else UserError(f"{self.work.output} has stopped")
            await client.drain(why)
            await asyncio.gather(*running, return_exceptions=True)
            raise
        finally:
            await client.pause()

    async def make(self, shard: int) -> None:
        from facttune_ray.llm.cost import Usage, shard_usage

        used = Usage()
        shard_usage.set(used)
        rows = await stage(self.work.stage).run(self.context, shard)
        stats = {
            "calls": used.calls,
            "cached": used.cached,
            "tokens": used.tokens,
            "cost_usd": used.cost_usd,
        }
        stats |= {k: v for k in UNSURE if (v := getattr(used, k))}
        folder = self.context.root / self.work.output
        await asyncio.to_thread(
            tables.write_part, folder, self.work.stage, shard, rows, stats
        )  # in a thread: requests of other shards go on
        self._tell(shard, rows, stats)

    def _tell(self, shard: int, rows: list[dict], stats: dict[str, Any]) -> None:
        """Report metrics and, if log lines are JSON, a line of this process's log."""
        failed = sum(row.get("error") is not None for row in rows)
        tags = {"stage": self.work.stage, "run": self.work.cfg.run.name}
        telemetry.count("rows", len(rows), **tags)
        telemetry.count("errors", failed, **tags)
        if telemetry.json_lines():
            what: dict[str, Any] = {"table": self.work.output, "shard": shard, **stats}
            say(f"part {shard}", event="part", rows=len(rows), errors=failed, **what)

    def close(self) -> None:
        """Write what is left. An error here was already raised by the first attempt."""
        with contextlib.suppress(UserError, OSError):
            self.loop.run_until_complete(self.context.close())
        self.loop.close()


async def _some_done(
    running: set[asyncio.Task[None]], until: Coroutine[Any, Any, None] | None = None
) -> set[asyncio.Task[None]]:
    """Wait until a task or `until` has ended; raise a task's error. -> the tasks that still run"""
    waiting = {asyncio.create_task(until)} if until is not None else set()
    try:
        done, _ = await asyncio.wait(running | waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    for task in done:
        task.result()
    return running - done


_kept: dict[str, ShardWorker] = {}  # table -> this process's worker of it; at most one


def run_shards(batch: Batch, work: Work) -> Batch:
    """`ShardWorker` as a task. The process keeps it until it works on another table."""
    if work.output not in _kept or _kept[work.output].work != work:
        _close_kept()
        release_memory()
        _kept[work.output] = ShardWorker(work)
    made = None
    try:
        made = _kept[work.output](batch)
    finally:
        if made is None or made["kind"][0]:  # a stopped client cannot be used again
            _close_kept()
    return made


def _close_kept() -> None:
    while _kept:
        _kept.popitem()[1].close()


def run(
    work: Work,
    shards: set[int],
    workers: int,
    gpus: float = 0.0,
    accelerator: str = "",
    ended: threading.Event | None = None,
) -> None:
    """Make these shards on the cluster. UserError when a worker stopped on bad input. Stopped when
    `ended` was set: then the shards that are being made are left out."""
    import ray.data

    from facttune_ray.runtime.placement import options

    workers, left = min(workers, len(shards)), sorted(shards)
    lanes = workers if work.base_url else min(len(left), TASKS * workers)
    data = ray.data.from_items(
        [{"shards": ",".join(map(str, left[i::lanes]))} for i in range(lanes)],
        override_num_blocks=lanes,
    )
    how: dict[str, Any] = {"batch_size": 1, "batch_format": "numpy"}
    how |= options(gpus, accelerator, asks=bool(work.base_url))
    if gpus:
        pool: Any = ray.data.ActorPoolStrategy(size=workers)
        done = data.map_batches(ShardWorker, compute=pool, fn_constructor_args=(work,), **how)
    else:
        pool = ray.data.TaskPoolStrategy(size=workers)
        task = functools.partial(run_shards, work=work)
        done = data.map_batches(task, compute=pool, **how)
    done.set_name(work.output.replace("/", "."))  # in Ray's dashboard
    stopped: UserError | None = None
    for row in done.iter_rows():  # also after an error: other workers write what they paid for
        if row["stopped"] and stopped is None:
            stopped = returned_error(row)
        if ended is not None and ended.is_set():
            stopped = stopped or errors.Stopped("another table has failed")
            break
    if stopped is not None:
        raise stopped


def returned_error(row: dict[str, str]) -> UserError:
    """The error that a worker returned, as its class of errors.py, else as a UserError."""
    return getattr(errors, row["kind"], UserError)(row["stopped"])
