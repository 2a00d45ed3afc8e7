"""The whole pipeline by `ray job submit`, from outside, on clusters whose hosts may die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bench import hosts

from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.storage.schema import TABLES

SCORERS = "MapBatches(facts"  # in the title of an actor that asks for facts, verdicts, questions
PRESETS = ("quickstart", "tests/small.yaml", "tests/tiny.yaml")


@pytest.fixture(scope="module")
def calm(shared_cluster, tmp_path_factory):
    """(folder of an undisturbed run, host -> tasks of its stages, the head's address)"""
    out = tmp_path_factory.mktemp("calm") / "run"
    shared_cluster.finish(submit(shared_cluster, out))
    return out, shared_cluster.tasks("MapBatches"), shared_cluster.head.address


def submit(cluster: hosts.Cluster, out: Path, *words: str) -> subprocess.Popen[str]:
    return cluster.submit("jobs/pipeline.py", *PRESETS, f"run.out={out}", *words)


def tables_of(out: Path) -> dict[str, list[dict]]:
    """Every table of a run, its rows in their order."""
    found = {}
    for manifest in out.rglob("_MANIFEST.json"):
        if manifest.parent.name in TABLES:
            parts = sorted(manifest.parent.glob("part-*.parquet"))
            rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
            found[str(manifest.parent.relative_to(out))] = rows
    return found


def requests(journal: Path) -> list[str]:
    """Those that the annotator has answered."""
    return [json.loads(line)["request_sha256"] for line in journal.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_hosts_share_the_work_and_the_head_is_left_alone(calm):
    out, tasks, head = calm
    assert head not in tasks and len(tasks) == 4
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["models"]) == {"base", "facttune_mc"}
    asked = requests(out / "annotator" / "journal.jsonl")
    assert len(asked) == len(set(asked)) > 100


# -- kills ---------------------------------------------------------------------------------


def inside(table: Path, job: subprocess.Popen[str]) -> None:
    """Return once the table has a part, or the training has begun."""
    begun = "_RECIPE.json" if table.name == "train" else "part-*"
    hosts.until(f"{begun} of {table}", lambda: any(table.glob(begun)), job)


def host_of(cluster: hosts.Cluster, process: str, job: subprocess.Popen[str]) -> hosts.Host:
    """A worker host that runs such a process."""
    found: list[hosts.Host] = []

    def there() -> bool:
        found[:] = [h for h in cluster.workers if h.running(process)]
        return bool(found)

    hosts.until(process, there, job)
    return found[0]


def lose(cluster: hosts.Cluster, host: hosts.Host) -> None:
    """The host dies, and another one is started."""
    host.remove()
    cluster.workers.remove(host)
    cluster.start_worker(1)


def kill(host: hosts.Host, process: str, job: subprocess.Popen[str]) -> None:
    hosts.until(process, lambda: host.running(process), job)
    for pid in host.running(process):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_hosts_an_actor_the_driver_and_the_head_die(calm, cluster, tmp_path):
    """Tables equal those of the undisturbed run, and nothing is answered twice."""
    journal, out, trained = tmp_path / "journal.jsonl", tmp_path / "run", "facttune_mc/round_1"
    paid = AnnotatorOptions(
        host=cluster.gateway, latency_min_ms=100, latency_max_ms=300, journal=str(journal)
    )
    with running(paid) as url:
        job = submit(cluster, out, f"llm.base_url={url}")

        def unfinished(table: str) -> None:
            assert not (out / table / "_MANIFEST.json").exists(), f"{table} was finished before"

        def lose_one_inside(table: str, process: str = "MapBatches(run_task)") -> None:
            inside(out / table, job)
            lose(cluster, host_of(cluster, process, job))
            unfinished(table)

        lose_one_inside("base/tune/responses")
        inside(out / "base/tune/facts", job)
        leaving = host_of(cluster, SCORERS, job)
        cluster.drain(leaving, 2)
        kill(cluster.head, "ray::LimiterActor", job)
        lose(cluster, leaving)
        lose_one_inside("base/tune/verdicts", SCORERS)
        inside(out / "base/tune/questions", job)
        kill(cluster.head, "jobs/pipeline.py", job)
        unfinished("base/tune/questions")
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert job.wait(timeout=60) != 0
        job.kill()  # a client that waits for a dead driver's log, for minutes on a busy machine
        job.wait()
        job = submit(cluster, out, f"llm.base_url={url}")
        lose_one_inside("base/tune/answers")
        inside(out / trained / "reference", job)
        unfinished(f"{trained}/reference")
        cluster.down()
        job.kill()  # of a head that fell silent it would wait for ever
        job.wait()
        cluster.up([1, 1, 1])
        job = submit(cluster, out, f"llm.base_url={url}")
        lose_one_inside(f"{trained}/train", "ray::RayTrainWorker")
        cluster.finish(job)
        assert tables_of(out) == tables_of(calm[0])
        asked = requests(journal)
        assert len(asked) == len(set(asked)) > 100
        notice_while_training(cluster, out / "base/pretrain/model", tmp_path)


def notice_while_training(cluster: hosts.Cluster, model: Path, folder: Path) -> None:
    """A host that is told to go has a checkpoint written, and another goes on from it."""
    rows = [
        {"prompt": f"Who is {n}?", "responses": [f"{n} sings.", f"{n} paints."], "rewards": [1, 0]}
        for n in "Ada Bea Cleo Dora Edna Fay Gwen Hera".split()
    ]
    (folder / "prefs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [f"data.groups={folder / 'prefs.jsonl'}", f"model.path={model}", "train.lr=1e-6"]
    words += [f"run.out={folder / 'given'}", "train.groups_per_step=1", "train.epochs=400"]
    words += ["train.save_every=0"]  # no checkpoint but the notice's
    log = folder / "given/given/train/train.jsonl"
    job = cluster.submit("-m", "facttune_ray", "train", *words)
    hosts.until("20 steps", lambda: log.exists() and len(log.read_text().splitlines()) >= 20, job)
    before = log.read_text().splitlines()[:20]
    host = host_of(cluster, "ray::RayTrainWorker", job)
    cluster.drain(host, 12)
    known = log.parent / "checkpoints/checkpoint_manager_snapshot.json"  # those that are whole
    hosts.until("a checkpoint", lambda: known.exists() and "checkpoint_2" in known.read_text(), job)
    lose(cluster, host)
    cluster.finish(job)
    lines = log.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 3201))
    assert lines[:20] == before  # these steps were not taken again
