"""A worker makes the shards of its task, and not those that are there already."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from facttune_ray import config, tables
from facttune_ray.stages.context import Work
from facttune_ray.stages.worker import ShardWorker
from facttune_ray.tables import Folder


def test_a_task_that_is_tried_again_makes_what_is_missing(tmp_path):
    root, words = Folder.of(str(tmp_path)), ["data.source=topics", "prompts.domain=bio"]
    cfg = config.load([], [*words, "data.topics=t.txt", f"run.out={tmp_path}", "run.shards=2"])
    for shard, topic in enumerate(("Ada", "Bo")):
        row = {"topic": topic, "split": "train"}
        tables.write_part(root / "topics", "topics", shard, [row], {})
    tables.write_part(root / "prompts", "prompts", 0, [{"topic": "Ada", "prompt": "first"}], {})
    made = ShardWorker(Work("prompts", "prompts", {"topics": "topics"}, cfg))(
        {"shards": np.array(["0,1"])}
    )
    assert made["stopped"][0] == ""
    assert [r["prompt"] for r in tables.rows(root / "prompts", 0)] == ["first"]
    (row,) = tables.rows(root / "prompts", 1)
    assert row["topic"] == "Bo" and "Bo" in row["prompt"]


def test_threads_that_come_together_start_one_ray():
    """In a process where it has not been started yet, as that of a run whose stages stream."""
    code = """
from concurrent.futures import ThreadPoolExecutor
from facttune_ray.stages import worker
with ThreadPoolExecutor(3) as threads:
    for started in [threads.submit(worker.start_ray) for _ in range(3)]:
        started.result()
    import ray
    print("hosts:", len(ray.nodes()))
    ray.shutdown()
"""
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "hosts: 1" in done.stdout
