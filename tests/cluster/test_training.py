"""Trainings whose workers are on several hosts. The name of each host leads to 127.0.0.1, and the
hosts share one /tmp."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest
from bench import hosts

from facttune_ray.storage import folders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ALONE = {"epochs": 2}
MANY = {
    f"{workers}-{zero}": {"workers": workers, "deepspeed": zero, **ALONE}
    for workers in (2, 4)
    for zero in ("zero0", "zero2", "zero3")
}
LONG = {"epochs": 40, "save_every": 20, "workers": 2, "deepspeed": "zero0"}  # 160 steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of all trainings, with the table and the model that they start from."""
    made = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))
    folder = tmp_path_factory.mktemp("hosts")
    made["make_reference"](folder / "reference")
    return folder


def start(cluster: hosts.Cluster, folder: Path, trainings: dict) -> subprocess.Popen[str]:
    return cluster.submit("tests/cluster/trainings.py", str(folder), json.dumps(trainings))


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "train.jsonl").read_text().splitlines()]


def test_several_hosts_have_the_losses_of_one(cluster, folder):
    cluster.finish(start(cluster, folder, {"one": ALONE, **MANY}))
    assert len(losses(folder / "one")) == 8
    for name in MANY:
        assert losses(folder / name) == pytest.approx(losses(folder / "one"), abs=1e-5), name
        assert not folders.scratch(str(folder / name)).exists()


def test_a_host_that_dies_is_replaced_and_the_curve_goes_on(cluster, folder):
    out = folder / "killed"
    job = start(cluster, folder, {"calm": LONG | {"workers": 1}, "killed": LONG})
    known = out / "checkpoints/checkpoint_manager_snapshot.json"  # of those that are whole
    hosts.until("60 steps", lambda: known.exists() and len(losses(out)) >= 60, job)
    before = losses(out)[:60]
    lost = next(h for h in cluster.workers if h.running("RayTrainWorker"))
    lost.remove()
    cluster.workers.remove(lost)
    cluster.finish(job)
    assert len(losses(out)) == 160 and losses(out)[:20] == before[:20]
    assert losses(out) == pytest.approx(losses(folder / "calm"), abs=1e-5)
    assert not folders.scratch(str(out)).exists()
