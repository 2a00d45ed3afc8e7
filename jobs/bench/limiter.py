"""The share of a limit that is used when the limiter is far away, in virtual time.

    used(requests_per_minute=60, trip_s=lambda: (0.5, 0.5), workers=4)  ->  Used(share=0.983, ...)

The real limiter and gates run on an event loop whose clock jumps to the next event. Two minutes
take about a second, and equal arguments give equal figures.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from bisect import bisect_left
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from facttune_ray.llm.limiter import Lease, Limiter, LimiterReport, Limits
from facttune_ray.llm.permits import Gate

LIMITS = (20, 60, 200, 1000, 12_000)
TRIPS_S: dict[str, float | None] = {"0": 0.0, "0.5": 0.5, "1": 1.0, "2": 2.0, "0 to 2": None}


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while code runs, and then jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__(self._jumping(selectors.SelectSelector()))
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    def _jumping(self, selector: selectors.BaseSelector) -> selectors.BaseSelector:
        poll = selector.select

        def select(timeout: float | None = None) -> list:
            if timeout is None:
                raise RuntimeError("every task waits, and no timer is set")
            self.now_s += timeout
            return poll(0)

        selector.select = select  # type: ignore[method-assign]
        return selector


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` in virtual time, for at most an hour of it."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(asyncio.wait_for(work, 3600.0))


@dataclass(frozen=True)
class Used:
    share: float  # of the limit, from the first request on
    most_in_60_s: int
    by_worker: list[int]


def used(
    requests_per_minute: float,
    trip_s: Callable[[], tuple[float, float]],
    workers: int = 1,
    seconds: float = 120.0,
    latency_s: float = 0.2,
) -> Used:
    """Run workers that always have work. `trip_s`: seconds to the limiter, and back."""
    limiter = Limiter(Limits(requests_per_minute))
    sent: list[list[float]] = [[] for _ in range(workers)]

    async def renew(report: LimiterReport) -> Lease:
        there_s, back_s = trip_s()
        await asyncio.sleep(there_s)
        lease = limiter.renew(report, asyncio.get_running_loop().time())
        await asyncio.sleep(back_s)
        return lease

    async def work(worker: int) -> None:
        loop = asyncio.get_running_loop()
        gate, running, tickets = Gate(renew, 128, f"{worker}"), set[asyncio.Task](), 0

        async def one(ticket: int) -> None:
            await gate.acquire(400, ticket)
            sent[worker].append(loop.time())
            await asyncio.sleep(latency_s)
            gate.answered(400, 400, latency_s, {})

        ends = loop.time() + seconds
        while loop.time() < ends:
            soon = gate.soon if gate.lease.in_flight else math.inf
            while len(running) < max(256, min(1024, soon)):
                task = asyncio.create_task(one(tickets))
                running.add(task)
                task.add_done_callback(running.discard)
                tickets += 1
            await asyncio.sleep(min(0.05, ends - loop.time()))

    async def all_work() -> float:
        began_s = asyncio.get_running_loop().time()
        await asyncio.gather(*map(work, range(workers)))
        return began_s

    began_s = run(all_work())
    times = sorted(t for mine in sent for t in mine if t <= began_s + seconds)
    return Used(
        len(times) / (requests_per_minute * seconds / 60),
        max(bisect_left(times, t + 60.0) - i for i, t in enumerate(times)),
        [len(mine) for mine in sent],
    )


def table(workers: int = 4) -> dict[str, dict[int, float]]:
    """{round trip in seconds: {limit per minute: used share}}"""
    shares: dict[str, dict[int, float]] = {}
    for name, trip_s in TRIPS_S.items():
        for limit in LIMITS:
            chance = random.Random(0)

            def trip(trip_s: float | None = trip_s, chance: random.Random = chance):
                if trip_s is not None:
                    return trip_s / 2, trip_s / 2
                return chance.uniform(0, 1), chance.uniform(0, 1)

            shares.setdefault(name, {})[limit] = round(used(limit, trip, workers).share, 4)
    return shares


def show(shares: dict) -> str:
    """`table` as a text."""
    lines = ["share of the limit that 4 workers use in 120 s of virtual time, by round trip:"]
    lines.append("       s" + "".join(f"{limit:>9,}/min" for limit in LIMITS))
    for trip_s, by_limit in shares.items():
        lines.append(f"{trip_s:>8}" + "".join(f"{share:>13.3f}" for share in by_limit.values()))
    return "\n".join(lines)
