"""A few rows of tables that are being made: first responses, a first error."""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facttune_ray.secrets import redact
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder

RESPONSES, TEXT, FACTS = 4, 1200, 12  # responses shown, characters of each, facts of each
PARTS, ERROR = 50, 300  # parts that are looked into, characters of an error


def first_error(table: Folder, shards: int) -> str:
    """The first error in the finished parts of a table; "-" if the first parts have none."""
    for shard in sorted(tables.present(table, shards))[:PARTS]:
        found = tables.read_part(table, shard, ["error"])["error"]
        if known := pc.drop_null(found).slice(0, 1).to_pylist():
            return redact(known[0])[:ERROR]
    return "-"


def first_responses(root: Folder, scope: str) -> list[dict[str, Any]]:
    """The first response to each of some topics, with its first facts once they are judged:
    [{"scope", "topic", "text", "facts": [{"fact", "supported"}]}]"""
    folder = root / scope / "responses"
    parts = (n for n in folder.names() if n.startswith("part-") and n.endswith(".parquet"))
    columns = ["response_id", "topic", "text", "error"]
    rows: list[dict[str, Any]] = []
    for part in itertools.islice(parts, PARTS):
        with folder.fs.open_input_file((folder / part).path) as file:
            batches = pq.ParquetFile(file).iter_batches(batch_size=64, columns=columns)
            rows = next(batches, pa.RecordBatch.from_pylist([])).to_pylist()
        if rows:
            break
    if not rows:
        return []
    by_topic = {r["topic"]: r for r in reversed(rows)}  # the first response to each topic
    shown = list(reversed(by_topic.values()))[:RESPONSES]
    facts = _facts(root / scope, part, [r["response_id"] for r in shown])
    return [
        {
            "scope": scope,
            "topic": r["topic"],
            "text": redact(r["text"] or r["error"] or "(no text)")[:TEXT],
            "facts": facts.get(r["response_id"], []),
        }
        for r in shown
    ]


def _facts(scope: Folder, part: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """response_id -> its first facts with their verdicts; {} if the part is not judged yet."""
    names = {"facts": ["response_id", "fact_id", "fact"], "verdicts": ["fact_id", "supported"]}
    if not all((scope / name / part).exists() for name in names):
        return {}
    shard = int(part[5:-8])
    facts, verdicts = (tables.read_part(scope / n, shard, c) for n, c in names.items())
    facts = facts.filter(pc.is_in(facts["response_id"], value_set=pa.array(ids)))
    verdicts = verdicts.filter(
        pc.is_in(verdicts["fact_id"], value_set=facts["fact_id"].combine_chunks())
    )
    supported = dict(
        zip(verdicts["fact_id"].to_pylist(), verdicts["supported"].to_pylist(), strict=True)
    )
    out: dict[str, list[dict[str, Any]]] = {}
    for f in facts.to_pylist():
        if f["fact"]:
            out.setdefault(f["response_id"], []).append(
                {"fact": f["fact"], "supported": supported.get(f["fact_id"])}
            )
    return {k: v[:FACTS] for k, v in out.items()}
