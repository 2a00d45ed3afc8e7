"""Notices of clouds reach what runs on the host, and nothing new begins there."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import metadata_server
import pytest
from bench import hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_each_notice_drains_its_host(tmp_path):
    """One host after the other: by SIGTERM to `ray start --block`, as a pod gets it, by AWS's and
    by Google's notice. `jobs/nodes/notices.py` ends when its host drains."""
    if why := hosts.allowed():
        pytest.skip(f"no network namespaces: {why}")
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(hosts.cluster([]))
        named = {
            name: cluster.start_worker(1, "--resources", json.dumps({name: 1}))
            for name in ("sigterm", "aws", "google", "spare")
        }
        cluster.wait_for(1 + len(named))
        clouds = {
            name: stack.enter_context(metadata_server.running(name, cluster.gateway))
            for name in ("aws", "google")
        }
        agents = {
            name: named[name].run([sys.executable, "jobs/nodes/notices.py", "--url", server.url])
            for name, server in clouds.items()
        }
        process = named["sigterm"].process
        assert process is not None
        given(cluster, tmp_path, "sigterm", process.terminate, 30, {"aws", "google", "spare"})
        process.wait(60)
        assert [agent.poll() for agent in agents.values()] == [None, None]

        def interrupt() -> None:
            when = time.strftime("%FT%TZ", time.gmtime(time.time() + 120))
            text = json.dumps({"action": "terminate", "time": when})
            clouds["aws"].pages[metadata_server.SPOT] = text

        given(cluster, tmp_path, "aws", interrupt, 120, {"google", "spare"})
        assert agents["aws"].wait(30) == 0 and agents["google"].poll() is None

        def preempt() -> None:
            clouds["google"].pages[metadata_server.PREEMPTED] = "TRUE"

        given(cluster, tmp_path, "google", preempt, 30, {"spare"})
        assert agents["google"].wait(30) == 0
        log = (named["aws"].folder / "ray.log").read_text()
        assert "waits for a notice of aws" in log and "s are left: AWS: terminate" in log


def given(
    cluster: hosts.Cluster,
    folder: Path,
    name: str,
    give: Callable[[], None],
    seconds: float,
    others: set[str],
) -> None:
    """Give the notice while a training runs on the host, and check what the training saw."""
    file = folder / f"{name}.txt"
    job = cluster.submit("tests/cluster/leaver.py", str(file), name)
    hosts.until(f"a training on {name}", file.exists, job)
    give()
    cluster.finish(job)
    saw = json.loads(file.read_text().splitlines()[1])
    assert saw["train"], saw
    assert seconds - 20 < saw["left_s"] <= seconds, saw
    assert saw["later"] and set(saw["later"]) <= others, saw
