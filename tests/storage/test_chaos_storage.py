"""A whole run on a store in bad weather, and on a disk that fills: the tables of an undisturbed
run, and one line where it cannot go on."""

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
    """Rows of every table and bytes of every model of a run, by the file's name."""
    found: dict[str, object] = {}
    for name in root.files():
        file = root / name
        if name.endswith(".parquet"):
            found[name] = pq.read_table(file.path, filesystem=file.fs, partitioning=None)
        elif name.endswith("model/model.safetensors"):
            found[name] = file.read_bytes()
    return found


def same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    assert [n for n in one if one[n] != other[n]] == []
    assert sum(n.endswith(".safetensors") for n in one) == 2  # base model, tuned model


@pytest.mark.chaos
def test_a_run_on_s3_in_bad_weather_has_the_local_runs_tables(
    object_store, undisturbed, small_preset
):
    chance = random.Random(7)

    def weather(number: int, method: str, path: str) -> bool:
        if chance.random() < 0.01:
            time.sleep(4.0)  # Arrow's own patience ends after 3
        return chance.random() < 0.02

    object_store.refuses = weather
    root = Folder.of(object_store.uri("weather-run"))
    try:
        words = ["quickstart", "--out", root.uri, small_preset, *ONE_ROUND]
        assert cli.main(words) == 0
    finally:
        object_store.refuses = lambda number, method, path: False
    same(contents(root), contents(Folder.of(str(undisturbed))))
    names = set(root.files())
    log = "facttune_fs/round_1/train/train.jsonl"
    assert {"summary.json", "report.html", "headline.png", log} <= names
    assert any(n.startswith("facttune_fs/round_1/train/checkpoints/") for n in names)
    assert (root / log).read_bytes().count(b"\n") == 3  # a line a step
    requests = len(object_store.requests)
    assert cli.main(words) == 0  # nothing to do
    later = [m for m, _ in object_store.requests[requests:] if m in ("PUT", "POST", "DELETE")]
    assert later == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, and how to make it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        return (
            bool(shutil.which("mount"))
            and not subprocess.run(command, capture_output=True).returncode
        )

    if not mount("size=1m"):
        pytest.skip("this machine lets nobody mount a file system")
    yield place, lambda: mount("remount,size=200m")
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.chaos
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(
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
    same(contents(Folder.of(str(out))), contents(Folder.of(str(undisturbed))))
