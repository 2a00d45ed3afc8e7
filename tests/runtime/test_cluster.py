"""The start of Ray on this machine."""

import pytest
import ray

from facttune_ray.errors import UserError
from facttune_ray.runtime import cluster

LATE = Exception("The current node timed out during startup. This could happen because ...")


@pytest.mark.parametrize("late", [1, 2])
def test_a_start_that_takes_too_long_is_tried_again(monkeypatch, capsys, late):
    answers = [LATE] * late
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def init(**_):
        if answers:
            raise answers.pop()

    monkeypatch.setattr(ray, "init", init)
    cluster.start_here()
    assert not answers and capsys.readouterr().err.count("starting it again") == late


def test_a_machine_on_which_ray_never_starts_gives_one_line(monkeypatch):
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def init(**_):
        raise LATE

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="did not start on this machine in 3 tries"):
        cluster.start_here()


def test_other_errors_are_raised(monkeypatch):
    def init(**_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="a bug"):
        cluster.start_here()
