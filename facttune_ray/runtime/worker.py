"""Ray Data over shards: the unit of work is one shard of a table, durable once written.

CPU stages run as Ray Data tasks in worker processes that keep their context (a loaded model, an
open connection) between tables: an actor pool a stage would start and import everything again
each time. A stage that asks the LLM gets one task a worker, with all of its shards: one event loop
gathers their requests, and the next shard begins before the stragglers of the last have come.
GPU stages run as an actor pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import sys
import threading
import traceback
from collections.abc import Coroutine
from typing import Any

import numpy as np

from facttune_ray import errors, telemetry
from facttune_ray.errors import UserError, one_line
from facttune_ray.runtime import ending
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
OPEN_SHARDS = 64  # of one worker, at once: their rows are in memory
REACH_S = 5.0  # until a cluster that does not answer is taken for gone
UNSURE = ("estimated", "unknown", "unknown_usd")  # of Usage; in a manifest where above 0
TASKS = 32  # of one worker, each some shards: the driver's work does not grow with them


class ShardWorker:
    """Makes shards of one table. Input batch: {"shards": ["0,2,4"]}; output: how it went."""

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
        except UserError as e:  # one line for the driver to raise, without a worker's traceback
            return {"stopped": np.array([str(e)]), "kind": np.array([type(e).__name__])}
        except OSError as e:  # an object store that stays away
            if (line := outage(e)) is None:
                raise
            line = f"{self.work.output}: {line}"
            return {"stopped": np.array([line]), "kind": np.array(["UserError"])}
        except Exception:  # a bug; its traceback goes to logs and to the cluster's state
            raise RuntimeError(redact(traceback.format_exc())) from None
        return {"stopped": np.array([""]), "kind": np.array([""])}

    async def make_all(self, shards: list[int]) -> None:
        done = self._done()
        for shard in shards:
            if shard not in done:
                await self.make(shard)

    def _done(self) -> set[int]:
        """What a lost worker had written of a task that Ray tries again."""
        return tables.present(self.context.root / self.work.output, self.work.cfg.run.shards)

    async def ask_all(self, shards: list[int]) -> None:
        """Shards of a stage that asks the LLM: as many at once as keep the endpoint busy."""
        client = self.context.client
        await asyncio.to_thread(client.ledger.refresh)
        done = self._done()
        running: set[asyncio.Task[None]] = set()
        try:
            for shard in shards:
                if shard in done:
                    continue
                running.add(asyncio.create_task(self.make(shard)))
                await asyncio.sleep(0.01)  # it reads its rows and makes its requests
                while running and (len(running) >= OPEN_SHARDS or not client.hungry()):
                    full = len(running) >= OPEN_SHARDS
                    running = await _some_done(running, None if full else client.until_hungry())
            while running:
                running = await _some_done(running)
        except Exception as e:  # also a bug, or a store that is away: what is under way is paid
            # those who wait get an error that none of them takes for its row's own
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
        )  # other shards' requests go on
        self._tell(shard, rows, stats)

    def _tell(self, shard: int, rows: list[dict], stats: dict[str, Any]) -> None:
        """Metrics and, where lines are JSON, one into this process's log."""
        failed = sum(row.get("error") is not None for row in rows)
        tags = {"stage": self.work.stage, "run": self.work.cfg.run.name}
        telemetry.count("rows", len(rows), **tags)
        telemetry.count("errors", failed, **tags)
        if telemetry.json_lines():
            what: dict[str, Any] = {"table": self.work.output, "shard": shard, **stats}
            say(f"part {shard}", event="part", rows=len(rows), errors=failed, **what)

    def close(self) -> None:
        """What could not be written was raised when it was tried first, and is tried once more."""
        if "client" in self.context.__dict__:
            with contextlib.suppress(UserError, OSError):
                self.loop.run_until_complete(self.context.client.close())
        self.loop.close()


async def _some_done(
    running: set[asyncio.Task[None]], until: Coroutine[Any, Any, None] | None = None
) -> set[asyncio.Task[None]]:
    """Those still running, after one has ended or `until` has; raises what they raised."""
    also = {asyncio.create_task(until)} if until is not None else set()
    try:
        done, _ = await asyncio.wait(running | also, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in also:
            task.cancel()
    for task in done:
        task.result()
    return running - done


_kept: dict[str, ShardWorker] = {}  # this process's worker, by table: at most one


def run_shards(batch: Batch, work: Work) -> Batch:
    """`ShardWorker` as a task: made once a process and table."""
    if work.output not in _kept or _kept[work.output].work != work:
        _let_go()
        release_memory()
        _kept[work.output] = ShardWorker(work)
    made = None
    try:
        made = _kept[work.output](batch)
    finally:
        if made is None or made["kind"][0]:  # a client that was stopped does not start again
            _let_go()
    return made


def _let_go() -> None:
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
    """Make these shards on the cluster; UserError when a worker stopped on bad input. Stopped when
    `ended` is set meanwhile: after the next shards, and without those that are being made."""
    import ray.data

    from facttune_ray.runtime.placement import options

    workers, left = min(workers, len(shards)), sorted(shards)
    lanes = workers if work.base_url else min(len(left), TASKS * workers)
    data = ray.data.from_items(
        [{"shards": ",".join(map(str, left[i::lanes]))} for i in range(lanes)],
        override_num_blocks=lanes,
    )
    size: dict[str, Any] = {"batch_size": 1, "batch_format": "numpy"}
    size |= options(gpus, accelerator, asks=bool(work.base_url))
    if gpus:
        pool: Any = ray.data.ActorPoolStrategy(size=workers)
        done = data.map_batches(ShardWorker, compute=pool, fn_constructor_args=(work,), **size)
    else:
        pool = ray.data.TaskPoolStrategy(size=workers)
        task = functools.partial(run_shards, work=work)
        done = data.map_batches(task, compute=pool, **size)
    done.set_name(work.output.replace("/", "."))  # in Ray's dashboard
    stopped: UserError | None = None
    for row in done.iter_rows():  # the others drain, too: what they paid for is kept
        if row["stopped"] and stopped is None:
            stopped = told(row)
        if ended is not None and ended.is_set():
            stopped = stopped or errors.Stopped("another table has failed")
            break
    if stopped is not None:
        raise stopped


def told(row: dict[str, str]) -> UserError:
    """The error that a worker returned; of a kind that only another module knows, a plain one."""
    return getattr(errors, row["kind"], UserError)(row["stopped"])


_starting = threading.Lock()


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job), or start a local one. UserError
    when nothing answers there. Of threads that come together one does it: Ray itself lets all of
    them begin, and breaks."""
    with _starting:
        _start_ray()


def _start_ray() -> None:
    import logging
    import os

    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # Ray's default, without its warning; Ray reads it when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # whoever waits for a task on a host that fell silent hears of it in 15 s, not in 7 minutes
    os.environ.setdefault("RAY_grpc_client_keepalive_time_ms", "10000")
    os.environ.setdefault("RAY_grpc_client_keepalive_timeout_ms", "5000")
    import ray
    import ray.data

    if ray.is_initialized():
        return
    if ending.heeding():  # Ray's own handler would end us without a line while it starts
        ray._private.utils.set_sigterm_handler = lambda handler: None
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _reach(address)
            ray.init(logging_level=logging.WARNING)
        except (OSError, ValueError, OverflowError) as e:
            raise UserError(
                f"RAY_ADDRESS={address}: no cluster answers there ({one_line(e)}): start it, or "
                f"unset RAY_ADDRESS to run on this machine alone"
            ) from None
    else:
        ray.init(
            address="local",
            num_cpus=max(2, os.cpu_count() or 1),  # one CPU must not starve a trainer's worker
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,  # workers' lines stay in Ray's session logs
            object_store_memory=512 * 2**20,  # tables travel as files, not as objects
        )
    ending.install()
    for name in ("ray", "ray.data"):  # their warnings are not the user's to act on
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # facttune_ray/runtime/progress.py prints what is done
    context.print_on_execution_start = False


def _reach(address: str) -> None:
    """OSError when nothing listens there: Ray would try for minutes, and end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto" and the like: Ray looks it up
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


def own_address() -> str:
    """This host's address, as the others of the cluster reach it; loopback without others."""
    import os

    import ray

    if not os.environ.get("RAY_ADDRESS"):
        return "127.0.0.1"
    start_ray()
    return ray.util.get_node_ip_address()
