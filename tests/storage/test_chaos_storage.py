"""Complete runs on an object store with faults and on a disk that fills: the tables equal those of
an undisturbed run, and a run that cannot continue prints one line."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.storage.tables import Folder

ONE_ROUND = ["tune.facttune_fs.rounds=1", "tune.facttune_mc.rounds=0", "train.save_every=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster, small_preset) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert cli.main(["quickstart", "--out", str(out), small_preset, *ONE_ROUND]) == 0
    return out


def contents(root: Folder) -> dict[str, object]:
    """File name -> the rows of a table, or the bytes of a model."""
    by_name: dict[str, object] = {}
    for name in root.files():
        file = root / name
        if name.endswith(".parquet"):
            by_name[name] = pq.read_table(file.path, filesystem=file.fs, partitioning=None)
        elif name.endswith("model/model.safetensors"):
            by_name[name] = file.read_bytes()
    return by_name


def assert_equal(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    assert [n for n in one if one[n] != other[n]] == []
    assert sum(n.endswith(".safetensors") for n in one) == 2  # base model, tuned model


@pytest.mark.chaos
def test_a_run_on_a_faulty_s3_store_has_the_tables_of_a_local_run(
    object_store, undisturbed, small_preset
):
    chance = random.Random(7)

    def faults(number: int, method: str, path: str) -> bool:
        if chance.random() < 0.01:
            time.sleep(4.0)  # longer than Arrow's default time-out of 3 s
        return chance.random() < 0.02

    object_store.refuses = faults
    root = Folder.of(object_store.uri("weather-run"))
    try:
        words = ["quickstart", "--out", root.uri, small_preset, *ONE_ROUND]
        assert cli.main(words) == 0
    finally:
        object_store.refuses = lambda number, method, path: False
    assert_equal(contents(root), contents(Folder.of(str(undisturbed))))
    names = set(root.files())
    log = "facttune_fs/round_1/train/train.jsonl"
    assert {"summary.json", "report.html", "headline.png", log} <= names
    assert any(n.startswith("facttune_fs/round_1/train/checkpoints/") for n in names)
    assert (root / log).read_bytes().count(b"\n") == 3  # one line per step
    requests = len(object_store.requests)
    assert cli.main(words) == 0  # nothing to do
    later = [m for m, _ in object_store.requests[requests:] if m in ("PUT", "POST", "DELETE")]
    assert later == []


@pytest.fixture
def small_disk(tmp_path):
    """(folder of a 1 MB file system, function that enlarges it)."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        return (
            bool(shutil.which("mount"))
            and not subprocess.run(command, capture_output=True).returncode
        )

    if not mount("size=1m"):
        pytest.skip("cannot mount a file system on this machine")
    yield place, lambda: mount("remount,size=200m")
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.chaos
def test_a_full_disk_gives_one_line_and_the_run_resumes_once_there_is_space(
    small_disk, undisturbed, small_preset
):
    place, enlarge = small_disk
    out = place / "out"
    words = ["quickstart", "--out", str(out), small_preset, *ONE_ROUND]
    command = [sys.executable, "-m", "facttune_ray", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "no space left" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert enlarge()
    assert cli.main(words) == 0
    assert_equal(contents(Folder.of(str(out))), contents(Folder.of(str(undisturbed))))
