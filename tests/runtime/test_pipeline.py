"""The tables of a scope, made by one pipeline: the same as tasks and as pools of actors."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from facttune_ray import config
from facttune_ray.commands import run as run_command
from facttune_ray.errors import UserError
from facttune_ray.llm.ledger import Ledger
from facttune_ray.loop.run import Run
from facttune_ray.quickstart.annotator import AnnotatorOptions, embedded, running
from facttune_ray.runtime import pipeline, placement
from facttune_ray.runtime.maker import Maker
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

SHARDS = 4


def judged(out, url: str, *words: str, presets: Sequence[str] = ()) -> config.Config:
    """A run whose facts and verdicts are asked of `url`."""
    words += ("tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0")
    words += (f"llm.base_url={url}", f"run.out={out}")
    return config.load(["quickstart", *presets], list(words))


def stats(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)


write_manifest = tables.write_manifest


def respond(run: Run, name: str, each: int, text: str = "Mara Veldt was born in {}.") -> None:
    """So many responses of one sentence in each shard."""
    row = {"topic": "Mara Veldt", "split": "train", "prompt": "Who is she?", "prompt_id": "p"}
    for shard in range(run.cfg.run.shards):
        years = range(1000 + shard * each, 1000 + (shard + 1) * each)
        texts = [text.format(year) for year in years]
        rows = [row | {"text": t, "response_id": t, "model": "base", "sample": 0} for t in texts]
        tables.write_part(run.root / name, "responses", shard, rows, {})
    shards = run.cfg.run.shards
    write_manifest(run.root / name, "responses", {}, shards, 0.0)
    run.recipes[name] = {}


@contextlib.contextmanager
def asked(out, options: AnnotatorOptions, *words: str) -> Iterator[tuple[Run, str]]:
    """(a run whose facts and questions are asked for, the endpoint's address)"""
    with running(options) as url, Maker(judged(out, url, *words), embedded) as maker:
        run = Run(maker)
        respond(run, "a/responses", 2)
        run.table("a", "questions", [run.table("a", "facts", ["a/responses"])])
        yield run, url


def test_tables_are_made_when_the_loop_needs_one_of_them(tmp_path, ray_cluster):
    with asked(tmp_path, AnnotatorOptions(), "run.shards=2") as (run, url):
        assert not stats(url)["answered"] and not (run.root / "a/facts").exists()
        assert run.rows("a/questions") > 0
    for name in ("a/facts", "a/questions"):
        manifest = tables.manifest(run.root / name)
        assert manifest["shards"] == 2 and manifest["calls"] == 4
    assert not [name for name in run.root.names() if name.startswith("_STOP")]


def test_a_table_with_too_many_failed_rows_goes_with_what_was_made_from_it(tmp_path, ray_cluster):
    broken = AnnotatorOptions(malformed_share=1.0)
    words = ["run.shards=2", "llm.reasks=0", "llm.max_attempts=2"]
    with asked(tmp_path, broken, *words) as (run, _):
        with pytest.raises(UserError, match=r"a/facts: 4 of 4 rows failed.* the first: "):
            run.finish()
    assert not (run.root / "a/facts").exists() and not (run.root / "a/questions").exists()
    assert tables.present(run.root / "a/responses", 2) == {0, 1}
    assert not [name for name in run.root.names() if name.startswith("_STOP")]


def test_a_table_whose_manifest_cannot_be_written_keeps_its_parts(
    tmp_path, ray_cluster, monkeypatch
):
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "write_manifest", full)
    (tmp_path / "_STOP-of-a-killed-driver").touch()
    with asked(tmp_path, AnnotatorOptions(), "run.shards=2") as (run, _):
        with pytest.raises(UserError, match="cannot write .*a/facts: no space left"):
            run.finish()
    assert tables.present(run.root / "a/facts", 2) == {0, 1}
    assert not (tmp_path / "_STOP-of-a-killed-driver").exists()


def test_a_killed_pipeline_goes_on_from_its_parts(tmp_path, ray_cluster):
    def scored() -> tuple[dict, int]:
        with asked(tmp_path, AnnotatorOptions(), "run.shards=3") as (run, url):
            run.finish()
            return {n: list(tables.rows(run.root / n)) for n in names}, stats(url)["answered"]

    names = ("a/facts", "a/questions")
    made, _ = scored()
    removed = [("a/facts", 1), ("a/questions", 1), ("a/questions", 2)]
    for name, shard in removed:
        (tmp_path / name / tables.part(shard)).unlink()
        (tmp_path / name / tables.MANIFEST).unlink(missing_ok=True)
    before = {p: p.stat().st_mtime_ns for n in names for p in tmp_path.glob(f"{n}/part-*")}
    assert scored() == (made, 0)  # all answers are in the ledger
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_when_a_table_fails_paid_requests_of_another_are_kept_and_no_more_are_sent(
    tmp_path, ray_cluster, monkeypatch
):
    slow = AnnotatorOptions(latency_min_ms=400, latency_max_ms=500)
    look = pipeline._Pipeline._look
    with running(slow) as url:

        def fail(self):
            if stats(url)["answered"] and self._error is None:
                self._fail(UserError("no such model"))
            return look(self)

        monkeypatch.setattr(pipeline._Pipeline, "_look", fail)
        with Maker(judged(tmp_path, url, "run.shards=1", "llm.concurrency=8"), embedded) as maker:
            run = Run(maker)
            respond(run, "responses", 300)
            run.table("", "facts", ["responses"])
            with pytest.raises(UserError, match="no such model"):
                run.finish()
        segments = Ledger(run.root / "ledger").segments
        assert sum(len(s.prefixes) for s in segments.values()) == stats(url)["answered"] < 300


@pytest.mark.slow
def test_pools_make_the_tables_that_tasks_make(tmp_path, tiny_presets, ray_cluster, monkeypatch):
    """On a cluster the stages that ask an endpoint are actors, and shards go on as they come."""

    def run(out: str, url: str, slow_url: str) -> Folder:
        words = ["sampling.engine=api", "sampling.llm.model=m", f"run.shards={SHARDS}"]
        words += [f"sampling.llm.base_url={slow_url}", "sampling.llm.concurrency=2"]
        words += ["rewards.columns=[factscore, max_conf]", "answers.samples=2"]
        cfg = judged(tmp_path / out, url, *words, presets=tiny_presets)
        run_command.run(cfg)
        return Folder.of(cfg.run.out)

    slow = AnnotatorOptions(latency_min_ms=200, latency_max_ms=300)
    with running(slow) as slow_url, running(AnnotatorOptions()) as url:
        tasks = run("tasks", url, slow_url)
        import ray

        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        monkeypatch.setattr(placement, "POOL_CPUS", 2)
        pools = run("pools", url, slow_url)

    def written(file: str) -> float:
        return (tmp_path / "pools/base/tune" / file).stat().st_mtime

    first = min(written(f"facts/{tables.part(shard)}") for shard in range(SHARDS))
    assert first < max(written(f"responses/{tables.part(shard)}") for shard in range(SHARDS))
    for name in ("responses", "facts", "verdicts", "questions", "answers", "rewards"):
        folder = f"base/tune/{name}"
        assert [*tables.rows(tasks / folder)] == [*tables.rows(pools / folder)], name


@pytest.mark.slow
def test_a_gpu_sampler_is_loaded_once_an_actor_and_scope(tmp_path, tiny_presets):
    """With a logical GPU, while the endpoint judges what was sampled before. One GPU is enough for
    a pipeline that samples twice."""
    here = Path(__file__).parent
    log = tmp_path / "log"
    words = ["sampling.gpus=1", "tune.facttune_mc.rounds=0", "run.shards=6"]
    words += ["rewards.columns=[factscore,max_conf]", f"run.out={tmp_path / 'run'}"]
    command = [sys.executable, str(here / "counted.py"), "1", str(log), *tiny_presets, *words]
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    alone["PYTHONPATH"] = str(here)
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [line.split() for line in log.read_text().splitlines()]
    loads = [(actor, table) for _, event, actor, table in seen if event == "load"]
    assert len(loads) == len(set(loads)) == len({actor for actor, _ in loads})
    by_table = {table for _, table in loads}
    assert by_table == {"base/tune/responses", "base/tune/answers", "base/test/responses"}
    assert len(loads) == 3

    times = [float(at) for at, event, _, table in seen if (event, table) == ("sample", SAMPLED)]
    facts = [p.stat().st_mtime for p in (tmp_path / "run/base/tune/facts").glob("part-*")]
    assert min(facts) < max(times)


SAMPLED = "base/tune/responses"
