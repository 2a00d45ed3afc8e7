"""SIGTERM ends a command like Ctrl-C: one line, what is paid is kept, the same command goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from facttune_ray.llm.ledger import Ledger
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.storage.tables import Folder

TERMINATED = "facttune: terminated; the same command goes on from here"


@contextlib.contextmanager
def command(*words: str) -> Iterator[subprocess.Popen]:
    """`facttune WORDS`, killed at the end if it still runs."""
    child = subprocess.Popen(
        [sys.executable, "-m", "facttune_ray", *words],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait(child: subprocess.Popen, until: Callable[[], object], timeout_s: float = 400.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not until():
        assert child.poll() is None, child.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(child: subprocess.Popen, number: int = signal.SIGTERM, times: int = 1) -> list[str]:
    """Send the signal. -> lines on stderr, when it has ended with the signal's code"""
    for _ in range(times):
        child.send_signal(number)
        time.sleep(0.1)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 128 + number, errors
    return errors.splitlines()


def handles(child: subprocess.Popen, number: int) -> bool:
    """Whether it has a handler of this signal."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def others(lines: list[str]) -> list[str]:
    """The lines that are not about a table: those begin with its name, in a column."""
    return [line for line in lines if not re.match(r"[\w/]+  ", line)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_that_is_terminated_keeps_what_was_answered_and_goes_on(tmp_path, tiny_presets):
    out = tmp_path / "run"
    price = ["llm.usd_per_million_input=1", "llm.usd_per_million_output=1", "llm.budget_usd=5"]
    slow = AnnotatorOptions(latency_min_ms=800, latency_max_ms=1500)
    with running(slow) as url:
        words = ["quickstart", "--out", str(out), f"llm.base_url={url}", *tiny_presets, *price]

        def stats() -> dict:
            with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
                return json.load(reply)

        with command(*words, "llm.concurrency=8") as child:
            wait(child, (out / "base/tune/facts/_RECIPE.json").exists)
            assert others(ended(child)) == [TERMINATED]  # while Ray starts, or its workers
        with command(*words, "llm.concurrency=8") as child:
            wait(child, lambda: stats()["received"] > 20)
            assert others(ended(child, times=3)) == [TERMINATED]
        found = stats()
        segments = Ledger(Folder.of(str(out / "ledger"))).segments
        assert sum(len(s.prefixes) for s in segments.values()) == found["answered"] > 0
        assert found["answered"] == found["received"]  # what was in flight has been waited for

    with running(AnnotatorOptions()) as url:
        words[3] = f"llm.base_url={url}"
        with command(*words) as child:
            wait(child, lambda: list((out / "facttune_mc").glob("*/train/*.jsonl")))
            assert others(ended(child)) == [TERMINATED]
        with command(*words) as child:
            assert child.wait(600) == 0
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_proxy_is_not_asked_for_what_is_on_this_machine(tmp_path, tiny_presets, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with command("quickstart", "--out", str(tmp_path / "run"), *tiny_presets) as child:
        _, errors = child.communicate(timeout=800)
    assert child.returncode == 0, errors[-2000:]
