"""A run on a cluster that starts without hosts for work, and whose autoscaler may start three.

    unshare -p -f --mount-proc -n python autoscaled.py FOLDER FOLDER_FOR_RAY
    {"took_part": 3, "most": 3, "left": 0, "rows": 480}

Ray's fake provider starts each host as a raylet of this machine. It needs a process namespace of
its own, because its end stops every Ray process.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

HOSTS, SHARDS, RESPONSES = 3, 12, 40
CONFIG = {
    "cluster_name": "fake",
    "max_workers": HOSTS,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,  # the hosts have one address
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 2**28},
            "node_config": {},
            "min_workers": 0,
            "max_workers": HOSTS,
        },
    },
    "head_node_type": "ray.head.default",
    **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{key: {} for key in ("docker", "auth", "file_mounts")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
    "upscaling_speed": 1.0,
}


def start(folder: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    file = folder / "autoscaler.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    command = ["ray", "start", "--head", "--num-cpus=0", f"--autoscaling-config={file}"]
    command += [f"--temp-dir={sys.argv[2]}", "--object-store-memory=300000000"]
    command[0] = str(Path(sys.executable).parent / "ray")
    subprocess.run(command, check=True, env=os.environ | {"RAY_FAKE_CLUSTER": "1"})
    os.environ["RAY_ADDRESS"] = "127.0.0.1:6379"  # the only port that the provider knows


def used_hosts() -> set[str]:
    """Hosts whose CPUs are in use."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    return {n["NodeID"] for n in nodes if free.get(n["NodeID"], {}).get("CPU", 0) < 1}


def alive() -> int:
    """Hosts for work."""
    import ray

    return sum(n["Alive"] and bool(n["Resources"].get("CPU")) for n in ray.nodes())


def main(folder: Path) -> None:
    start(folder)
    from bench.ours import write_responses

    from facttune_ray import config
    from facttune_ray.loop.run import Run
    from facttune_ray.quickstart.annotator import AnnotatorOptions, embedded, running
    from facttune_ray.runtime import cluster
    from facttune_ray.runtime.maker import Maker

    cluster.start_ray()
    took_part: set[str] = set()
    most, ended = 0, threading.Event()

    def follow() -> None:
        nonlocal most
        while not ended.wait(0.5):
            took_part.update(used_hosts())
            most = max(most, alive())

    threading.Thread(target=follow, daemon=True).start()
    slow = AnnotatorOptions(latency_min_ms=700, latency_max_ms=900)
    words = [f"run.out={folder / 'run'}", f"run.shards={SHARDS}", "llm.concurrency=2"]
    with running(slow) as url:
        cfg = config.load(["quickstart"], [*words, f"llm.base_url={url}"])
        with Maker(cfg, embedded) as maker:
            run = Run(maker)
            write_responses(folder / "run", SHARDS * RESPONSES, SHARDS)
            run.recipes["base/tune/responses"] = {}
            rows = run.rows(run.table("base/tune", "facts", ["base/tune/responses"]))
    ended.set()
    until = time.monotonic() + 90
    while alive() and time.monotonic() < until:
        time.sleep(1.0)
    found = {"took_part": len(took_part), "most": most, "left": alive(), "rows": rows}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
