"""Two drivers never make the tables of one run."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from facttune_ray import claim, cli
from facttune_ray.claim import claimed
from facttune_ray.errors import UserError
from facttune_ray.storage import Folder

HOLD = """
import sys, time
from facttune_ray.claim import claimed
from facttune_ray.storage import Folder
with claimed(Folder.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another driver, which makes tables of the run `tmp_path`."""
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert held.stdout and held.stdout.readline() == "held\n"
    yield held
    held.kill()
    held.wait()


def test_a_second_driver_is_one_line_and_touches_nothing(other, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claim, "WAIT_S", 0.5)
    assert cli.main(["quickstart", f"run.out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}: another driver is making this run's tables" in said
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_killed_drivers_run_is_free_at_once(other, tmp_path):
    other.kill()
    began = time.monotonic()
    for _ in range(2):  # and again after the first has ended
        with claimed(Folder.of(str(tmp_path))):
            pass
    assert time.monotonic() - began < claim.WAIT_S


def test_a_run_in_an_object_store_has_one_driver_in_the_cluster(
    ray_cluster, object_store, monkeypatch
):
    monkeypatch.setattr(claim, "WAIT_S", 0.5)
    mine, another = (Folder.of(object_store.uri(name)) for name in ("mine", "another"))
    with claimed(mine):
        with pytest.raises(UserError, match="s3://tests/mine: another driver"), claimed(mine):
            pass
        with claimed(another):
            pass
    monkeypatch.undo()
    with claimed(mine):  # given back
        pass
