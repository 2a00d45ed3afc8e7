"""A training that loses a worker, its driver or half its workers ends like an undisturbed one."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from facttune_ray.config.train import LoraConfig
from facttune_ray.errors import UserError
from facttune_ray.runtime import training
from facttune_ray.storage import folders
from facttune_ray.storage.folders import Folder

LONG = {"epochs": 40, "save_every": 20}  # 160 steps
KILL_AT = 60  # or later, when the first checkpoint stands
AFTER = range(20, 160, 20)  # steps that a checkpoint holds


def train_workers() -> list[psutil.Process]:
    """Processes of Ray Train's workers in clusters that this test process started."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if "RayTrainWorker" in " ".join(_words(p))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for_step(log: Path, step: int, process: subprocess.Popen | None = None) -> list[str]:
    """Lines of the log, as soon as it has `step` lines and there is a checkpoint."""
    stands = log.with_name("checkpoints") / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= step and stands.exists():
            return lines
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[1][-2000:])
        time.sleep(0.005)
    raise AssertionError(f"{log} never had {step} lines")


def kill_a_worker(log: Path, seen: list[str]) -> threading.Thread:
    def kill() -> None:
        seen.extend(wait_for_step(log, KILL_AT))
        os.kill(train_workers()[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def calm(reference, run, tmp_path_factory, ray_cluster) -> list[float]:
    """Losses of the undisturbed run."""
    found = run(reference, tmp_path_factory.mktemp("calm") / "out", **LONG)
    assert len(found) == 160
    return [x["loss"] for x in found]


def kept(before: list[str], log: Path) -> int:
    """Check that steps were not trained again: their lines, with their seconds, are equal."""
    pairs = zip(before, log.read_text().splitlines(), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(before))


@pytest.mark.chaos
@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_worker_is_replaced(reference, run, calm, tmp_path, lora):
    out, seen, settings = tmp_path / "out", [], {"workers": 2, "deepspeed": "zero2", **LONG}
    if lora:
        settings |= {"workers": 1, "lora": LoraConfig(rank=4)}
        calm = [x["loss"] for x in run(reference, tmp_path / "calm", **settings)]
    killer = kill_a_worker(out / "train.jsonl", seen)
    found = run(reference, out, **settings)
    killer.join()
    assert [x["step"] for x in found] == list(range(1, 161))
    assert [x["loss"] for x in found] == pytest.approx(calm, abs=1e-5)
    assert kept(seen, out / "train.jsonl") in AFTER
    assert (out / "adapter").exists() is lora
    assert not folders.scratch(str(out)).exists()  # of rows, and of checkpoints on their way


@pytest.mark.chaos
def test_a_killed_worker_goes_on_from_an_object_store(reference, calm, object_store, tmp_path):
    """Checkpoints, logs and model are on s3://; the host of the next worker has none of them."""
    out = Folder.of(object_store.uri("resumed"))
    here, seen = folders.scratch(out.uri), []
    job = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["job_of"](
        reference, tmp_path / "none", **LONG
    )

    def kill() -> None:
        known = out / "checkpoints" / "checkpoint_manager_snapshot.json"  # those that are whole
        while not (known.exists() and b"checkpoint_2" in known.read_bytes()):
            time.sleep(0.2)
        (log,) = here.rglob("train.jsonl")
        seen.extend(log.read_text().splitlines())
        os.kill(train_workers()[-1].pid, signal.SIGKILL)
        shutil.rmtree(here)  # as on another host

    killer = threading.Thread(target=kill)
    killer.start()
    training.train(replace(job, out=out.uri))
    killer.join()
    lines = [json.loads(x) for x in (out / "train.jsonl").read_bytes().decode().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 161))
    assert [x["loss"] for x in lines] == pytest.approx(calm, abs=1e-5)
    first = [json.loads(x)["seconds"] for x in seen]
    same = [a == b["seconds"] for a, b in zip(first, lines, strict=False)]
    assert (same + [False]).index(False) in AFTER
    assert (out / "model" / "model.safetensors").exists() and not here.exists()


SMALLER = (
    f"LONG = {LONG}"
    + """
import runpy, sys
from pathlib import Path
import ray
from facttune_ray.runtime import training
conftest = runpy.run_path(sys.argv[1])
ray.init(num_cpus=1, include_dashboard=False)
elastic = {"workers": 2, "min_workers": 1, "deepspeed": "zero1"}
training.train(conftest["job_of"](
    tuple(sys.argv[2:4]), Path(sys.argv[4]), **LONG, **elastic
))
"""
)


@pytest.mark.chaos
def test_two_workers_are_followed_by_one(reference, run, calm, lines, tmp_path):
    """The second cluster has room for one worker only."""
    out, seen = tmp_path / "out", []
    killer = kill_a_worker(out / "train.jsonl", seen)
    with pytest.raises(Exception, match="(?s)worker|rank|died|killed"):
        run(reference, out, workers=2, deepspeed="zero3", max_failures=0, **LONG)
    killer.join()
    conftest = str(Path(__file__).with_name("conftest.py"))
    command = [sys.executable, "-c", SMALLER, conftest, *reference, str(out)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    found = lines(out)
    assert [x["loss"] for x in found] == pytest.approx(calm, abs=1e-5)
    assert kept(seen, out / "train.jsonl") in AFTER


DRIVER = (
    f"LONG = {LONG}"
    + """
import runpy, sys
from pathlib import Path
from facttune_ray.runtime import cluster
from facttune_ray.runtime import training
conftest = runpy.run_path(sys.argv[1])
cluster.start_ray()
job = conftest["job_of"](tuple(sys.argv[2:4]), Path(sys.argv[4]), **LONG)
training.train(job)
"""
)


@pytest.mark.chaos
def test_a_killed_driver_goes_on_by_the_same_command(reference, calm, lines, tmp_path):
    out = tmp_path / "out"
    conftest = str(Path(__file__).with_name("conftest.py"))
    command = [sys.executable, "-c", DRIVER, conftest, *reference, str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    first = start()
    seen = wait_for_step(out / "train.jsonl", KILL_AT, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start()
    errors = again.communicate(timeout=300)[1]
    assert again.returncode == 0, errors[-2000:]
    found = lines(out)
    assert [x["loss"] for x in found] == pytest.approx(calm, abs=1e-5)
    assert kept(seen, out / "train.jsonl") in AFTER
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_one_clear_line(
    reference, run, job, tmp_path, ray_cluster
):
    from facttune_ray.quickstart import base_model

    out = tmp_path / "out"
    run(reference, out, save_every=2, max_steps=2)
    base_model.pretrain(["she plays"], tmp_path / "other", seed=0, epochs=0, hidden=64)
    with pytest.raises(UserError, match="of another model") as caught:
        training.train(job((reference[0], str(tmp_path / "other")), out, save_every=2, max_steps=2))
    assert "\n" not in str(caught.value)
