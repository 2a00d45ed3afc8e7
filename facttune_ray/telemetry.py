"""Counters and gauges for Prometheus, and log lines with the ids of the run.

    telemetry.count("requests", 1, status="429", model="gpt-4o-mini")
    telemetry.say("base/tune/facts  376 rows", event="table", table="base/tune/facts", rows=376)

Metrics go through `ray.util.metrics`; a process without Ray drops them. A line goes to stderr as
plain text, or with FACTTUNE_LOG=json as one JSON object:

    {"time": "2026-03-01T12:00:00Z", "run": "bio", "run_id": "5f0c...", "stage": "facts",
     "event": "table", "text": "base/tune/facts  376 rows", "rows": 376}
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import os
import sys
from typing import Any

from facttune_ray.secrets import redact

# name -> (kind, description, tags); in Prometheus ray_facttune_<name> (counters: _total)
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "requests": ("Counter", "Attempts sent to an LLM endpoint", ("status", "model", "stage")),
    "llm_calls": ("Counter", "Requests answered and paid", ("stage", "model")),
    "llm_cached": ("Counter", "Completions taken from the ledger", ("stage", "model")),
    "llm_retries": ("Counter", "Attempts that failed and were retried", ("stage", "model")),
    "llm_refused": ("Counter", "Answers with status 429", ("stage", "model")),
    "llm_prompt_tokens": ("Counter", "Prompt tokens paid", ("stage", "model")),
    "llm_completion_tokens": ("Counter", "Completion tokens paid", ("stage", "model")),
    "llm_cost_usd": ("Counter", "Dollars paid", ("stage", "model")),
    "llm_unknown": ("Counter", "Attempts without an answer, perhaps paid", ("stage", "model")),
    "llm_unknown_usd": ("Counter", "Dollars that these attempts may cost", ("stage", "model")),
    "llm_estimated": ("Counter", "Answers whose tokens are estimates", ("stage", "model")),
    "llm_waiting": ("Gauge", "Requests that wait for a permit", ("worker",)),
    "llm_in_flight": ("Gauge", "Requests in flight", ("worker",)),
    "llm_in_flight_limit": ("Gauge", "Largest permitted number of requests in flight", ()),
    "rows": ("Counter", "Rows written to tables", ("stage", "run")),
    "errors": ("Counter", "Rows written with an error", ("stage", "run")),
    "samples": ("Counter", "Texts sampled from a model", ("stage", "run")),
    "train_pairs": ("Counter", "Preference pairs trained on", ("run",)),
    "train_tokens": ("Counter", "Tokens trained on", ("run",)),
    "train_loss": ("Gauge", "Loss of the last step", ("run",)),
}
ids: dict[str, str] = {}  # run and run_id of this process; part of every JSON line
# the stage that this task works for; part of a JSON line, too
stage: contextvars.ContextVar[str] = contextvars.ContextVar("stage", default="")


@functools.cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, text, tags = METRICS[name]
    return getattr(metrics, kind)(f"facttune_{name}", description=text, tag_keys=tags)


def _ray_is_running() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def count(name: str, value: float, **tags: str) -> None:
    """Add to a counter."""
    if value > 0 and _ray_is_running():
        _metric(name).inc(value, tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge."""
    if _ray_is_running():
        _metric(name).set(value, tags)


def json_lines() -> bool:
    return os.environ.get("FACTTUNE_LOG") == "json"


def say(text: str, end: str = "\n", **fields: Any) -> None:
    """Print one line to stderr, without secrets. A line with another `end` (a progress line that
    the next line overwrites) is printed on terminals only."""
    if json_lines():
        if end != "\n":
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now.replace("+00:00", "Z"), **ids}
        line |= {"stage": stage.get()} if stage.get() else {}
        line["text"] = " ".join(text.split())
        text = json.dumps(line | fields, ensure_ascii=False)
    elif end != "\n" and not sys.stderr.isatty():
        return
    print(redact(text), end=end, file=sys.stderr, flush=True)
