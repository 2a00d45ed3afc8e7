"""An autoscaling cluster that is empty at the start, and a run without any setting for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from bench import hosts

HERE = Path(__file__).resolve().parent
SPACE = ["unshare", "-p", "-f", "--mount-proc", "-n"]  # `ray stop` stops what it can see


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env["PYTHONPATH"] = str(HERE.parents[1] / "jobs")
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_all_hosts_that_may_start_take_part_in_a_stage_and_leave_when_idle(tmp_path):
    if why := hosts.allowed():
        pytest.skip(f"no network namespaces: {why}")
    command = [*SPACE, sys.executable, str(HERE / "autoscaled.py"), str(tmp_path)]
    # a short path, for the names of sockets have at most 107 characters
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        done = _run([*command, short])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"took_part": 3, "most": 3, "left": 0, "rows": found["rows"]}
    assert found["rows"] >= 480
    assert "Unclosed" not in done.stderr + done.stdout
