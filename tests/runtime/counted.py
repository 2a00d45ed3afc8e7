"""Runs the quickstart on logical GPUs, with a sampler that logs when it is loaded and used.

python counted.py GPUS LOG CONFIG... KEY=VALUE...
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def count_samplers() -> None:
    """Replace the transformers engine in a process of the cluster."""
    import ray

    from facttune_ray.sampling import engines
    from facttune_ray.sampling.protocol import Sample, SampleRequest
    from facttune_ray.stages.context import Context

    class Counted:
        def __init__(self, table: str) -> None:
            self.table = table
            self.log("load")

        def log(self, event: str) -> None:
            actor = ray.get_runtime_context().get_actor_id()
            with open(os.environ["COUNTED_LOG"], "a") as f:
                f.write(f"{time.time():.3f} {event} {actor} {self.table}\n")

        def sample(self, request: SampleRequest) -> list[list[Sample]]:
            self.log("sample")
            if self.table == "base/tune/responses":
                time.sleep(4.0)  # longer than a scorer takes to start
            sampled = [
                Sample(f"Mara Veldt was born in {1900 + i}.", 9, True) for i in range(request.n)
            ]
            return [sampled for _ in request.prompts]

        def count_tokens(self, texts: list[str]) -> list[int]:
            return [len(text.split()) for text in texts]

    table = ""

    def made(cfg: Any, path: str, client: Any) -> Any:
        return Counted(table)

    engines.ENGINES["transformers"] = made
    shared = Context._shared

    def remember(self: Context, key: tuple, make: Any) -> Any:
        nonlocal table
        table = self.work.output
        return shared(self, key, make)

    Context._shared = remember  # type: ignore[method-assign]


if __name__ == "__main__":
    import ray

    from facttune_ray import config
    from facttune_ray.commands import run

    env = {"PYTHONPATH": os.environ["PYTHONPATH"], "COUNTED_LOG": sys.argv[2]}
    hook = {"worker_process_setup_hook": "counted.count_samplers", "env_vars": env}
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=int(sys.argv[1]),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 * 2**20,
        runtime_env=hook,
    )
    words = sys.argv[3:]
    presets = [word for word in words if "=" not in word]
    run.run(config.load(["quickstart", *presets], [word for word in words if "=" in word]))
