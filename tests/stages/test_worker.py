"""A worker makes the shards of its task, and not those that are there already."""

from __future__ import annotations

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
