"""Runs one seed: the real client, permits, limiter, meter and ledger in a simulated world.

    history = simulate(draw(seed=7))

There are no sockets, threads or sleeps. Workers run the product's `Worker.make` for their shards.
The event loop, clocks, network, provider, Ray's actors and the disk are simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import ray

from facttune_ray import secrets, telemetry
from facttune_ray.config import LLMConfig
from facttune_ray.errors import RowError, Stopped, UserError
from facttune_ray.llm import actors, journal, ledger
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.parameters import parameters
from facttune_ray.llm.permits import Gate, Queue
from facttune_ray.llm.replies import HTTPReply, no_reply
from facttune_ray.runtime.placement import Place
from facttune_ray.runtime.worker import Worker
from facttune_ray.storage import folders
from facttune_ray.storage.folders import Folder
from simulation.actors import Actor
from simulation.disk import Disk, Faults, Mount
from simulation.history import Death, History, Row
from simulation.provider import Provider, Unanswered
from simulation.scenario import Scenario
from simulation.world import Host, Process, World, patched, replaced

gc.collect()
gc.freeze()  # the collector skips imported modules from here on

ENDS_S = 4000.0  # no run may take longer
RESUMED = 3  # how often the command is repeated after a stop


def simulate(scenario: Scenario) -> tuple[History, World]:
    world = World(scenario.seed)
    gc.disable()  # a collection would end tasks at moments that depend on memory
    try:
        small = {
            (journal, "REWRITE_BYTES"): scenario.rewrite_bytes,
            (ledger, "MERGE"): scenario.merge,
        }
        with _cluster_of_one(), replaced(small), patched(world):
            return Run(world, scenario).go(), world
    finally:
        gc.enable()


@contextlib.contextmanager
def _cluster_of_one() -> Any:
    """Replace what the product asks of Ray, of telemetry and of the file system."""
    local = property(lambda folder: getattr(folder.fs, "local", False))
    context = SimpleNamespace(was_current_actor_reconstructed=False)
    new = {
        (ray, "get_runtime_context"): lambda: context,
        (actors, "threading"): SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=int)),
        (secrets, "known"): frozenset,  # or each answer would read the environment
        (telemetry, "count"): lambda *_, **__: None,
        (telemetry, "gauge"): lambda *_, **__: None,
        (Folder, "local"): local,
        (folders, "sync"): lambda fs, path: fs.sync(path),
    }
    _cluster_of_one.context = context  # type: ignore[attr-defined]
    with replaced(new):
        yield


def _asking(client: Client, make: Callable[[int], Awaitable[None]]) -> Worker:
    """The product's worker of one client, with another way to make a shard."""
    worker: Any = Worker.__new__(Worker)
    works = [SimpleNamespace(output="table")]
    worker.operator = SimpleNamespace(place=Place(asks=True), works=works)
    worker.contexts = [SimpleNamespace(client=client)]
    worker._open, worker._turn, worker._make_tables = 0, asyncio.Lock(), make
    return worker


class Run:
    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world, self.s = world, scenario
        s = scenario
        self.history = History(s.settings())
        self.cfg = LLMConfig(
            base_url="http://simulated/v1",
            model="simulated",
            api_key_env="FACTTUNE_SIMULATED_KEY",
            concurrency=s.concurrency,
            max_tokens=5 + s.answer_tokens,
            timeout_s=s.timeout_s,
            max_attempts=s.max_attempts,
            max_elapsed_s=s.max_elapsed_s,
            max_wait_s=s.max_wait_s,
            reasks=s.reasks,
            budget_usd=s.budget_usd,
            usd_per_million_input=s.usd_input,
            usd_per_million_output=s.usd_output,
            flush_rows=s.flush_rows,
            flush_s=s.flush_s,
        )
        self.limits = Limits(*s.configured)
        full, broken_end = s.disk_full, s.faults_end_s
        self.disk = Disk(world, s.store, Faults(full, s.disk_broken, broken_end, s.stale_s))
        self.provider = Provider(world, s, self.history)
        self.history.limits = s.limits
        self.head = Host("head", 1000.0)
        self.hosts = [Host(f"host-{i}", 3000.0 + 7919.0 * i) for i in range(s.workers)]
        self.over = False
        self.lives = 0  # how often the command was started
        self.workers: dict[int, Process] = {}
        self.ended: set[int] = set()
        self.stopped: str | None = None
        self.started = self.next_start = 0
        self.moved_s = 0.0  # when something last happened

    # -- the run -----------------------------------------------------------------------------------

    def go(self) -> History:
        world, history, s = self.world, self.history, self.s
        self.limiter = self._limiter()
        self._start(0)
        for at, worker, operation in s.kills:
            world.at(at, self._kill, worker, operation)
        for at in s.run_kills:
            world.at(at, self._kill_run)
        for at in s.crashes:
            world.at(at, self._crash)
        for at in s.limiter_restarts:
            world.at(at, lambda: self.limiter.restart())
        for at in s.meter_restarts:
            world.at(at, lambda: self.meter.restart())
        for at, worker, seconds in s.stalls:
            world.at(at, self._stall, worker, seconds)
        for at, seconds in s.jumps:
            world.at(at, self._jump, seconds)
        for begin, end in [*s.down, *s.disk_full]:
            history.troubles += [(begin, "down"), (end, "down")]
        world.later(5.0, self._watch)
        ended = world.run(lambda: self.over or bool(history.stuck), ENDS_S)
        if not ended and not history.stuck:
            history.stuck = "the run takes longer than any may"
        history.ended_s = world.now
        self.over = True
        for process in self.workers.values():
            process.kill()
        world.run(lambda: not self.provider.busy, world.now + 10 * s.timeout_s + 100.0)
        history.errors = world.errors
        history.files = {p: f.data for p, f in self.disk.files.items()}
        history.written = self.disk.written
        history.removed = self.disk.removed
        return history

    def _watch(self) -> None:
        """Mark the run as stuck when nothing happens for longer than its waits explain."""
        attempts, rows = self.history.attempts, self.history.rows
        moved = [self.moved_s, *(a.departed_s for a in attempts[-1:])]
        moved += [a.ended_s for a in attempts if a.ended_s is not None]
        moved += [r.ended_s for r in rows if r.ended_s is not None]
        self.moved_s = max(moved)
        quiet_s = self.world.now - self.moved_s
        if not self.world._heap and not self.world._ready:
            self.history.stuck = f"nothing will ever happen again, since {self.moved_s:.3f} s"
        elif quiet_s > self.patience_s():
            self.history.stuck = f"nothing has happened for {quiet_s:.1f} s"
        self.world.later(5.0, self._watch)

    def patience_s(self) -> float:
        """An upper bound of any single wait of this scenario."""
        s = self.s
        rates = [rpm for _, rpm, _ in s.limits if rpm] + [c for c in s.configured[:1] if c]
        longest = 60.0 + s.timeout_s + s.max_wait_s + 8 * s.trip_s[1] + 10 * s.slow_threads_s
        longest += 60.0 / min(rates, default=60.0) * (s.workers + 3) * 3
        longest += max(s.gaps_s, default=0.0) + s.restart_s + s.stale_s
        longest += 65.0 if any(tpm for _, _, tpm in s.limits) else 0.0
        return longest + sum(t for _, _, t in s.stalls)

    def _start_later(self, delay_s: float) -> None:
        self.next_start += 1
        self.world.later(delay_s, self._start, self.next_start)

    def _start(self, number: int) -> None:
        """Start the command, unless a later start is planned."""
        if self.over or number != self.next_start:
            return
        self.lives += 1
        self.history.starts.append(self.world.now)
        self.moved_s = self.world.now
        self.stopped, self.ended = None, set()
        self.meter = self._meter()
        for i in range(self.s.workers):
            self._start_worker(i)

    def _limiter(self) -> Actor:
        def make(process: Process, again: bool) -> Any:
            _cluster_of_one.context.was_current_actor_reconstructed = again  # type: ignore
            return actors.LimiterActor(self.limits)

        return Actor(self.world, "limiter", self.head, self.s, self.history, make)

    def _meter(self) -> Actor:
        def make(process: Process, again: bool) -> Any:
            folder = Folder(Mount(self.disk, process), "out/ledger")
            return actors.MeterActor(self.cfg.budget_usd, folder, "run")

        name = f"meter-{self.lives}"
        return Actor(self.world, name, self.head, self.s, self.history, make)

    def _start_worker(self, i: int) -> None:
        if self.over or i in self.ended:
            return
        self.started += 1
        self.moved_s = self.world.now
        process = Process(self.world, f"worker-{i}.{self.started}", self.hosts[i])
        dice, slow_s = self.world.dice("threads"), self.s.slow_threads_s
        process.thread_s = lambda: (  # type: ignore[method-assign]
            dice.uniform(0.0, slow_s),
            dice.uniform(0.0, slow_s),
        )
        self.workers[i] = process
        process.on_death.append(lambda: self._dead(i, process))
        process.spawn(self._life(i, process))

    def _dead(self, i: int, process: Process) -> None:
        if self.over or i in self.ended:
            return
        now = self.world.now
        self.history.deaths.append(Death(process.name, now))
        self.history.troubles.append((now, f"{process.name} dies"))
        self.world.note(process.name, "dies")
        life = self.lives

        def again() -> None:
            if self.lives == life and self.workers[i] is process:
                self._start_worker(i)

        self.world.later(self.s.restart_s, again)

    def _worker_ends(self, i: int, process: Process, said: str) -> None:
        self.world.note(process.name, f"ends: {said}")
        self.ended.add(i)
        self.moved_s = self.history.ends[process.name] = self.world.now
        if said:
            self.history.stops.append(said)
            self.stopped = self.stopped or said
        if len(self.ended) < self.s.workers:
            return
        final = self.stopped is None or "budget_usd" in self.stopped
        final |= not (self.s.down or self.s.disk_full or self.s.disk_broken)
        if final or len(self.history.stops) > RESUMED * self.s.workers:
            self.over = True
        else:  # run the same command again, as the error said
            self.meter.kill()
            self._start_later(max(1.0, self.s.restart_s))

    # -- a worker ----------------------------------------------------------------------------------

    async def _life(self, i: int, process: Process) -> None:
        client, said = None, ""
        try:
            client = self._client(process)
            worker = _asking(client, lambda shard: self._make(process, client, shard))
            await self._make_shards(worker, set(self._shards(i)) - self._done(process))
        except UserError as e:
            said = str(e)
        except OSError as e:
            said = folders.outage(e) or f"a worker ended by {e!r}"
        except Exception as e:
            said = f"a worker ended by {e!r}"
            if not process.dead:
                self.history.crashed.append(said)
        finally:
            if client is not None and not process.dead:
                with contextlib.suppress(UserError, OSError):
                    await client.close()
        if not process.dead:
            self._worker_ends(i, process, said)

    async def _make_shards(self, worker: Worker, shards: set[int]) -> None:
        """Give the shards to the worker when they come. Raise their first error."""

        async def make(shard: int) -> None:
            await asyncio.sleep(self.s.arrivals_s[shard])
            await worker.make(shard)

        ended = await asyncio.gather(*map(make, sorted(shards)), return_exceptions=True)
        errors = [e for e in ended if e is not None]
        errors.sort(key=lambda e: isinstance(e, Stopped))
        if errors:
            raise errors[0]

    def _client(self, process: Process) -> Client:
        call = actors._Caller(lambda: self.limiter.handle(process))
        tell = actors._Caller(lambda: self.meter.handle(process))
        folder = Folder(Mount(self.disk, process), "out/ledger")
        self.history.openings.append((process.name, self.world.now))
        cfg = self.cfg
        kept = Ledger(folder, cfg.flush_rows, cfg.flush_s, run="run", stage="table")
        gate = Gate(lambda seen: call("renew", seen), cfg.concurrency, kept.writer, Queue())
        send = self.provider.transport(process, self.cfg.timeout_s)

        async def transport(method: str, path: str, body: Any, headers: dict) -> Any:
            try:
                return HTTPReply(*await send(method, path, body, headers))
            except Unanswered as e:
                return no_reply(f"no answer: {e}", unreachable=str(e) == "refused")

        endpoint = Endpoint(
            self.cfg.base_url, self.cfg.api_key_env, self.cfg.timeout_s, gate, transport
        )
        return Client(cfg, kept, [endpoint], lambda ask: tell("report", ask), kept.writer)

    def _shards(self, i: int) -> list[int]:
        return list(range(i, self.s.shards, self.s.workers))

    def _done(self, process: Process) -> set[int]:
        names = Folder(Mount(self.disk, process), "out/table").names()
        return {int(n) for n in names if n.isdecimal()}

    async def _make(self, process: Process, client: Client, shard: int) -> None:
        """Ask the rows of one shard. A row with a gap waits until the rows before it have ended."""
        found: dict[int, str] = {}
        running: list[asyncio.Task] = []
        for row in range(shard, len(self.s.kinds), self.s.shards):
            if self.s.gaps_s[row]:
                await asyncio.gather(*running)
                await asyncio.sleep(self.s.gaps_s[row])
            running.append(asyncio.create_task(self._row(process, client, row, found)))
        await asyncio.gather(*running)
        part = Folder(Mount(self.disk, process), f"out/table/{shard}")
        await asyncio.to_thread(part.write_bytes, json.dumps(found).encode())

    async def _row(self, process: Process, client: Client, row: int, found: dict) -> None:
        kind, choices = self.s.kinds[row], self.s.choices[row]
        said = Row(row, kind, process.name, self.world.now)
        self.history.rows.append(said)
        text = f"row {row} {kind} " + "x" * self.s.chars[row]
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]

        def key(sample: int) -> str:
            return request_key(self.cfg.model, messages, parameters(self.cfg, sample), sample).hex()

        said.keys = [key(sample) for sample in range(choices or self.s.reasks + 1)]
        try:
            if choices:
                asked = client.complete_all(messages, [{}] * choices, self.s.most_choices)
                for completion in await asked:
                    if isinstance(completion, RowError):
                        raise completion
                    parse(completion.whole_answer)
            else:
                await client.ask(messages, parse, reject_cut=True)
            said.outcome = "answer"
        except RowError as e:
            said.outcome, said.said = "row error", str(e)
        except UserError as e:
            said.outcome, said.said = "stop", str(e)
            raise
        finally:
            if not process.dead:
                said.ended_s = self.world.now
                said.outcome = said.outcome or "cancelled"
                self.world.note(process.name, f"row {row} {said.outcome}: {said.said}")
        found[row] = said.outcome

    # -- faults ------------------------------------------------------------------------------------

    def _kill(self, worker: int, operation: int) -> None:
        process = self.workers.get(worker % self.s.workers)
        if process is None or process.dead or worker % self.s.workers in self.ended:
            return
        if operation:
            process.dies_in = operation
        else:
            process.kill()

    def _kill_run(self) -> None:
        self._all_die()
        self._start_later(self.s.restart_s)

    def _all_die(self) -> None:
        for process in self.workers.values():
            process.kill()
        self.meter.kill()
        self.lives += 1  # none of them is started again

    def _crash(self) -> None:
        if self.over:
            return
        self.world.note("host", "crashes")
        self.history.crashes.append(self.world.now)
        before = len(self.history.deaths)
        self._all_die()
        for death in self.history.deaths[before:]:
            death.crash = True
        self.limiter.kill()
        self.disk.crash()
        self.limiter = self._limiter()
        self._start_later(self.s.restart_s)

    def _stall(self, worker: int, seconds: float) -> None:
        """The process stands still, as one does that swaps, or whose host is too busy."""
        process = self.workers.get(worker % self.s.workers)
        if process is not None:
            process.stalled_until_s = self.world.now + seconds
            self.history.troubles.append((self.world.now, "stall"))
            self.history.troubles.append((self.world.now + seconds, "stall"))

    def _jump(self, seconds: float) -> None:
        for host in self.hosts:
            host.skew_s += seconds


def parse(text: str) -> str:
    if not text.startswith("answer"):
        raise RowError(f"no answer: {text[:80]}")
    return text
