"""What happens in a worker process: it makes the tables of an operator, shard by shard.

Input batch: {"shard": [0, 3], "stopped": ["", ""], "kind": ["", ""]}; the output batch has the same
columns. `stopped` is the line of an error and `kind` the name of its class; both are empty for a
shard that was made.

An operator runs as tasks (`run_task`), as a pool of actors (`Actor`), or, if it asks an endpoint,
as a pool of actors with an event loop each (`AskingActor`). The requests of several shards go
through one loop, so the last slow answers of a shard hold nothing up. The process of a task keeps
its models and connections until it works for another pipeline.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

from facttune_ray import errors, telemetry
from facttune_ray.errors import Stopped, UserError
from facttune_ray.runtime.placement import Operator
from facttune_ray.secrets import redact
from facttune_ray.stages import stage
from facttune_ray.stages.context import Context
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder, outage
from facttune_ray.storage.memory import release_memory
from facttune_ray.storage.schema import digest
from facttune_ray.telemetry import say

if TYPE_CHECKING:
    from facttune_ray.llm.client import Client

Batch = dict[str, np.ndarray]
CLOSE_S = 5.0  # to close connections when an actor ends
OPEN_SHARDS = 64  # shards that a worker makes at a time: their rows are in memory
UNSURE = ("estimated", "unknown", "unknown_usd")  # fields of Usage; in a manifest if above 0


class Worker:
    """Makes shards of an operator's tables. `stop`: a file of the run's folder; while it is there,
    no shard is begun. `opened`: models and connections that the operators of a process share."""

    def __init__(self, operator: Operator, stop: str, opened: dict | None = None) -> None:
        self.operator = operator
        shared = {} if opened is None else opened
        self.contexts = [Context(work, shared) for work in operator.works]
        cfg = operator.works[0].cfg
        self.root = Folder.of(cfg.run.out)
        self._stop = self.root / stop
        self._open = 0  # shards that are being made
        self._turn = asyncio.Lock()
        telemetry.ids.update(run=cfg.run.name, run_id=digest(self.root.path))

    async def rows(self, batch: Batch) -> Batch:
        """Make the shards of a batch."""
        rows = list(zip(batch["shard"], batch["stopped"], batch["kind"], strict=True))
        if self.operator.place.asks:
            made = await asyncio.gather(*(self._row(*row) for row in rows))
        else:
            made = [await self._row(*row) for row in rows]
        for error in made:
            if isinstance(error, Exception):  # a bug: its traceback goes to the logs
                lines = "".join(traceback.format_exception(error))
                raise RuntimeError(redact(lines)) from None
        stopped, kind = zip(*made, strict=True)
        return {"shard": batch["shard"], "stopped": np.array(stopped), "kind": np.array(kind)}

    async def _row(self, shard: int, stopped: str, kind: str) -> tuple[str, str] | Exception:
        """(stopped, kind) of the shard; a bug as the exception."""
        if stopped:
            return stopped, kind
        try:
            await self.make(int(shard))
        except UserError as e:  # the driver raises it as one line, without the worker's traceback
            return str(e), type(e).__name__
        except OSError as e:  # an object store that stays away
            if (line := outage(e)) is None:
                return e
            return f"{self.operator.works[-1].output}: {line}", "UserError"
        except Exception as e:
            return e
        return "", ""

    async def make(self, shard: int) -> None:
        """Make the shard of every table that lacks it."""
        if not self.operator.place.asks:
            await self._make_tables(shard)
            return
        async with self._turn:
            while self._open >= OPEN_SHARDS or (self._open and not self._hungry()):
                await asyncio.sleep(0.02)
            if not self._open:
                await asyncio.gather(*(asyncio.to_thread(c.ledger.refresh) for c in self._clients))
            self._open += 1
            making = asyncio.create_task(self._make_tables(shard))
            await asyncio.sleep(0.01)  # the task reads its rows and creates its requests
        try:
            await making
        except Exception as e:
            # Requests in flight are paid, so wait for their answers, also after a bug. The shards
            # that wait get a UserError: a RowError would become the error of a row.
            table = self.operator.works[-1].output
            why = e if isinstance(e, UserError) else Stopped(f"{table} has stopped")
            await asyncio.gather(*(client.drain(why) for client in self._clients))
            raise
        finally:
            self._open -= 1
            if not self._open:
                await asyncio.gather(*(client.pause() for client in self._clients))

    @property
    def _clients(self) -> list[Client]:
        return [c.client for c in self.contexts if "client" in vars(c)]

    def _hungry(self) -> bool:
        """Whether more requests are needed to keep the endpoints busy."""
        return all(client.hungry() for client in self._clients)

    async def _make_tables(self, shard: int) -> None:
        if self._stop.exists():
            raise Stopped("another table has failed")
        for context in self.contexts:
            # Ray may run a task again whose worker was lost: keep what it has written.
            if not (self.root / context.work.output / tables.part(shard)).exists():
                await _make_part(context, shard)

    async def close(self) -> None:
        """Write what is left. An error here was already raised by the first attempt."""
        with contextlib.suppress(UserError, OSError):
            for context in self.contexts:
                await context.close()


async def _make_part(context: Context, shard: int) -> None:
    from facttune_ray.llm.cost import Usage, shard_usage

    work, used = context.work, Usage()
    shard_usage.set(used)
    telemetry.stage.set(work.stage)
    rows = await stage(work.stage).run(context, shard)
    stats: dict[str, Any] = {k: getattr(used, k) for k in ("calls", "cached", "tokens", "cost_usd")}
    stats |= {k: v for k in UNSURE if (v := getattr(used, k))}
    stats |= {"path": context.path} if context.path else {}
    folder = context.root / work.output
    # in a thread: requests of other shards go on
    await asyncio.to_thread(tables.write_part, folder, work.stage, shard, rows, stats)
    failed = sum(row.get("error") is not None for row in rows)
    tags = {"stage": work.stage, "run": work.cfg.run.name}
    telemetry.count("rows", len(rows), **tags)
    telemetry.count("errors", failed, **tags)
    if telemetry.json_lines():  # a line of this process's log
        what: dict[str, Any] = {"table": work.output, "shard": shard, **stats}
        say(f"part {shard}", event="part", rows=len(rows), errors=failed, **what)


class Actor:
    """An operator's worker in an actor pool."""

    def __init__(self, operator: Operator, stop: str) -> None:
        self._worker = Worker(operator, stop)
        self._loop = asyncio.new_event_loop()

    def __call__(self, batch: Batch) -> Batch:
        return self._loop.run_until_complete(self._worker.rows(batch))


class AskingActor:
    """A worker of an operator that asks an endpoint, in an actor pool. Ray Data runs all calls of
    an actor on one event loop."""

    def __init__(self, operator: Operator, stop: str) -> None:
        self._worker = Worker(operator, stop)

    async def __call__(self, batch: Batch) -> Batch:
        self._loop = asyncio.get_running_loop()
        return await self._worker.rows(batch)

    def __del__(self) -> None:  # Ray Data deletes it when the actor ends
        if loop := getattr(self, "_loop", None):
            closing = asyncio.run_coroutine_threadsafe(self._worker.close(), loop)
            with contextlib.suppress(TimeoutError):
                closing.result(CLOSE_S)


class _Process:
    """The workers and resources that a process keeps between the tasks of one pipeline."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.workers: dict[str, Worker] = {}
        self.opened: dict = {}
        self.stop = ""  # of the pipeline

    def worker(self, operator: Operator, stop: str) -> Worker:
        if stop != self.stop:
            self.close()
            release_memory()
            self.stop = stop
        if operator.name not in self.workers:
            self.workers[operator.name] = Worker(operator, stop, self.opened)
        return self.workers[operator.name]

    def close(self) -> None:
        while self.workers:
            self.loop.run_until_complete(self.workers.popitem()[1].close())
        self.opened = {}


_process: _Process | None = None


def run_task(batch: Batch, operator: Operator, stop: str) -> Batch:
    """An operator's worker as a task."""
    global _process
    _process = _process or _Process()
    worker, made = _process.worker(operator, stop), None
    try:
        made = _process.loop.run_until_complete(worker.rows(batch))
    finally:
        if made is None or any(made["kind"]):  # a stopped client cannot be used again
            _process.close()
    return made


def returned_error(row: dict[str, str]) -> UserError:
    """The error that a worker returned, as its class of errors.py, else as a UserError."""
    return getattr(errors, row["kind"], UserError)(row["stopped"])
