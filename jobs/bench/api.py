"""One contender against one annotator of its own: goodput, share of the limit, 429s, time, CPU.

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
from bench.contenders import CONTENDERS
from facttune_ray.config import LLMConfig
from facttune_ray.llm.limiter import Limits
from facttune_ray.quickstart.annotator import AnnotatorOptions, running

OURS = "facttune_ray"
# requests that are enough to know the rate of the slow ones, whose whole share would take hours
ENOUGH = {"sequential": 150, "ray_data_llm": 600, "token_bucket": 1200}


def measure(name: str, count: int, options: AnnotatorOptions, limited: str = "") -> dict:
    """Figures of one contender. `limited`: "requests" or "tokens", the limit that binds. `cpu_s`
    has the share of a Ray cluster that stands idle beside the contenders that do not use it."""
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
                texts = CONTENDERS[name](url, ours.requests(count), known)
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
    """Mean of a unit a second over the permitted rate, from the third second of traffic until 95%
    of the requests were accepted: neither the start nor the stragglers. Seconds without traffic
    count. None when the run is too short."""
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
    """CPU seconds, within a block, of this process and all below it (Ray's too, the annotator's
    left out). Looked at twice a second, because a process that has ended tells nothing."""

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
    """Start Ray and its workers, and let them import what they need."""
    for name in (OURS, "bare_sdk", "ray_data_llm"):
        measure(name, 200, AnnotatorOptions())


def scenarios(quick: bool) -> dict[str, tuple[AnnotatorOptions, str, int]]:
    """name -> annotator, the limit that binds, number of requests."""
    count = 1200 if quick else 6000
    slow = AnnotatorOptions(latency_min_ms=150, latency_max_ms=400, burst_s=1.0)
    return {
        "requests": (replace(slow, requests_per_minute=12_000), "requests", count),
        "tokens": (replace(slow, tokens_per_minute=2_000_000), "tokens", count),
        "unlimited": (AnnotatorOptions(), "", count),
    }


def settings(quick: bool) -> dict[str, dict]:
    """scenario -> what its annotator and its requests differ in from the defaults."""
    default = vars(AnnotatorOptions())
    return {
        name: {k: v for k, v in vars(options).items() if v != default[k]} | {"requests": count}
        for name, (options, _, count) in scenarios(quick).items()
    }


def compare(found: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """{"results": contender -> figures of its first scenario, its others under `scenarios`;
    "ratios": contender -> our goodput over its, there; "ratios_by_scenario": everywhere}"""
    results, ratios = {}, {}
    by_scenario: dict[str, dict[str, float]] = {}
    for name, scenario_figures in found.items():
        first = next(iter(scenario_figures))
        results[name] = scenario_figures[first] | {"scenarios": scenario_figures}
        for scenario, figures in scenario_figures.items():
            ours_per_s = found[OURS][scenario]["goodput_per_s"]
            ratio = round(ours_per_s / max(1e-9, figures["goodput_per_s"]), 2)
            by_scenario.setdefault(scenario, {})[name] = ratio
        ratios[name] = by_scenario[first][name]
    ratios.pop(OURS)
    return {"results": results, "ratios": ratios, "ratios_by_scenario": by_scenario}
