"""Where the workers of a stage run on a cluster.

    gpus_of(work)                              ->  (1.0, "L4")   GPUs of each worker, their kind
    worker_count(nodes, gpus=1.0, accelerator="L4")   ->  8      workers that there is room for
    options(gpus=1.0, accelerator="L4")        ->  {"num_gpus": 1.0, "num_cpus": 0,
                                                    "accelerator_type": "L4"}

A stage without GPUs has one worker per CPU. If there are hosts without GPUs, only their CPUs
count: Ray's scheduler fills those hosts first. A worker that asks an endpoint mostly waits, so it
takes half a CPU: two such stages find room side by side. A head that was started with --num-cpus=0
runs the limiter and the meter alone, which take no CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from facttune_ray.stages import STAGES
from facttune_ray.stages.work import Work

ASKS = 0.5  # CPUs of a worker that asks an endpoint. Not fewer: each worker holds about 450 MB
# an entry of ray.nodes(): {"Alive": True, "Resources": {"CPU": 8.0, "accelerator_type:L4": 1}}
Node = Mapping[str, Any]


def gpus_of(work: Work) -> tuple[float, str]:
    """(GPUs of each worker of the stage, their kind)"""
    section = STAGES[work.stage].gpus
    if not section or (section == "sampling" and work.base_url):  # the endpoint has the GPUs
        return 0.0, ""
    own = getattr(work.cfg, section)
    several = 0
    if STAGES[work.stage].samples and own.engine == "vllm":
        several = own.tensor_parallel
    return max(own.gpus, several), own.accelerator


def worker_count(nodes: Iterable[Node], gpus: float, accelerator: str) -> int:
    """Workers that the cluster has room for now; 0 if no host has the GPUs yet."""
    hosts = [n["Resources"] for n in nodes if n["Alive"]]
    if gpus:
        right = [h for h in hosts if not accelerator or f"accelerator_type:{accelerator}" in h]
        return sum(int(h.get("GPU", 0) // gpus) for h in right)
    plain = [h for h in hosts if not h.get("GPU") and h.get("CPU")]
    return max(1, int(sum(h.get("CPU", 0) for h in plain or hosts)))


def options(gpus: float, accelerator: str, asks: bool) -> dict[str, Any]:
    """Ray's options of each worker. `asks`: whether it asks an endpoint."""
    if not gpus:
        return {"num_cpus": ASKS if asks else 1}
    kind = {"accelerator_type": accelerator} if accelerator else {}
    return {"num_gpus": gpus, "num_cpus": 0, **kind}
