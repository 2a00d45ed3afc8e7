"""Tables made side by side, part by part: the same as one after the other."""

from __future__ import annotations

import json
import threading
import time
import urllib.request

import pytest

from facttune_ray import config
from facttune_ray.commands import run as run_command
from facttune_ray.errors import Stopped, UserError
from facttune_ray.llm.ledger import Ledger
from facttune_ray.loop.nodes import StageTable
from facttune_ray.loop.run import Run
from facttune_ray.quickstart.annotator import AnnotatorOptions, embedded, running
from facttune_ray.runtime import cluster
from facttune_ray.runtime.maker import Maker
from facttune_ray.runtime.streams import Streams
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

SHARDS = 4


def put(root: Folder, name: str, *shards: int) -> None:
    for shard in shards:
        (root / name / tables.part(shard)).write_bytes(b"rows")


def test_a_part_is_ready_when_the_growing_inputs_have_it(tmp_path):
    root, streams, go = Folder.of(str(tmp_path)), Streams(), threading.Event()
    streams.start("responses", go.wait)
    put(root, "responses", 0, 2)
    assert streams.ready(root, ["responses", "prompts"], {0, 1, 2, 3}) == {0, 2}
    assert streams.ready(root, ["prompts"], {1, 3}) == {1, 3}  # finished before
    go.set()
    streams.finish()


def test_the_first_error_is_raised_and_what_was_made_of_a_removed_table_goes(tmp_path):
    root, streams = Folder.of(str(tmp_path)), Streams()
    begun = threading.Event()

    def facts() -> None:
        put(root, "facts", 0)
        begun.set()
        streams.ready(root, ["responses"], {1})

    def responses() -> None:
        put(root, "responses", 0)
        begun.wait()
        streams.withdraw(root, "responses")
        raise UserError("responses: 3 of 4 rows failed")

    streams.start("responses", responses)
    streams.start("facts", facts)
    with pytest.raises(UserError, match="3 of 4 rows failed"):
        streams.finish()
    assert isinstance(streams.errors["facts"], Stopped)
    assert not (root / "facts").exists()


def test_an_error_is_told_when_it_happens_and_the_others_end(tmp_path, capsys):
    root, ended, said = Folder.of(str(tmp_path)), threading.Event(), []
    streams = Streams(ended.set)

    def responses() -> None:
        ended.wait(30)
        said.append(capsys.readouterr().err)
        put(root, "prompts", 0)
        streams.ready(root, ["prompts"], {0})  # there, and yet nothing more is begun

    def facts() -> None:
        raise UserError("no such model")

    streams.start("responses", responses)
    streams.start("facts", facts)
    with pytest.raises(UserError, match="no such model"):
        streams.finish()
    assert said == ["facts: no such model; the tables beside it end, too\n"]
    assert isinstance(streams.errors["responses"], Stopped)


@pytest.fixture
def streaming(tmp_path, monkeypatch) -> Maker:
    """A maker that makes tables side by side, on a cluster that is not there."""
    monkeypatch.setattr(cluster, "start_ray", lambda: None)
    words = ["data.source=world", f"run.out={tmp_path}", "run.shards=1", "sampling.gpus=1"]
    return Maker(config.load([], words), embedded)


def test_the_main_thread_starts_ray_before_a_thread_makes_a_table(streaming, monkeypatch):
    """Ray's processes end with the thread that starts them."""
    steps = []
    monkeypatch.setattr(cluster, "start_ray", lambda: steps.append(threading.current_thread()))

    def make(node, recipe) -> None:
        steps.append("table")
        tables.write_manifest(streaming.root / "facts", "facts", {}, 0, 0.0)

    monkeypatch.setattr(streaming, "_make", make)
    with streaming.side_by_side():
        streaming.make(StageTable("", "facts", {}, streaming.cfg), {})
    assert steps == [threading.main_thread(), "table"]


def test_parts_of_another_recipe_are_gone_before_a_table_is_read(streaming, monkeypatch):
    root, go = streaming.root, threading.Event()
    tables.begin(root / "responses", {"temperature": 1.0})
    put(root, "responses", 0)  # of a run that was killed

    def make(node, recipe) -> None:
        go.wait()
        tables.write_manifest(root / "responses", "responses", {}, 0, 0.0)

    monkeypatch.setattr(streaming, "_make", make)
    with streaming.side_by_side():
        streaming.make(StageTable("", "responses", {}, streaming.cfg), {"temperature": 0.5})
        there = tables.present(root / "responses", 1)
        go.set()
    assert there == set()


def two_endpoints(out, url: str, *words: str) -> config.Config:
    """A run whose tables stream: what is judged at `url` is sampled elsewhere."""
    words += ("sampling.engine=api", "sampling.llm.model=m", "sampling.llm.base_url=http://a/v1")
    words += ("tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0")
    return config.load(["quickstart"], [*words, f"llm.base_url={url}", f"run.out={out}"])


def stats(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)


def respond(run: Run, name: str, each: int) -> None:
    """So many responses of one sentence in each shard."""
    row = {"topic": "Mara Veldt", "split": "train", "prompt": "Who is she?", "prompt_id": "p"}
    for shard in range(run.cfg.run.shards):
        years = range(1000 + shard * each, 1000 + (shard + 1) * each)
        texts = [f"Mara Veldt was born in {year}." for year in years]
        rows = [row | {"text": t, "response_id": t, "model": "base", "sample": 0} for t in texts]
        tables.write_part(run.root / name, "responses", shard, rows, {})
    shards = run.cfg.run.shards
    tables.write_manifest(run.root / name, "responses", {}, shards, 0.0)
    run.recipes[name] = {}


def test_when_a_table_fails_paid_requests_of_another_are_kept_and_no_more_are_sent(
    tmp_path, ray_cluster, monkeypatch
):
    with running(AnnotatorOptions(latency_min_ms=400, latency_max_ms=500)) as url:
        words = ("run.shards=1", "llm.concurrency=8")
        maker = Maker(two_endpoints(tmp_path, url, *words), embedded)
        run, make = Run(maker), maker._make
        respond(run, "responses", 300)

        def make_or_fail(node, recipe) -> None:
            if node.step == "facts":
                return make(node, recipe)
            while not stats(url)["answered"]:
                time.sleep(0.05)
            raise UserError("no such model")

        monkeypatch.setattr(maker, "_make", make_or_fail)
        with pytest.raises(UserError, match="no such model"), run.side_by_side():
            run.table("", "facts", ["responses"])
            run.table("", "verdicts", ["facts"])
        segments = Ledger(run.root / "ledger").segments
        assert sum(len(s.prefixes) for s in segments.values()) == stats(url)["answered"] < 300


@pytest.mark.slow
def test_two_tables_that_are_asked_for_are_made_at_once_by_a_worker_a_cpu(tmp_path, ray_cluster):
    """The first has a worker on every CPU, each with a request that takes 20 s."""
    import ray

    shards = f"run.shards={ray.cluster_resources()['CPU']:.0f}"
    slow = AnnotatorOptions(latency_min_ms=20_000, latency_max_ms=20_000)
    with running(slow) as slow_url, running(AnnotatorOptions()) as url:
        run = Run(Maker(two_endpoints(tmp_path, slow_url, shards), embedded))
        respond(run, "a/responses", 1)
        respond(run, "b/responses", 1)
        with run.side_by_side():
            run.table("a", "facts", ["a/responses"])
            while stats(slow_url)["received"] < run.cfg.run.shards:
                time.sleep(0.1)
            run.table("b", "facts", ["b/responses"], cfg=two_endpoints(tmp_path, url, shards))

    def written(name: str) -> list[float]:
        parts = (tmp_path / name / tables.part(s) for s in range(run.cfg.run.shards))
        return [part.stat().st_mtime for part in parts]

    assert min(written("b/facts")) < min(written("a/facts"))


@pytest.mark.slow
def test_facts_are_asked_for_while_responses_are_sampled_elsewhere(
    tmp_path, small_preset, ray_cluster
):
    def run(out: str, sampled_at: str, url: str) -> Folder:
        words = [
            "sampling.engine=api",
            "sampling.llm.model=m",
            f"sampling.llm.base_url={sampled_at}",
        ]
        words += [f"llm.base_url={url}", f"run.out={tmp_path / out}", f"run.shards={SHARDS}"]
        words += ["tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0"]
        words += ["rewards.columns=[factscore, max_conf]", "answers.samples=2"]
        words += ["sampling.llm.concurrency=2"]
        cfg = config.load(["quickstart", small_preset], words)
        run_command.run(cfg)
        return Folder.of(cfg.run.out)

    slow = AnnotatorOptions(latency_min_ms=300, latency_max_ms=300)
    with running(slow) as sampled_at, running(AnnotatorOptions()) as url:
        apart = run("apart", sampled_at, url)
        after = run("after", url, url)  # one endpoint: nothing to gain

    def written(out: str, file: str) -> float:
        return (tmp_path / out / "base/tune" / file).stat().st_mtime

    def first(out: str) -> float:
        return min(written(out, f"facts/{tables.part(shard)}") for shard in range(SHARDS))

    responses = f"responses/{tables.MANIFEST}"
    assert first("apart") < written("apart", responses)  # with a worker a CPU each
    assert first("after") > written("after", responses)
    for name in ("responses", "facts", "verdicts", "questions", "answers", "rewards"):
        folder = f"base/tune/{name}"
        assert tables.read(apart / folder) == tables.read(after / folder), name
