"""The whole pipeline by `ray job submit`, from outside, on clusters whose hosts may die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray.benchmarks import hosts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.schema import TABLES

PRESETS = ("quickstart", "tests/small.yaml", "tests/cluster/cluster.yaml")


@pytest.fixture(scope="module")
def four_hosts(tmp_path_factory):
    """(folder of a run that four hosts made, host -> tasks of its stages, the head's address)"""
    if why := hosts.allowed():
        pytest.skip(f"no network namespaces: {why}")
    out = tmp_path_factory.mktemp("four") / "run"
    with hosts.cluster([1, 1, 1, 1]) as cluster:
        finish(submit(cluster, out))
        return out, cluster.tasks("MapBatches"), cluster.head.address


def submit(cluster: hosts.Cluster, out: Path, *words: str) -> subprocess.Popen[str]:
    return cluster.submit("jobs/pipeline.py", *PRESETS, f"run.out={out}", *words)


def finish(job: subprocess.Popen[str]) -> None:
    said, _ = job.communicate(timeout=600)
    assert job.returncode == 0, said[-6000:]


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
def test_four_hosts_share_the_work_and_the_head_is_left_alone(four_hosts):
    out, tasks, head = four_hosts
    assert head not in tasks and len(tasks) == 4
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["models"]) == {"base", "facttune_mc"}
    asked = requests(out / "annotator" / "journal.jsonl")
    assert len(asked) == len(set(asked)) > 100


# -- kills ---------------------------------------------------------------------------------


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def running_on(host: hosts.Host, name: str) -> list[int]:
    return [pid for pid in host.pids() if name in title(pid)]


def wait_inside(table: Path, job: subprocess.Popen[str]) -> None:
    """Return once the table has begun; it must not be finished."""
    deadline = time.monotonic() + 300
    while not (table / "_RECIPE.json").exists():
        assert job.poll() is None, job.communicate()[0][-6000:]
        assert time.monotonic() < deadline, f"{table} never began"
        time.sleep(0.005)


def victim(cluster: hosts.Cluster, name: str) -> hosts.Host:
    """A worker host that runs such a process."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for host in cluster.workers:
            if running_on(host, name):
                return host
        time.sleep(0.02)
    raise AssertionError(f"no host runs {name}")


def replace_host(cluster: hosts.Cluster, name: str) -> None:
    """A host that runs such a process dies, and another one is started."""
    host = victim(cluster, name)
    host.kill()
    cluster.workers.remove(host)
    host.gone()
    cluster.start_worker(1)


def drain(cluster: hosts.Cluster, host: hosts.Host, seconds: float) -> None:
    """The notice of a spot host: it will be taken away in so many seconds."""
    cluster.drain(host, seconds)


def end(host: hosts.Host, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    (pid,) = running_on(host, name)
    os.kill(pid, number)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_hosts_an_actor_the_driver_and_the_head_die(four_hosts, tmp_path):
    """Equal tables, and nothing answered twice."""
    journal, out, trained = tmp_path / "journal.jsonl", tmp_path / "run", "facttune_mc/round_1"
    with hosts.cluster([1, 1]) as cluster:
        paid = AnnotatorOptions(
            host=cluster.gateway, latency_min_ms=100, latency_max_ms=300, journal=str(journal)
        )
        with running(paid) as url:
            words = (f"llm.base_url={url}", "train.save_every=1")
            job = submit(cluster, out, *words)
            for table, process in (
                ("base/tune/responses", "ray::MapBatches"),
                ("base/tune/verdicts", "ray::MapBatches"),
                ("base/tune/answers", "ray::MapBatches"),
                (f"{trained}/train", "ray::RayTrainWorker"),
            ):
                wait_inside(out / table, job)
                replace_host(cluster, process)
                assert not (out / table / "_MANIFEST.json").exists(), f"{table} was finished"
            finish(job)
    assert tables_of(out) == tables_of(four_hosts[0])
    asked = requests(journal)
    assert len(asked) == len(set(asked)) > 100
