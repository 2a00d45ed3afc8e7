"""What clouds say, and when it is a notice. tests/cluster/test_notices.py gives notices to Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import metadata_server
import pytest
from metadata_server import EVENTS, MAINTENANCE, PREEMPTED, SPOT
from nodes import notices


def after(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def event(**words: object) -> str:
    """What Azure says of one event."""
    known = {"EventType": "Preempt", "Resources": ["vm_1"], "NotBefore": "", **words}
    return json.dumps({"Events": [known]})


def spot(seconds: float) -> str:
    return json.dumps({"action": "terminate", "time": f"{after(seconds):%Y-%m-%dT%H:%M:%SZ}"})


@pytest.mark.parametrize(
    ("cloud", "page", "text", "left_s", "says"),
    [
        ("aws", SPOT, lambda: spot(120), 120, "AWS: terminate"),
        ("google", PREEMPTED, lambda: "TRUE", 30, "Google: preempted"),
        ("google", MAINTENANCE, lambda: "TERMINATE_ON_HOST_MAINTENANCE", 3600, "MAINTENANCE"),
        ("azure", EVENTS, lambda: event(NotBefore=format_datetime(after(30))), 30, "Preempt"),
        ("azure", EVENTS, lambda: event(EventType="Reboot"), 0, "Azure: Reboot"),
    ],
)
def test_a_notice_and_its_deadline(cloud, page, text, left_s, says):
    with metadata_server.running(cloud) as server:
        assert notices.CLOUDS[cloud](server.url) is None
        server.pages[page] = text()
        notice = notices.CLOUDS[cloud](server.url)
        assert says in notice.text and notice.deadline_s - time.time() == pytest.approx(
            left_s, abs=2
        )


@pytest.mark.parametrize(
    ("cloud", "page", "text"),
    [
        ("google", MAINTENANCE, "MIGRATE_ON_HOST_MAINTENANCE"),  # the machine goes on
        ("azure", EVENTS, event(EventType="Freeze")),
        ("azure", EVENTS, event(Resources=["vm_0"])),  # another machine
    ],
)
def test_what_is_no_notice_for_this_host(cloud, page, text):
    with metadata_server.running(cloud) as server:
        server.pages[page] = text
        assert notices.CLOUDS[cloud](server.url) is None


@pytest.mark.parametrize("cloud", notices.CLOUDS)
def test_each_cloud_is_told_from_the_others(cloud, monkeypatch, capsys):
    monkeypatch.setattr(notices.time, "sleep", lambda seconds: stop())

    def stop():
        raise KeyboardInterrupt

    with metadata_server.running(cloud) as server:
        for other in notices.CLOUDS.keys() - {cloud}:
            with pytest.raises(urllib.error.HTTPError):
                notices.CLOUDS[other](server.url)
        with pytest.raises(KeyboardInterrupt):
            notices.wait_for_notice(list(notices.CLOUDS), server.url)
    assert f"waits for a notice of {cloud}\n" in capsys.readouterr().out


def test_outages_and_nonsense_are_waited_out(monkeypatch, capsys):
    monkeypatch.setattr(notices, "POLL_S", 0.01)
    with metadata_server.running("aws") as server:
        found: list[notices.Notice] = []
        words = (["aws"], server.url)
        thread = threading.Thread(target=lambda: found.append(notices.wait_for_notice(*words)))
        thread.start()
        for change in ("quiet", "down", "quiet", "nonsense", "a list", "notice"):
            server.down = change == "down"
            pages = {"nonsense": "<html>", "a list": "[1]", "notice": spot(120)}
            server.pages.pop(SPOT, None)
            server.pages |= {SPOT: pages[change]} if change in pages else {}
            before = len(server.asked)
            while len(server.asked) < before + 4 and thread.is_alive():
                time.sleep(0.005)
            assert bool(found) is (change == "notice")
        thread.join(5)
    said = capsys.readouterr().out
    assert said.count("no metadata server answers") == 2 and "503" in said
    assert said.count("waits for a notice of aws") == 1  # once again after the first outage


def test_a_drain_is_tried_until_the_head_takes_it(monkeypatch, capsys):
    monkeypatch.setattr(notices, "POLL_S", 0.0)
    here = iter([{}, {}, {"n1": "h:6379"}])  # Ray starts late
    monkeypatch.setattr(notices, "nodes_here", lambda: next(here, {"n1": "h:6379", "n2": "h:6379"}))
    tried: list[str] = []

    def run(words, **_):
        node = words[words.index("--node-id") + 1]
        tried.append(node)
        assert 100 < int(words[words.index("--deadline-remaining-seconds") + 1]) <= 120
        if len(tried) == 1:
            raise subprocess.TimeoutExpired(words, 20)
        return subprocess.CompletedProcess(words, int(len(tried) == 2), "", "x\nno head\n")

    monkeypatch.setattr(notices.subprocess, "run", run)
    notices.drain(notices.Notice("AWS: terminate", time.time() + 120))
    said = capsys.readouterr().out
    assert sorted(tried[-2:]) == ["n1", "n2"] and tried.count("n1") + tried.count("n2") == len(
        tried
    )
    assert "no answer in 20 s" in said and "tries again: no head" in said
    assert said.count("drains, 1") == 2


def test_one_process_a_host_and_only_the_standard_library():
    code = "import socket, sys, notices; s = socket.socket(socket.AF_UNIX)\n"
    code += "s.bind('\\0facttune_ray_notices'); notices.main(['--cloud', 'aws'])\n"
    code += "print(sorted(m for m in sys.modules if m.split('.')[0] in ('ray', 'psutil')))"
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", code],
        env={"PYTHONPATH": str(notices.Path(notices.__file__).parent)},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr:
        pytest.skip("no network namespace may be made here")
    assert "already" in done.stdout and done.stdout.endswith("[]\n"), done.stderr
