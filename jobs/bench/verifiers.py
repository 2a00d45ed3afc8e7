"""Verifiers against human labels: FActScore's labelled files, one row a verifier and file.

    quality(Path("data/factscore"), {"nli": "models/nli"}, facts=0)
    -> {"lexical/ChatGPT": {"auroc": 0.86, "accuracy": 0.8, "f1_not_supported": 0.72, ...}, ...}

A verifier judges the human facts through the stage `verdicts`, as a run does, with all passages of
the topic's article or the best by BM25. Nothing is fitted. Facts a second and core are facts over
the CPU seconds of this process, which other work on the machine lengthens.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from facttune_ray.config import Config, load
from facttune_ray.evaluation.agreement import human_agreement, of_facts
from facttune_ray.knowledge import build
from facttune_ray.knowledge.articles import Articles
from facttune_ray.sources import factscore
from facttune_ray.stages import verdicts
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.storage.schema import TABLES

FILES = ("ChatGPT", "InstructGPT")
WARM = 20  # facts
RUNS, ENOUGH_S = 5, 10.0  # the fastest of up to 5 runs counts, as long as they take 10 s together
PUBLISHED = {  # what others have reported on these files, ChatGPT and InstructGPT
    "ChatGPT as judge, FActScore's retrieval+ChatGPT": {
        "source": "Min et al. 2023, F1 of Not-supported",
        "ChatGPT": {"f1_not_supported": 0.802},
        "InstructGPT": {"f1_not_supported": 0.875},
    },
    "Inst-LLaMA with NPM, FActScore's retrieval+llama+npm": {
        "source": "Min et al. 2023, F1 of Not-supported",
        "ChatGPT": {"f1_not_supported": 0.705},
        "InstructGPT": {"f1_not_supported": 0.832},
    },
    "RoBERTa-MNLI with BM25": {
        "source": "accuracy on all three files together; PerplexityAI is the third",
        "all": {"accuracy": 0.789},
    },
}


def estimators(models: Mapping[str, str]) -> list[str]:
    """lexical; each verifier whose model is named; and each of these joined with lexical."""
    named = [name for name, e in verdicts.ESTIMATORS.items() if e.weights and name in models]
    return ["lexical", *named, *(f"{name}+lexical" for name in named)]


def quality(data: Path, settings: Mapping[str, str], facts: int = 0) -> dict[str, dict[str, Any]]:
    """Figures of every verifier on every file. `settings`: of the section `verdicts`, such as
    {"nli": PATH, "dtype": "bfloat16"}; `facts`: most facts of a file, 0: all."""
    out = {}
    words = [f"verdicts.{key}={value}" for key, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        knowledge = Path(folder, "knowledge.db")
        build.build([data / "knowledge.jsonl"], knowledge)
        articles = Articles(knowledge)
        rows = {name: _facts(data / f"{name}.jsonl", articles, facts) for name in FILES}
        for estimator in estimators(settings):
            cfg = load([], [f"run.out={folder}", f"verdicts.estimator={estimator}", *words])
            opened: dict = {}  # the model is loaded once for both files
            for name, some in rows.items():
                found = _figures(cfg, some, str(knowledge), opened)
                out[f"{estimator}/{name}"] = found
                print(estimator, name, found, flush=True)
    return out


def _facts(file: Path, articles: Articles, most: int) -> list[dict]:
    """Rows of the table `facts`: the human facts labelled S or NS of topics with an article."""
    rows = []
    for number, record in enumerate(factscore.read(file)):
        if record.abstained or articles.find(record.topic) is None:
            continue
        labelled = [f for _, facts in factscore.given_facts(record, "human") for f in facts]
        for position, (fact, label) in enumerate(labelled):
            ids = {"fact_id": f"{number}/{position}", "response_id": str(number)}
            if label in ("S", "NS"):
                rows.append(ids | {"topic": record.topic, "fact": fact, "human_label": label})
    return rows[: most or None]


def _figures(cfg: Config, rows: list[dict], knowledge: str, opened: dict) -> dict[str, Any]:
    work = Work("verdicts", "verdicts", {}, cfg, knowledge=knowledge)
    shown: list[dict] = rows[:WARM]
    context = Context(work, opened, rows=lambda role, shard: shown)
    asyncio.run(verdicts.run(context, 0))  # load models, articles and rarities before the clock
    shown = rows
    times: list[tuple[float, float]] = []  # CPU seconds, seconds
    while len(times) < RUNS and sum(wall for _, wall in times) < ENOUGH_S:
        started, cpu = time.perf_counter(), time.process_time()
        made = asyncio.run(verdicts.run(context, 0))
        times.append((time.process_time() - cpu, time.perf_counter() - started))
    cpu_s, wall_s = (min(column) for column in zip(*times, strict=True))
    facts = pa.Table.from_pylist(rows, TABLES["facts"])
    judged = pa.Table.from_pylist(made, TABLES["verdicts"])
    figures = human_agreement(facts, judged)
    kept = ("auroc", "accuracy", "kappa", "pearson_score", "ece", "human_supported")
    return {
        **{k: figures[k] for k in ("facts", "responses")},
        **{k: _rounded(figures[k]) for k in kept},
        **_by_label(facts, judged),
        "no_verdict": figures["no_verdict"],
        "facts_per_core_s": round(len(rows) / cpu_s, 1),
        "facts_per_s": round(len(rows) / wall_s, 1),
    }


def _by_label(facts: pa.Table, judged: pa.Table) -> dict[str, Any]:
    """f1_not_supported: of the class NS, as FActScore reports it. majority: accuracy of the more
    frequent label. error_rate_difference: mean over responses of the share judged supported, minus
    the share that humans call supported (FActScore's ER, with its sign)."""
    supported = of_facts(facts, judged, "supported")
    known = np.array([v is not None for v in supported.to_pylist()])
    said = np.array([v is False for v in supported.to_pylist()])[known]
    wrong = np.array([v == "NS" for v in facts["human_label"].to_pylist()])[known]
    _, response = np.unique(facts["response_id"].to_numpy()[known], return_inverse=True)
    counts = np.bincount(response)

    def mean(mask: np.ndarray) -> float:
        return float((np.bincount(response, weights=~mask) / counts).mean())

    hits, either = int((said & wrong).sum()), int(said.sum() + wrong.sum())
    return {
        "f1_not_supported": _rounded(2 * hits / either if either else None),
        "majority": _rounded(max(wrong.mean(), 1 - wrong.mean())),
        "error_rate_difference": _rounded(mean(said) - mean(wrong)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
