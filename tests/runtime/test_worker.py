"""A worker makes the missing shards of its task."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from facttune_ray import config
from facttune_ray.errors import BudgetReached, RowError, Stopped, UserError
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.runtime import cluster, worker
from facttune_ray.runtime.worker import ShardWorker
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder


def test_a_repeated_task_makes_only_missing_shards(tmp_path):
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


def asking(tmp_path, monkeypatch, url: str, run) -> tuple[Work, ShardWorker]:
    """The kept worker of a stage that asks `url`, without a cluster; `run`: its row function."""
    words = [f"run.out={tmp_path}", "run.shards=2", f"llm.base_url={url}"]
    work = Work("facts", "facts", {}, config.load(["quickstart"], words), base_url=url)
    made, gate = ShardWorker(work), Gate(local_renew(Limits()), 32, "w")
    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.01)
    endpoint = Endpoint(url, "NO_KEY", 60, gate)
    made.context.client = Client(work.cfg.llm, ledger, [endpoint])
    monkeypatch.setattr(worker, "stage", lambda name: types.SimpleNamespace(run=run))
    monkeypatch.setitem(worker._kept, "facts", made)
    return work, made


def kept(tmp_path) -> int:
    """Completions in the ledger."""
    segments = Ledger(Folder.of(str(tmp_path / "ledger"))).segments
    return sum(len(s.prefixes) for s in segments.values())


@pytest.mark.parametrize("error", [UserError("x"), OSError("x"), KeyError("x"), RowError("x")])
def test_requests_in_flight_are_kept_after_any_error(tmp_path, monkeypatch, error):
    ended = []

    async def run(context, shard: int) -> list[dict]:
        if shard == 1:
            while context.client.endpoints[0].gate.in_flight < 32:
                await asyncio.sleep(0.01)
            raise error
        messages = [[{"role": "user", "content": f"hello {i}"}] for i in range(40)]
        asked = (context.client.complete(m) for m in messages)
        ended.extend(await asyncio.gather(*asked, return_exceptions=True))
        return []

    with running(AnnotatorOptions(latency_min_ms=600, latency_max_ms=700)) as url:
        work, _ = asking(tmp_path, monkeypatch, url, run)
        try:
            line = worker.run_shards({"shards": np.array(["0,1"])}, work)["stopped"][0]
        except Exception as e:
            line = str(e)
    assert "x" in line and not worker._kept
    assert kept(tmp_path) == 32  # all that were sent; the others wait for a permit
    assert sum(isinstance(e, UserError) for e in ended) == 8


@pytest.mark.parametrize("error", [UserError("cannot write: full"), OSError(28, "full")])
def test_a_ledger_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, error):
    """The worker tries to write once more when it closes, and that must be silent."""
    tried = []

    def full(self, rows: list[dict]) -> None:
        tried.append(len(rows))
        raise error

    async def run(context, shard: int) -> list[dict]:
        return [await context.client.complete([{"role": "user", "content": "hello"}])]

    with running(AnnotatorOptions()) as url:
        work, one = asking(tmp_path, monkeypatch, url, run)
        monkeypatch.setattr(Ledger, "write", full)
        made = worker.run_shards({"shards": np.array(["0"])}, work)
    assert one.context.client.endpoints[0].openai.is_closed()
    assert made["kind"][0] == "UserError" and len(tried) > 1
    assert "\n" not in made["stopped"][0] and not worker._kept


def test_an_error_of_a_worker_keeps_its_class():
    spent = worker.returned_error({"kind": "BudgetReached", "stopped": "x"})
    assert isinstance(spent, BudgetReached)
    other = worker.returned_error({"kind": "OfAnotherModule", "stopped": "one line"})
    assert type(other) is UserError and str(other) == "one line"


def test_the_driver_stops_between_shards_when_the_run_ends(tmp_path, ray_cluster):
    words = ["data.source=topics", "prompts.domain=bio", "data.topics=t", f"run.out={tmp_path}"]
    cfg, root = config.load([], [*words, "run.shards=128"]), Folder.of(str(tmp_path))
    for shard in range(128):
        row = {"topic": f"Ada {shard}", "split": "train"}
        tables.write_part(root / "topics", "topics", shard, [row], {})
    work, ended = Work("prompts", "prompts", {"topics": "topics"}, cfg), threading.Event()
    ended.set()
    with pytest.raises(Stopped):
        worker.run(work, set(range(128)), 1, ended=ended)
    assert 0 < len(tables.present(root / "prompts", 128)) < 128
    left = set(range(128)) - tables.present(root / "prompts", 128)
    worker.run(work, left, 1)
    assert tables.present(root / "prompts", 128) == set(range(128))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "192.0.2.2:6379", "h:99999", "auto"]
)
def test_a_cluster_that_is_gone_is_one_line(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster, "REACH_S", 0.5)
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def init(**options) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nStart one.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no cluster answers") as error:
        cluster.start_ray()
    assert "\n" not in str(error.value)


def test_concurrent_threads_start_one_ray():
    """In a process that has not started Ray, such as that of a run with tables side by side."""
    code = """
from concurrent.futures import ThreadPoolExecutor
from facttune_ray.runtime import cluster
with ThreadPoolExecutor(3) as threads:
    for started in [threads.submit(cluster.start_ray) for _ in range(3)]:
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
