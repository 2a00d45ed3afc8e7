"""Verdicts by chat at a fixed latency: this project's stage against one call after the other.

run(quick=True)  ->  {"settings": {...}, "results": {"facttune_ray": {"facts_per_s": 310, ...},
                      "sequential": {...}}, "ratios": {"sequential": 70.2}}

Both sides have the same facts, passages, prompts and annotator. The sequential loop is timed on the
first few facts.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import openai

from facttune_ray.config import Config, LLMConfig, RunConfig
from facttune_ray.knowledge import build
from facttune_ray.knowledge.articles import Articles
from facttune_ray.knowledge.retrieval import BM25
from facttune_ray.prompts import verdicts as prompt
from facttune_ray.quickstart.annotator import AnnotatorOptions, embedded, running
from facttune_ray.runtime import pipeline
from facttune_ray.runtime.pipeline import Planned
from facttune_ray.runtime.services import Services
from facttune_ray.sources import world
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.schema import digest
from facttune_ray.storage.sharding import sharded
from facttune_ray.storage.tables import Folder

LATENCY_MS, SHARDS, WORKERS = 200, 16, 2


def run(quick: bool) -> dict:
    """Facts per second on both sides, and how many verdicts differ on the common facts."""
    count, few = (1500, 20) if quick else (12_000, 60)
    fictional = world.make(0, 400)
    facts = list(_facts(fictional, count))
    options = AnnotatorOptions(latency_min_ms=LATENCY_MS, latency_max_ms=LATENCY_MS)
    with tempfile.TemporaryDirectory() as folder:
        knowledge = Path(folder, "knowledge.db")
        build.write(fictional.articles, knowledge)
        with running(options) as url:
            _ours(Path(folder, "warm"), url, facts[:200], knowledge)
            started = time.monotonic()
            ours = _ours(Path(folder, "ours"), url, facts, knowledge)
            ours_s = time.monotonic() - started
        with running(options) as url:
            started = time.monotonic()
            theirs = _sequential(url, facts[:few], knowledge)
            theirs_s = time.monotonic() - started
    results = {
        "facttune_ray": {"facts": len(facts), "wall_s": ours_s},
        "sequential": {"facts": few, "wall_s": theirs_s},
    }
    for figures in results.values():
        figures["facts_per_s"] = round(figures["facts"] / figures["wall_s"], 2)
        figures["wall_s"] = round(figures["wall_s"], 2)
    differ = sum(ours[f["fact_id"]] is not v for f, v in zip(facts, theirs, strict=False))
    rates = {name: figures["facts_per_s"] for name, figures in results.items()}
    return {
        "settings": {"latency_ms": LATENCY_MS, "workers": WORKERS, "verdicts_that_differ": differ},
        "results": results,
        "ratios": {"sequential": round(rates["facttune_ray"] / rates["sequential"], 1)},
    }


def _facts(fictional: world.World, count: int) -> Iterator[dict]:
    """True and false statements about the people, each once."""
    each = -(-count // len(fictional.people))
    left = count
    for person in fictional.people:
        statements = [
            world.statement(person.name, attribute, value)
            for values in zip(*world.VALUES.values(), strict=False)
            for attribute, value in zip(world.VALUES, values, strict=True)
        ]
        for i, text in enumerate(statements[: min(each, left)]):
            left -= 1
            yield {
                "fact_id": digest(person.name, i),
                "response_id": digest(person.name),
                "topic": person.name,
                "split": "train",
                "position": i,
                "sentence": i,
                "sentence_text": text,
                "start": 0,
                "end": 0,
                "fact": text,
                "repeated": False,
                "human_label": None,
                "abstained": False,
                "error": None,
            }


def _ours(out: Path, url: str, facts: list[dict], knowledge: Path) -> dict[str, bool | None]:
    """The verdicts stage on workers. Ray must be running."""
    llm = LLMConfig(base_url=url)
    cfg = Config(run=RunConfig(out=str(out), shards=SHARDS, workers=WORKERS), llm=llm)
    root = Folder.of(str(out))
    tables.begin(root / "facts", {})
    with sharded(facts, SHARDS) as parts:
        for shard, rows in parts:
            tables.write_part(root / "facts", "facts", shard, rows, {})
    inputs = {"facts": "facts"}
    work = Work("verdicts", "verdicts", inputs, cfg, base_url=url, knowledge=str(knowledge))
    with contextlib.closing(Services(cfg, root, embedded)) as services:
        for _ in pipeline.make([Planned(work, {})], services):
            pass
    verdicts = (row for s in range(SHARDS) for row in tables.rows(root / "verdicts", s))
    return {row["fact_id"]: row["supported"] for row in verdicts}


def _sequential(url: str, facts: list[dict], knowledge: Path) -> list[bool]:
    """As FActScore does: for each fact retrieve, ask, wait."""
    client = openai.OpenAI(base_url=url, api_key="none")
    articles, out = Articles(knowledge), []
    for fact in facts:
        passages = articles.passages(fact["topic"]) or []
        best = BM25(passages).top(f"{fact['topic']} {fact['fact']}", 5)
        reply = client.chat.completions.create(
            model="annotator",
            messages=prompt.render(fact["topic"], fact["fact"], [passages[i] for i in best]),  # type: ignore[arg-type]
            max_tokens=512,
            temperature=0.0,
        )
        out.append(prompt.parse(reply.choices[0].message.content or ""))
    return out
