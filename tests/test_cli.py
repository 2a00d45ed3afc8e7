"""What the command line sets up for whatever it runs."""

from __future__ import annotations

import logging
import os

import pytest

from facttune_ray import cli
from facttune_ray.stages import STEPS


def test_deepspeed_does_not_warn_of_a_gpu_that_nobody_asked_for(capsys):
    assert cli.main(["status", "quickstart", "run.out=/nowhere"]) == 2
    logger = logging.getLogger("DeepSpeed")
    said = {
        level: bool(logger.filter(logger.makeRecord("x", level, "f", 1, "no GPU", (), None)))
        for level in (logging.WARNING, logging.ERROR)
    }
    assert said == {logging.WARNING: False, logging.ERROR: True}


@pytest.mark.parametrize(("policy", "count"), ((None, "1000"), ("ACTIVE", None)))
def test_threads_do_not_spin_long_unless_the_user_says_how(monkeypatch, capsys, policy, count):
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": policy} if policy else {})
    assert cli.main(["status", "quickstart", "run.out=/nowhere"]) == 2
    assert os.environ.get("GOMP_SPINCOUNT") == count


def test_stage_help_lists_every_step_with_its_declaration(capsys):
    with pytest.raises(SystemExit):
        cli.main(["stage", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, (reads, runs_on) in STEPS.items():
        assert [name, *runs_on.split(), *reads.split()] in [line.split() for line in lines]
