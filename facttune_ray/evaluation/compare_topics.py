"""The topics that several runs share, and their responses side by side: `facttune compare --html`.

changes(["runs/a", "runs/b"], ["a", "b"])    ->  Shared({"base": [{"topic": ...}, ...]}, ...)
write(["runs/a", "runs/b"], "compare.html")  ->  the written file

Memory holds the counts of one run's responses at a time, the figures of its topics, the rows of
MOST_TOPICS topics, and MOST_RESPONSES responses. Tables are read shard by shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from facttune_ray.errors import UserError
from facttune_ray.evaluation import comparisons, metrics
from facttune_ray.evaluation.breakdowns import Scope
from facttune_ray.evaluation.compare_runs import AGAIN, compare, counts_of
from facttune_ray.evaluation.report import browser, compare_page
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import TABLES

MOST_TOPICS = 1000  # with figures on the page: the topics that changed most
MOST_RESPONSES = 5000  # on the page: whole topics, those that changed most
SHOWN = ("responses", "facts", "verdicts")  # tables of a measured model that the page shows
Figures = dict[str, np.ndarray]  # as `comparisons.by_topic`, with `responses`: their number


@dataclass(frozen=True)
class Shared:
    """Models that the first run and another run measure, by topics that both measure."""

    models: dict[str, list[dict[str, Any]]]  # model -> rows: topic, runs, the changes of each run
    topics: int  # number of shared topics; `models` may leave some of them out
    opened: list[str]  # topics whose responses are on the page, in order of falling change


def write(runs: Sequence[str], out: str) -> Folder:
    """Write the page that compares these finished runs to `out`, a file or a URI. -> the file.
    UserError if the runs cannot be compared."""
    file = Folder.of(out)
    if file.exists() and not file.is_file():
        raise UserError(f"--html {out} is a folder: name a file")
    found = compare(runs)
    shared = changes(runs, [r["run"] for r in found["runs"]])
    page = compare_page.page(
        found, shared.models, shared.topics, _cards(runs, found["runs"], shared)
    )
    file.write_bytes(page.encode())
    return file


def changes(runs: Sequence[str], names: Sequence[str]) -> Shared:
    """The figures of each model and topic that the first run shares with another run.

    A row: topic; runs: for each run {error_rate, correct, incorrect, net} or None; net, error_rate:
    for each later run its figure minus that of the first run. Rows are in order of the largest
    change of `net`, correct minus incorrect facts a response. UserError without a shared topic.
    """
    by_run = [_by_model(run) for run in runs]
    first, *others = by_run
    aligned = {
        model: (topics, [_aligned(topics, run.get(model)) for run in by_run])
        for model, (topics, _) in first.items()
        if any(len(np.intersect1d(topics, run[model][0])) for run in others if model in run)
    }
    if not aligned:
        raise UserError(
            f"{names[0]} shares no topic with {' or '.join(names[1:])}: --html pairs the topics of "
            f"models of the same name (the model of a scored file has the file's name)"
        )
    weight: dict[str, float] = {}
    responses: dict[str, int] = {}
    for topics, figures in aligned.values():
        net_RT = np.stack([f["net"] for f in figures])
        counted_RT = np.stack([f["responses"] for f in figures])
        size_RT = np.nan_to_num(np.abs(net_RT[1:] - net_RT[0]), nan=-1.0)
        for i in np.flatnonzero((counted_RT[1:] > 0).any(axis=0)):
            topic = str(topics[i])
            weight[topic] = max(weight.get(topic, -1.0), float(size_RT[:, i].max()))
            responses[topic] = responses.get(topic, 0) + int(counted_RT[:, i].sum())
    order = sorted(weight, key=lambda topic: (-weight[topic], topic))
    tuned_first = sorted(aligned, key=lambda model: model == "base")
    rows = {model: _rows(order[:MOST_TOPICS], *aligned[model]) for model in tuned_first}
    opened: list[str] = []
    room = MOST_RESPONSES
    for topic in order[:MOST_TOPICS]:
        room -= responses[topic]
        if room < 0 and opened:
            break
        opened.append(topic)
    return Shared(rows, len(order), opened)


def _by_model(run: str) -> dict[str, tuple[np.ndarray, Figures]]:
    """model -> (its topics in order of names, their figures)."""
    counts = counts_of(run)
    if counts is None:
        raise UserError(f"{run}: csv/responses.csv is missing or empty: {AGAIN}")
    out = {}
    for model in pc.unique(counts["model"]).to_pylist():
        sums = metrics.Sums(counts.filter(pc.equal(counts["model"], model)))
        figures = comparisons.by_topic(sums, sums.sums_TK)
        figures["responses"] = sums.sums_TK[:, sums.at["responses"]]
        out[model] = (sums.topics, figures)
    return out


def _aligned(topics: np.ndarray, found: tuple[np.ndarray, Figures] | None) -> Figures:
    """The figures of these topics: NaN, and no response, for a topic without figures."""
    theirs, figures = found or (np.empty(0, topics.dtype), {})
    _, here, there = np.intersect1d(topics, theirs, return_indices=True)
    out = {k: np.full(len(topics), np.nan) for k in ("error_rate", "correct", "incorrect", "net")}
    out["responses"] = np.zeros(len(topics))
    for name, values in figures.items():
        out[name][here] = values[there]
    return out


def _rows(order: Sequence[str], topics: np.ndarray, figures: list[Figures]) -> list[dict]:
    place = {str(topic): i for i, topic in enumerate(topics)}
    out = []
    for topic in order:
        i = place.get(topic)
        if i is None or not any(f["responses"][i] for f in figures[1:]):
            continue
        runs = [
            {k: _known(v[i]) for k, v in f.items() if k != "responses"} if f["responses"][i] else {}
            for f in figures
        ]
        row: dict[str, Any] = {"topic": topic, "runs": runs}
        for name in ("net", "error_rate"):
            row[name] = [_known(f[name][i] - figures[0][name][i]) for f in figures[1:]]
        out.append(row)
    return sorted(out, key=lambda r: -max(abs(v or 0.0) for v in r["net"]))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cards(runs: Sequence[str], about: Sequence[Mapping], shared: Shared) -> list[dict]:
    """The prompts of the opened topics with the responses of every run; a response has the number
    of its run. UserError if a run does not have the tables."""
    by_prompt: dict[tuple[str, str], dict[str, Any]] = {}
    for number, (run, of_run) in enumerate(zip(runs, about, strict=True)):
        root = Folder.of(run)
        scopes = {m: s for m, s in _scopes(run, of_run).items() if m in shared.models}
        _check(run, root, scopes)
        shown = browser.cards(root, scopes, {}, MOST_RESPONSES, topics=set(shared.opened))
        for card in shown.cards:
            key = (card["topic"], card["prompt"])
            merged = by_prompt.setdefault(key, card | {"responses": []})
            merged["responses"] += [r | {"run": number} for r in card["responses"]]
    place = {topic: i for i, topic in enumerate(shared.opened)}
    return sorted(by_prompt.values(), key=lambda c: place[c["topic"]])


def _scopes(run: str, of_run: Mapping) -> dict[str, Scope]:
    """model -> the folder of its measured responses; `of_run`: `run` of the run's summary."""
    try:
        return {m: Scope(**s) for m, s in of_run["scopes"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{run}/summary.json: summary.run.scopes is not as this version writes it: {AGAIN}"
        ) from None


def _check(run: str, root: Folder, scopes: Mapping[str, Scope]) -> None:
    """Raise UserError for a table that is absent, unfinished or without one of its columns."""
    for scope in scopes.values():
        for table in SHOWN:
            folder = root / scope.name / table
            tables.manifest(folder)
            columns = tables.columns(folder)
            if missing := [c for c in TABLES[table].names if c not in columns]:
                raise UserError(
                    f"{run}: {scope.name}/{table} has no column {missing[0]}: another version of "
                    f"facttune made it: compare without --html"
                )
