"""A worker makes the missing shards of its task."""

from __future__ import annotations

import asyncio
import types

import numpy as np
import pytest

from facttune_ray import config
from facttune_ray.config import Config
from facttune_ray.errors import BudgetReached, RowError, UserError
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.runtime import cluster, worker
from facttune_ray.runtime.placement import Operator, place_of
from facttune_ray.sampling import engines
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """What a process of tasks keeps is not this process's."""
    monkeypatch.setattr(worker, "_process", None)


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(worker, "_process", None)
    yield
    if worker._process is not None:
        worker._process.close()


def batch(*shards: int) -> dict[str, np.ndarray]:
    none = np.array([""] * len(shards))
    return {"shard": np.array(shards), "stopped": none, "kind": none}


def operator(*works: Work) -> Operator:
    return Operator(works, place_of(works[0]))


def topics(tmp_path, *names: str) -> Config:
    """A table of topics, one a shard."""
    words = ["data.source=topics", "prompts.domain=bio", "data.topics=t.txt"]
    cfg = config.load([], [*words, f"run.out={tmp_path}", f"run.shards={len(names)}"])
    for shard, topic in enumerate(names):
        row = {"topic": topic, "split": "train"}
        tables.write_part(Folder.of(str(tmp_path)) / "topics", "topics", shard, [row], {})
    return cfg


def test_a_repeated_task_makes_only_missing_shards(tmp_path):
    root, cfg = Folder.of(str(tmp_path)), topics(tmp_path, "Ada", "Bo")
    tables.write_part(root / "prompts", "prompts", 0, [{"topic": "Ada", "prompt": "first"}], {})
    work = Work("prompts", "prompts", {"topics": "topics"}, cfg)
    made = worker.run_task(batch(0, 1), operator(work), "_STOP")
    assert list(made["stopped"]) == ["", ""]
    assert [r["prompt"] for r in tables.rows(root / "prompts", 0)] == ["first"]
    (row,) = tables.rows(root / "prompts", 1)
    assert row["topic"] == "Bo" and "Bo" in row["prompt"]


def test_a_shard_that_failed_before_is_passed_on_and_none_is_begun_after_the_end(tmp_path):
    root, cfg = Folder.of(str(tmp_path)), topics(tmp_path, "Ada", "Bo")
    one = operator(Work("prompts", "prompts", {"topics": "topics"}, cfg))
    failed = batch(0, 1) | {"stopped": np.array(["no", ""]), "kind": np.array(["UserError", ""])}
    made = worker.run_task(failed, one, "_STOP")
    assert list(made["stopped"]) == ["no", ""] and list(made["kind"]) == ["UserError", ""]
    assert tables.present(root / "prompts", 2) == {1}
    (root / "_STOP").write_bytes(b"")
    assert list(worker.run_task(batch(0), one, "_STOP")["kind"]) == ["Stopped"]
    assert tables.present(root / "prompts", 2) == {1}


def test_contexts_of_a_process_share_a_model_until_the_next_pipeline(tmp_path, monkeypatch):
    made = []

    def sampler(cfg, path: str, client) -> object:
        made.append(path)
        return object()

    monkeypatch.setattr(engines, "make", sampler)
    cfg = config.load([], [f"run.out={tmp_path}"])
    process = worker._Process()

    def used(stage: str, path: str, stop: str) -> object:
        one = operator(Work(stage, stage, {}, cfg, model_path=path))
        return process.worker(one, stop).contexts[0].sampler

    first = used("responses", "a", "_STOP-1")
    assert (
        used("answers", "a", "_STOP-1") is first and used("entities", "b", "_STOP-1") is not first
    )
    assert used("responses", "a", "_STOP-2") is not first
    assert made == ["a", "b", "a"]


def asking(tmp_path, monkeypatch, url: str, run) -> Operator:
    """The kept worker of a stage that asks `url`, without a cluster; `run`: its row function."""
    words = [f"run.out={tmp_path}", "run.shards=2", f"llm.base_url={url}"]
    work = Work("facts", "facts", {}, config.load(["quickstart"], words), base_url=url)
    gate = Gate(local_renew(Limits()), 32, "w")
    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.01)
    client = Client(work.cfg.llm, ledger, [Endpoint(url, "NO_KEY", 60, gate)])
    monkeypatch.setattr(worker, "stage", lambda name: types.SimpleNamespace(run=run))
    process = worker._Process()
    process.worker(operator(work), "_STOP").contexts[0].client = client
    monkeypatch.setattr(worker, "_process", process)
    return operator(work)


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
        one = asking(tmp_path, monkeypatch, url, run)
        try:
            line = worker.run_task(batch(0, 1), one, "_STOP")["stopped"][1]
        except Exception as e:
            line = str(e)
    assert "x" in line and not worker._process.workers
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
        one = asking(tmp_path, monkeypatch, url, run)
        client = worker._process.worker(one, "_STOP").contexts[0].client
        monkeypatch.setattr(Ledger, "write", full)
        made = worker.run_task(batch(0), one, "_STOP")
    assert client.endpoints[0].openai.is_closed()
    assert made["kind"][0] == "UserError" and len(tried) > 1
    assert "\n" not in made["stopped"][0] and not worker._process.workers


def test_a_shard_that_comes_while_the_worker_pauses_gets_its_answers(tmp_path, monkeypatch):
    """An actor gets a shard at any time."""

    async def run(context, shard: int) -> list[dict]:
        await context.client.complete([{"role": "user", "content": f"hello {shard}"}])
        return []

    with running(AnnotatorOptions()) as url:
        one = asking(tmp_path, monkeypatch, url, run)
        made = worker._process.worker(one, "_STOP")

        async def one_after_another() -> None:
            for shard in range(0, 40, 2):
                first = asyncio.create_task(made.make(shard))
                await asyncio.sleep(0.003 * (shard % 7))
                await asyncio.gather(first, made.make(shard + 1))

        worker._process.loop.run_until_complete(asyncio.wait_for(one_after_another(), 60))
    assert kept(tmp_path) == 40


def test_an_error_of_a_worker_keeps_its_class():
    spent = worker.returned_error({"kind": "BudgetReached", "stopped": "x"})
    assert isinstance(spent, BudgetReached)
    other = worker.returned_error({"kind": "OfAnotherModule", "stopped": "one line"})
    assert type(other) is UserError and str(other) == "one line"


def test_the_driver_tells_the_addresses_of_ray_and_of_grafana(monkeypatch, capsys):
    monkeypatch.delenv("RAY_GRAFANA_IFRAME_HOST", raising=False)
    monkeypatch.delenv("RAY_GRAFANA_HOST", raising=False)
    cluster._tell_pages(None)
    cluster._tell_pages("10.0.0.1:8265")
    monkeypatch.setenv("RAY_GRAFANA_HOST", "http://graf:3000/")
    cluster._tell_pages("10.0.0.1:8265")
    first = "Ray's dashboard: http://10.0.0.1:8265"
    board = "  Grafana: http://graf:3000/d/facttune-ray"
    assert capsys.readouterr().err.splitlines() == [first, first + board]


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
