"""This project as a client: the `facts` stage on a table with one sentence per request."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from facttune_ray.config import Config, LLMConfig, RunConfig
from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import cluster, pipeline
from facttune_ray.runtime.pipeline import Planned
from facttune_ray.runtime.services import Services
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.schema import digest
from facttune_ray.storage.sharding import sharded
from facttune_ray.storage.tables import Folder

TOPIC = "Mara Veldt"


def sentences(count: int) -> list[str]:
    """Distinct sentences of equal length."""
    return [f"She was born in the town of Ostrava{100_000 + i} in 1957." for i in range(count)]


def requests(count: int) -> list[list[dict]]:
    """The messages that the stage sends for the sentences."""
    return [facts.render(topic(i), s) for i, s in enumerate(sentences(count))]


def topic(i: int) -> str:
    """One of 400 topics; all rows of a topic are in one shard."""
    return f"{TOPIC} {i % 400}"


def write_responses(out: Path, count: int, shards: int) -> None:
    """A finished table of responses with one sentence each."""
    rows = (
        {
            "response_id": digest(i),
            "prompt_id": digest("p", i),
            "topic": topic(i),
            "split": "train",
            "model": "benchmark",
            "sample": 0,
            "prompt": "",
            "text": text,
            "tokens": None,
            "abstained": False,
            "error": None,
        }
        for i, text in enumerate(sentences(count))
    )
    folder = Folder.of(str(out)) / "base/tune/responses"
    tables.begin(folder, {})
    with sharded(rows, shards) as parts:
        for shard, part in parts:
            tables.write_part(folder, "responses", shard, part, {})
    tables.write_manifest(folder, "responses", {}, shards, 0.0)


def run(base_url: str, count: int, workers: int, llm: LLMConfig) -> dict[str, list[dict]]:
    """The fact rows of each response. Ray must be running."""
    with tempfile.TemporaryDirectory() as out:
        return run_in(Path(out), base_url, count, workers, llm)


def run_in(
    out: Path, base_url: str, count: int, workers: int, llm: LLMConfig, shards: int = 16
) -> dict[str, list[dict]]:
    """The same in a folder that is kept: a second call continues where the first was stopped."""
    cluster.start_ray()
    cfg = Config(
        run=RunConfig(out=str(out), shards=shards, workers=workers),
        llm=replace(llm, base_url=base_url),
    )
    if not tables.has_manifest(Folder.of(str(out)) / "base/tune/responses"):
        write_responses(out, count, shards)
    inputs = {"responses": "base/tune/responses"}
    work = Work("facts", "base/tune/facts", inputs, cfg, base_url=base_url)
    folder = Folder.of(str(out)) / work.output
    with contextlib.closing(Services(cfg, Folder.of(str(out)), embedded)) as services:
        for _ in pipeline.make([Planned(work, {})], services):
            pass
    found: dict[str, list[dict]] = {}
    for shard in range(shards):
        for row in tables.rows(folder, shard):
            found.setdefault(row["response_id"], []).append(row)
    return found


def texts(found: dict[str, list[dict]], requests: Sequence[object]) -> list[str | None]:
    """The answers in the order of the requests; None for a failed request."""
    out: list[str | None] = []
    for i in range(len(requests)):
        rows = found.get(digest(i), [])
        failed = not rows or any(r["error"] for r in rows)
        out.append(None if failed else "\n".join(r["fact"] for r in rows))
    return out
