"""One client against its own annotator: goodput, share of the limit, 429s, time, CPU.

measure("gather", 6000, AnnotatorOptions(requests_per_minute=12_000, burst_s=1.0))
{"goodput_per_s": 121.4, "steady_share": 0.62, "share_429": 0.31, "wall_s": 49.4, ...}
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from dataclasses import replace

import psutil

from bench import ours
from bench.clients import CLIENTS
from facttune_ray.config import LLMConfig
from facttune_ray.llm.limiter import Limits
from facttune_ray.quickstart.annotator import AnnotatorOptions, running

OURS = "facttune_ray"
# requests that show the rate of the slow clients, which would take hours for all of them
ENOUGH = {"sequential": 150, "ray_data_llm": 600, "token_bucket": 1200}


def measure(name: str, count: int, options: AnnotatorOptions, limited: str = "") -> dict:
    """Figures of one client.

    `limited`: "requests" or "tokens", the limit that binds; "" without one. `cpu_s` includes the
    Ray cluster, which is idle beside the clients that do not use it.
    """
    count = min(count, ENOUGH.get(name, count)) if limited else count
    known = Limits(
        options.requests_per_minute if limited == "requests" else None,
        options.tokens_per_minute if limited == "tokens" else None,
    )
    with running(options) as url:
        started = time.monotonic()
        with CPU() as cpu:
            if name == OURS:
                llm = LLMConfig(
                    requests_per_minute=options.requests_per_minute if limited else None,
                    tokens_per_minute=options.tokens_per_minute if limited else None,
                )
                texts = ours.texts(ours.run(url, count, 2, llm), range(count))
            else:
                texts = CLIENTS[name](url, ours.requests(count), known)
            wall_s = time.monotonic() - started
        with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
            seen = json.load(reply)
    answered = sum(t is not None for t in texts)
    figures = {
        "requests": count,
        "answered": answered,
        "goodput_per_s": round(answered / wall_s, 1),
        "share_429": round(seen["rejected_429"] / max(1, seen["received"]), 4),
        "repeated": seen["repeated"],
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu.seconds, 2),
    }
    if limited:
        unit = "accepted" if limited == "requests" else "tokens"
        permitted = options.requests_per_minute / 60
        if limited == "tokens":
            permitted = options.tokens_per_minute / 60
        figures["steady_share"] = steady_share(seen["seconds"], unit, permitted)
    return figures


def steady_share(seconds: list[dict], unit: str, permitted: float) -> float | None:
    """Mean rate of a unit over the permitted rate, without the start and the stragglers: from the
    third second of traffic until 95% of the requests were accepted. Seconds without traffic count.
    None when the run is too short."""
    by_second = {s["t"]: s for s in seconds}
    goal, done, end = 0.95 * sum(s["accepted"] for s in seconds), 0, 0
    for t in sorted(by_second):
        done += by_second[t]["accepted"]
        if done >= goal:
            end = t
            break
    if end <= 3:
        return None
    total = sum(by_second[t][unit] for t in range(2, end) if t in by_second)
    return round(total / (end - 2) / permitted, 4)


class CPU:
    """CPU seconds, within a block, of this process and its descendants (with Ray's, without the
    annotator's). They are read twice a second, because a process that has ended has none."""

    def __enter__(self) -> CPU:
        self._seen: dict[int, float] = {}
        self._look()
        self._before = dict(self._seen)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self.seconds = sum(s - self._before.get(pid, 0.0) for pid, s in self._seen.items())

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            try:
                if "annotator" not in " ".join(process.cmdline()):
                    used = process.cpu_times()
                    self._seen[process.pid] = used.user + used.system
            except psutil.Error:
                continue


def warm_up() -> None:
    """Start Ray and its workers, and run them once so that their imports are done."""
    for name in (OURS, "bare_sdk", "ray_data_llm"):
        measure(name, 200, AnnotatorOptions())


def scenarios(quick: bool) -> dict[str, tuple[AnnotatorOptions, str, int]]:
    """name -> (annotator, the limit that binds, number of requests)"""
    count = 1200 if quick else 6000
    slow = AnnotatorOptions(latency_min_ms=150, latency_max_ms=400, burst_s=1.0)
    return {
        "requests": (replace(slow, requests_per_minute=12_000), "requests", count),
        "tokens": (replace(slow, tokens_per_minute=2_000_000), "tokens", count),
        "unlimited": (AnnotatorOptions(), "", count),
    }


def settings(quick: bool) -> dict[str, dict]:
    """scenario -> options of the annotator that are not defaults, and number of requests."""
    default = vars(AnnotatorOptions())
    return {
        name: {k: v for k, v in vars(options).items() if v != default[k]} | {"requests": count}
        for name, (options, _, count) in scenarios(quick).items()
    }


def compare(figures: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """{"results": client -> figures of its first scenario, all scenarios under `scenarios`;
    "ratios": client -> our goodput over its, in its first scenario; "ratios_by_scenario": in all}
    """
    results, ratios = {}, {}
    by_scenario: dict[str, dict[str, float]] = {}
    for name, by_name in figures.items():
        first = next(iter(by_name))
        results[name] = by_name[first] | {"scenarios": by_name}
        for scenario, values in by_name.items():
            ours_per_s = figures[OURS][scenario]["goodput_per_s"]
            ratio = round(ours_per_s / max(1e-9, values["goodput_per_s"]), 2)
            by_scenario.setdefault(scenario, {})[name] = ratio
        ratios[name] = by_scenario[first][name]
    ratios.pop(OURS)
    return {"results": results, "ratios": ratios, "ratios_by_scenario": by_scenario}
