"""Where a stage's workers stand on a cluster.

    gpus_of(work)                              ->  (1.0, "L4")      of each worker of a stage
    place(nodes, gpus=1.0, accelerator="L4")   ->  8      workers that there is room for
    options(gpus=1.0, accelerator="L4")        ->  {"num_gpus": 1.0, "num_cpus": 0,
                                                    "accelerator_type": "L4"}

Stages without a GPU have a worker a CPU, and count the hosts that have no GPU where there are such:
Ray's scheduler fills those first. A worker that asks an endpoint, and mostly waits, takes half a
CPU, so that two such stages find room side by side. A head that was started with --num-cpus=0 gets
nothing but the limiter and the meter, which take no CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from facttune_ray.stages import STAGES
from facttune_ray.stages.work import Work

ASKS = 0.5  # CPUs of a worker that asks an endpoint: not less, for each holds some 450 MB
Node = Mapping[str, Any]  # of ray.nodes(): Alive, Resources {"CPU": 8.0, "accelerator_type:L4": 1}


def gpus_of(work: Work) -> tuple[float, str]:
    """(GPUs of each of the stage's workers, their kind)"""
    section = STAGES[work.stage].gpus
    if not section or (section == "sampling" and work.base_url):  # others' GPUs
        return 0.0, ""
    own = getattr(work.cfg, section)
    several = 0
    if STAGES[work.stage].samples and own.engine == "vllm":
        several = own.tensor_parallel
    return max(own.gpus, several), own.accelerator


def place(nodes: Iterable[Node], gpus: float, accelerator: str) -> int:
    """Workers that the cluster has room for now; 0: a GPU host has yet to come."""
    hosts = [n["Resources"] for n in nodes if n["Alive"]]
    if gpus:
        right = [h for h in hosts if not accelerator or f"accelerator_type:{accelerator}" in h]
        return sum(int(h.get("GPU", 0) // gpus) for h in right)
    plain = [h for h in hosts if not h.get("GPU") and h.get("CPU")]
    return max(1, int(sum(h.get("CPU", 0) for h in plain or hosts)))


def options(gpus: float, accelerator: str, asks: bool) -> dict[str, Any]:
    """Ray's options of each worker. `asks`: its work is done by an endpoint."""
    if not gpus:
        return {"num_cpus": ASKS if asks else 1}
    kind = {"accelerator_type": accelerator} if accelerator else {}
    return {"num_gpus": gpus, "num_cpus": 0, **kind}
