"""Where the workers of a pipeline run, and how many there are.

    operators(works)                 ->  [Operator(responses), Operator(facts, verdicts), ...]
    compute(operator, shards=64, ...) ->  options of `Dataset.map_batches`
    room(nodes, gpus=1.0, accelerator="L4")   ->  8    workers that there is room for

Consecutive tables that use the same resource are one operator: the same worker makes them of a
shard, one after the other. On a cluster, and with GPUs, an operator is a pool of actors that grows
with the cluster. On one machine without GPUs it is a number of tasks, because the processes of
tasks are warm. A worker that asks an endpoint mostly waits, so it takes half a CPU. A head that was
started with --num-cpus=0 runs the limiter and the meter alone, which take no CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facttune_ray.config import LLMConfig
from facttune_ray.stages import STAGES
from facttune_ray.stages.work import Work

ASKS = 0.5  # CPUs of a worker that asks an endpoint. Not fewer: each worker holds about 450 MB
# The least number of CPUs for pools: a pipeline has up to two pools that ask, whose first actors
# keep half a CPU each while they wait for shards, and a task needs a whole CPU of one host beside.
POOL_CPUS = 3
AT_FIRST = 64  # most actors that wait for the first hosts of a cluster
ACTOR_SHARDS = 16  # most shards that an actor has at a time: their rows are in memory
SCORER_PER_S = 20.0  # requests per second that keep one actor busy; an actor can send more
# an entry of ray.nodes(): {"Alive": True, "Resources": {"CPU": 8.0, "accelerator_type:L4": 1}}
Node = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """The resources of a worker."""

    asks: bool = False  # it asks an endpoint
    gpus: float = 0.0
    accelerator: str = ""  # the kind of GPU; "": any
    model: str = ""  # the local model that it holds: "sampler", or the stage that runs a model

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options of the worker."""
        if not self.gpus:
            return {"num_cpus": ASKS if self.asks else 1}
        kind = {"accelerator_type": self.accelerator} if self.accelerator else {}
        return {"num_gpus": self.gpus, "num_cpus": 0, **kind}


@dataclass(frozen=True)
class Operator:
    """Tables that one worker makes of a shard, one after the other."""

    works: tuple[Work, ...]
    place: Place

    @property
    def name(self) -> str:
        """Its name in Ray's dashboard."""
        return "+".join(work.stage for work in self.works)


def place_of(work: Work) -> Place:
    declared, asks = STAGES[work.stage], bool(work.base_url)
    if not declared.gpus or (declared.gpus == "sampling" and asks):  # the endpoint has the GPUs
        return Place(asks)
    own = getattr(work.cfg, declared.gpus)
    gpus = own.gpus
    if declared.samples and own.engine == "vllm" and gpus:
        gpus = max(gpus, own.tensor_parallel)
    model = "" if asks else "sampler" if declared.samples else work.stage
    return Place(asks, gpus, own.accelerator if gpus else "", model)


def operators(works: Sequence[Work]) -> list[Operator]:
    """The tables of a pipeline in as few operators as their inputs allow. `works`: in an order in
    which each table comes after its inputs."""
    made_here, done = {work.output for work in works}, set[str]()
    left, found = list(works), []

    def ready(work: Work) -> bool:
        return all(name in done or name not in made_here for name in work.inputs.values())

    while left:
        place, together = place_of(left[0]), []
        for work in left:
            if place_of(work) == place and ready(work):
                together.append(work)
                done.add(work.output)
        left = [work for work in left if work not in together]
        found.append(Operator(tuple(together), place))
    return found


def room(nodes: Iterable[Node], gpus: float, accelerator: str) -> int:
    """Workers that the cluster has room for now: by its GPUs; without GPUs by its CPUs, of the
    hosts without a GPU if there are any. 0 if there is no such host yet."""
    hosts = [n["Resources"] for n in nodes if n["Alive"]]
    if gpus:
        right = [h for h in hosts if not accelerator or f"accelerator_type:{accelerator}" in h]
        return sum(int(h.get("GPU", 0) // gpus) for h in right)
    plain = [h for h in hosts if not h.get("GPU") and h.get("CPU")]
    return int(sum(h.get("CPU", 0) for h in plain or hosts))


def scorers(llm: LLMConfig) -> float:
    """Number of workers that the endpoints' limits of requests can feed; inf without a limit."""
    limits = [e.requests_per_minute or llm.requests_per_minute for e in llm.endpoints]
    limits = limits or [llm.requests_per_minute]
    if None in limits:
        return math.inf
    return max(1, math.ceil(sum(n for n in limits if n) / 60 / SCORER_PER_S))


def pools(found: Sequence[Operator], nodes: Iterable[Node], grows: bool) -> bool:
    """Whether operators that ask are pools of actors. `grows`: the cluster is not a local one."""
    if any(operator.place.gpus for operator in found):
        return True
    cpus = room(nodes, 0.0, "")
    return grows and (cpus == 0 or cpus >= POOL_CPUS)


def compute(
    operator: Operator, shards: int, nodes: Sequence[Node], pooled: bool, first: bool, grows: bool
) -> dict[str, Any]:
    """Options of `Dataset.map_batches`. `first`: the operator is the first of its pipeline, so it
    begins with as many workers as there is room for."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    place, most = operator.place, operator.works[0].cfg.run.workers or math.inf
    now = room(nodes, place.gpus, place.accelerator)
    how: dict[str, Any] = {"batch_size": 1, "batch_format": "numpy", **place.options}
    if place.gpus or (place.asks and pooled):
        at_once = max(1, min(ACTOR_SHARDS, shards // 16)) if place.asks else 1
        most = min(most, math.ceil(shards / at_once))
        if place.asks:
            most = min(most, max(scorers(work.cfg.llm) for work in operator.works))
        # Where no host is there yet, the actors that wait are what an autoscaler sees.
        begins = min(now or AT_FIRST, most) if first else 1
        how["compute"] = ActorPoolStrategy(
            min_size=1,
            max_size=int(most),
            initial_size=int(begins),
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
        )
        return how
    if not grows:
        most = min(most, max(1, now))
    if place.asks:  # one event loop sends the requests of all shards of a task
        how["batch_size"] = math.ceil(shards / min(most, max(1, now)))
    most = min(most, math.ceil(shards / how["batch_size"]))
    how["compute"] = TaskPoolStrategy(size=int(most))
    return how
