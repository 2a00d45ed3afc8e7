"""Virtual time, and processes that live in it: one heap of events, one seed, no threads.

    world = World(seed=7)
    host = Host("head", boot_s=1000.0)
    process = Process(world, "worker-0", host)
    with patched(world):
        process.spawn(main())
        world.run(lambda: finished)

A process is an event loop of its own. What is killed runs no handle any more, not even its
`finally` blocks. A call of `asyncio.to_thread` runs at one later instant, and its result arrives
later still; a process that is to die at a disk operation inside it leaves what it had written.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import heapq
import random
import time
import uuid
from asyncio import events
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

EPOCH_S = 1_700_000_000.0


class Killed(BaseException):
    """The process that does this is dead: what it does has no effect."""


class Host:
    """Clocks of one machine. `skew_s`: how far its calendar clock is off; it may jump."""

    def __init__(self, name: str, boot_s: float, skew_s: float = 0.0) -> None:
        self.name, self.boot_s, self.skew_s = name, boot_s, skew_s


class World:
    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.log: list[tuple[float, str, str]] = []
        self.errors: list[str] = []  # uncaught exceptions: bugs
        self.current: Process | None = None
        self.processes: list[Process] = []
        self.slept_s = 0.0
        self._heap: list[tuple[float, int, Any]] = []
        self._ready: deque[Handle] = deque()
        self._pushed = 0
        self._dice: dict[str, random.Random] = {}

    def dice(self, name: str) -> random.Random:
        """A random generator for one part, independent of the draws of other parts."""
        if name not in self._dice:
            self._dice[name] = random.Random(f"{self.seed}/{name}")
        return self._dice[name]

    def note(self, who: str, what: str) -> None:
        self.log.append((self.now, who, what))

    def digest(self) -> str:
        text = "\n".join(f"{at:.9f} {who} {what}" for at, who, what in self.log)
        return hashlib.sha256(text.encode()).hexdigest()

    def at(self, when_s: float, do: Callable[..., None], *args: Any) -> None:
        """Call `do` at this time, outside of any process."""
        self._push(when_s, (do, args))

    def later(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        self._push(self.now + delay_s, (do, args))

    def _push(self, when_s: float, event: Any) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (max(self.now, when_s), self._pushed, event))

    def run(self, over: Callable[[], bool], until_s: float) -> bool:
        """Run events until `over()`: True. False after `until_s`, or when no event is left."""
        heap, ready = self._heap, self._ready
        while True:
            while ready:
                self._step(ready.popleft())
            if over():
                return True
            if not heap or heap[0][0] > until_s:
                return False
            self.now, _, event = heapq.heappop(heap)
            if isinstance(event, tuple):
                self.events += 1
                event[0](*event[1])
            else:
                self._step(event)

    def _step(self, handle: Handle) -> None:
        process = handle.process
        if handle.callback is None or process.dead:
            return
        if process.stalled_until_s > self.now:
            self._push(process.stalled_until_s, handle)
            return
        self.events += 1
        self.current = process
        events._set_running_loop(process)
        try:
            handle.context.run(handle.callback, *handle.args)
        except BaseException as e:
            process.call_exception_handler({"message": f"in {handle.callback}", "exception": e})
        finally:
            self.current = None
            events._set_running_loop(None)

    def end(self) -> None:
        """Kill all processes, and close their waiting coroutines silently."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            for task in process.tasks:
                if not task.done():
                    task._log_destroy_pending = False
                    with process:
                        _close(task.get_coro())
            process.tasks.clear()
        self._heap.clear()
        self._ready.clear()


class Handle:
    """A call that is scheduled in a process."""

    __slots__ = ("process", "callback", "args", "context")

    def __init__(self, process: Process, callback: Any, args: tuple, context: Any) -> None:
        self.process, self.callback, self.args = process, callback, args
        self.context = context if context is not None else contextvars.copy_context()

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None


class Process(asyncio.AbstractEventLoop):
    """One operating system process with one event loop."""

    def __init__(self, world: World, name: str, host: Host) -> None:
        self.world, self.name, self.host = world, name, host
        self.dead = False
        self.stalled_until_s = 0.0
        self.dies_in: int | None = None  # disk operations until it is killed
        self.on_death: list[Callable[[], None]] = []
        self.tasks: list[asyncio.Task] = []
        self._outer: list[tuple[Process | None, Any]] = []
        world.processes.append(self)

    def __enter__(self) -> None:
        self._outer.append((self.world.current, events._get_running_loop()))
        self.world.current = self
        events._set_running_loop(self)

    def __exit__(self, *_: object) -> None:
        self.world.current, loop = self._outer.pop()
        events._set_running_loop(loop)

    def spawn(self, work: Any) -> asyncio.Task:
        with self:
            return self.create_task(work)

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            for tell in self.on_death:
                tell()

    # -- the interface of asyncio loops-----------------------------------------------------------

    def time(self) -> float:
        return self.world.now + self.host.boot_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Handle:
        handle = Handle(self, callback, args, context)
        if not self.dead:
            self.world._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(self, callback, args, context)
        if not self.dead:
            self.world._push(when - self.host.boot_s, handle)
        return handle

    def create_future(self) -> asyncio.Future:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> asyncio.Task:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future:
        future = self.create_future()
        begin_s, end_s = self.thread_s()
        self.call_later(begin_s, self._in_thread, future, end_s, func, args)
        return future

    def thread_s(self) -> tuple[float, float]:
        """(until a thread begins, until its result arrives)"""
        dice = self.world.dice("threads")
        return dice.expovariate(2000.0), dice.expovariate(500.0)

    def _in_thread(self, future: asyncio.Future, end_s: float, func: Any, args: tuple) -> None:
        events._set_running_loop(None)
        self.world.slept_s = 0.0
        try:
            result, error = func(*args), None
        except Killed:
            return
        except BaseException as e:
            result, error = None, e
        finally:
            events._set_running_loop(self)
        self.call_later(end_s + self.world.slept_s, _settle, future, result, error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Killed) or "never retrieved" in context["message"]:
            return
        self.world.errors.append(f"{self.name}: {context['message']}: {error!r}")


def _close(coro: Any) -> None:
    """Close coroutines from the innermost on: one that awaits in `finally` needs several calls."""
    chain = []
    while hasattr(coro, "cr_await"):
        chain.append(coro)
        coro = coro.cr_await
    for inner in reversed(chain):
        for _ in range(9):
            with contextlib.suppress(BaseException):
                inner.close()
                break


def _settle(future: asyncio.Future, result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


@contextlib.contextmanager
def patched(world: World) -> Iterator[None]:
    """Take clocks, sleep, ids and random numbers from this world."""

    def host() -> Host:
        return world.current.host if world.current is not None else NOWHERE

    def wall_s() -> float:
        return EPOCH_S + world.now + host().skew_s

    def sleep(seconds: float) -> None:
        process = world.current
        if process is None or events._get_running_loop() is None:
            world.slept_s += seconds
        else:
            process.stalled_until_s = max(process.stalled_until_s, world.now + seconds)

    dice = world.dice("ids")
    new = {
        (time, "time"): wall_s,
        (time, "time_ns"): lambda: int(wall_s() * 1e9),
        (time, "monotonic"): lambda: world.now + host().boot_s,
        (time, "perf_counter"): lambda: world.now + host().boot_s,
        (time, "sleep"): sleep,
        (uuid, "uuid4"): lambda: uuid.UUID(int=dice.getrandbits(128), version=4),
    }
    with replaced(new):
        state = random.getstate()
        random.seed(f"{world.seed}/global")
        try:
            yield
        finally:
            world.end()
            random.setstate(state)


@contextlib.contextmanager
def replaced(new: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """Replace these attributes within the block."""
    old = {(owner, name): owner.__dict__.get(name, _MISSING) for owner, name in new}
    for (owner, name), value in new.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in old.items():
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


_MISSING = object()
NOWHERE = Host("nowhere", 0.0)
