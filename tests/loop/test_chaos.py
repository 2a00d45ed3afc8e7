"""SIGKILL at three stages, then the same command again: equal tables, nothing paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray.storage.schema import TABLES


def start(out: Path, preset: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "facttune_ray", "quickstart", "--out", str(out), preset]
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
def test_killed_three_times_ends_with_the_same_tables(tmp_path, small_preset):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    finish(start(calm, small_preset))
    for table in (
        "base/tune/facts",
        "base/tune/questions",
        "facttune_fs/round_1/train",
        "facttune_fs/round_1/tune/verdicts",
    ):
        kill_inside(start(killed, small_preset), killed / table)
    finish(start(killed, small_preset))

    expected, found = tables_of(calm), tables_of(killed)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, rows in expected.items():
        assert found[name] == rows, name

    journal = (killed / "annotator" / "journal.jsonl").read_text().splitlines()
    requests = [json.loads(line)["request_sha256"] for line in journal]
    assert len(requests) == len(set(requests)) > 100
