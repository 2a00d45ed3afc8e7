"""Two drivers never make the tables of one run."""

from __future__ import annotations

import errno
import subprocess
import sys
import time

import pytest

from facttune_ray import cli
from facttune_ray.errors import UserError
from facttune_ray.runtime import run_lock
from facttune_ray.runtime.run_lock import locked
from facttune_ray.storage.folders import Folder

HOLD = """
import sys, time
from facttune_ray.runtime.run_lock import locked
from facttune_ray.storage.folders import Folder
with locked(Folder.of(sys.argv[1])):
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
    monkeypatch.setattr(run_lock, "WAIT_S", 0.5)
    assert cli.main(["quickstart", f"run.out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}: another driver is making this run's tables" in said
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_killed_drivers_run_is_free_at_once(other, tmp_path):
    other.kill()
    began = time.monotonic()
    for _ in range(2):  # and again after the first has ended
        with locked(Folder.of(str(tmp_path))):
            pass
    assert time.monotonic() - began < run_lock.WAIT_S


@pytest.mark.parametrize("place", ("object store", "no locks"))
def test_where_no_folder_is_locked_a_run_has_one_driver_in_the_cluster(
    ray_cluster, object_store, tmp_path, monkeypatch, place
):
    if place == "object store":
        mine, another = (Folder.of(object_store.uri(name)) for name in ("mine", "another"))
    else:

        def refuse(*_: object) -> None:
            raise OSError(errno.EBADF, "Bad file descriptor")  # NFS's word

        monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
        mine, another = (Folder.of(str(tmp_path / name)) for name in ("mine", "another"))
    monkeypatch.setattr(run_lock, "WAIT_S", 0.5)
    with locked(mine):
        with pytest.raises(UserError, match="mine: another driver"), locked(mine):
            pass
        with locked(another):
            pass
    monkeypatch.setattr(run_lock, "WAIT_S", 10.0)
    with locked(mine):  # given back
        pass
