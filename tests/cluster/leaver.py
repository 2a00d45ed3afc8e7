"""A training that waits for the notice that its host will be taken away, as a Ray job.

python tests/cluster/leaver.py FILE RESOURCE

The one worker runs on the host with this resource. FILE has a line when it runs, and then one with
what it saw: Ray Train's notice, and the resources of the hosts that later tasks ran on.
"""

import json
import os
import sys
import time
from pathlib import Path

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

LONGEST_S = 120
HOSTS = {"sigterm", "aws", "google", "spare"}


@ray.remote(num_cpus=1, max_retries=0)
def host() -> str:
    time.sleep(0.3)
    own = ray.get_runtime_context().get_node_id()
    (resources,) = (n["Resources"] for n in ray.nodes() if n["NodeID"] == own)
    return (HOSTS & resources.keys()).pop()


def wait(config: dict[str, str]) -> None:
    file, began = Path(config["file"]), time.monotonic()
    saw: dict[str, object] = {}
    file.write_text("it runs\n")
    while not (notice := ray.train.get_preemption_info()):
        if time.monotonic() - began > LONGEST_S:
            raise TimeoutError("no notice")
        time.sleep(0.1)
    saw["train"] = notice.preempted_node_ids == [ray.get_runtime_context().get_node_id()]
    saw["left_s"] = notice.deadline_ms / 1000 - time.time()
    saw["later"] = sorted(set(ray.get([host.remote() for _ in range(8)])))
    whole = file.with_suffix(".part")
    whole.write_text(f"it runs\n{json.dumps(saw)}\n")
    os.replace(whole, file)


if __name__ == "__main__":
    file, resource = sys.argv[1:]
    ray.init()
    DataParallelTrainer(
        wait,
        train_loop_config={"file": file},
        scaling_config=ray.train.ScalingConfig(
            num_workers=1, resources_per_worker={"CPU": 0.5, resource: 1}
        ),
        run_config=ray.train.RunConfig(storage_path=str(Path(file).parent / "train")),
    ).fit()
