"""Complete runs whose driver is killed, whose object store has faults, or whose disk fills: the
tables equal those of an undisturbed run, and nothing is paid twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.storage.schema import TABLES
from facttune_ray.storage.tables import Folder


@pytest.fixture(scope="module")
def presets(tiny_presets) -> list[str]:
    return [*tiny_presets, "train.save_every=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster, presets) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert cli.main(["quickstart", "--out", str(out), *presets]) == 0
    return out


def start(out: Path, presets: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "facttune_ray", "quickstart", "--out", str(out), *presets]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(child: subprocess.Popen) -> None:
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors[-2000:]


def kill_inside(child: subprocess.Popen, table: Path) -> None:
    """SIGKILL the driver while this table has begun and is not finished."""
    deadline = time.monotonic() + 300
    while not (table / "_RECIPE.json").exists():
        assert child.poll() is None, child.communicate()[1][-2000:]
        assert time.monotonic() < deadline, f"{table} never began"
        time.sleep(0.005)
    time.sleep(0.05)  # let requests be in flight
    assert not (table / "_MANIFEST.json").exists(), f"{table} was finished before the kill"
    child.send_signal(signal.SIGKILL)
    child.communicate()


def tables_of(out: Path) -> dict[str, list[dict]]:
    """Every table, rows in an order of their own."""
    found = {}
    for manifest in out.rglob("_MANIFEST.json"):
        name = manifest.parent.name
        if name in TABLES:
            parts = sorted(manifest.parent.glob("part-*.parquet"))
            rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
            found[str(manifest.parent.relative_to(out))] = sorted(rows, key=repr)
    return found


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_killed_three_times_ends_with_the_same_tables(tmp_path, undisturbed, presets):
    killed = tmp_path / "killed"
    for table in (
        "base/tune/facts",
        "facttune_mc/round_1/train",
        "facttune_mc/round_1/tune/verdicts",
    ):
        kill_inside(start(killed, presets), killed / table)
    finish(start(killed, presets))

    expected, found = tables_of(undisturbed), tables_of(killed)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, rows in expected.items():
        assert found[name] == rows, name

    journal = (killed / "annotator" / "journal.jsonl").read_text().splitlines()
    requests = [json.loads(line)["request_sha256"] for line in journal]
    assert len(requests) == len(set(requests)) > 100


# -- storage ---------------------------------------------------------------------------------


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
    object_store, undisturbed, presets
):
    chance, happened = random.Random(7), {"stalls": 0, "refusals": 0}

    def faults(number: int, method: str, path: str) -> bool:
        if chance.random() < 0.003:
            happened["stalls"] += 1
            time.sleep(4.0)  # longer than Arrow's default time-out of 3 s
        refused = chance.random() < 0.01
        happened["refusals"] += refused
        return refused

    object_store.refuses = faults
    root = Folder.of(object_store.uri("weather-run"))
    try:
        words = ["quickstart", "--out", root.uri, *presets]
        assert cli.main(words) == 0
    finally:
        object_store.refuses = lambda number, method, path: False
    assert min(happened.values()) >= 3, happened
    assert_equal(contents(root), contents(Folder.of(str(undisturbed))))
    names = set(root.files())
    log = "facttune_mc/round_1/train/train.jsonl"
    assert {"summary.json", "report.html", "headline.png", log} <= names
    assert any(n.startswith("facttune_mc/round_1/train/checkpoints/") for n in names)
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
    small_disk, undisturbed, presets
):
    place, enlarge = small_disk
    out = place / "out"
    words = ["quickstart", "--out", str(out), *presets]
    command = [sys.executable, "-m", "facttune_ray", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "no space left" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert enlarge()
    assert cli.main(words) == 0
    assert_equal(contents(Folder.of(str(out))), contents(Folder.of(str(undisturbed))))
