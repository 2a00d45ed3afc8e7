"""The files of a run's evaluation, from its summary.

    contents(summary, counts, cards)
        ->  {"summary.json": b"...", "summary.md": ..., "report.html": ..., "csv/models.csv": ...,
             "headline.png": ..., "report_data/9b2e....js": ...}

The caller writes them to a folder or an object store.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from facttune_ray.config.layers import flatten
from facttune_ray.evaluation.hacking import SIGNS
from facttune_ray.evaluation.report import page, parts, pictures, text
from facttune_ray.evaluation.report.browser import Cards
from facttune_ray.evaluation.report.text import Summary


def contents(summary: Summary, counts: Mapping[str, pa.Table], cards: Cards) -> dict[str, bytes]:
    """Every file of a run's evaluation. Parts of the page come before the page."""
    summary = finite(summary)
    facts = io.StringIO()
    packed = parts.packed(_with_facts(cards.cards, facts))
    out = packed.files | {
        "summary.json": json.dumps(summary, indent=1, sort_keys=True).encode() + b"\n",
        "summary.md": text.markdown(summary).encode(),
        "report.html": page.page(summary, packed, cards.responses).encode(),
        "headline.png": pictures.headline(summary),
        "csv/responses.csv": _responses(counts),
        "csv/facts.csv": facts.getvalue().encode(),
    }
    out |= {f"csv/{name}.csv": _rows(rows) for name, rows in _tables(summary).items() if rows}
    if picture := pictures.reliability(summary):
        out["reliability.png"] = picture
    return out


def finite(value: Any) -> Any:
    """The same nested value with NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _responses(counts: Mapping[str, pa.Table]) -> bytes:
    """Every response with its counts; the first column is the model."""
    out = io.BytesIO()
    parts = [c.add_column(0, "model", pa.array([n] * c.num_rows)) for n, c in counts.items()]
    if parts:
        pacsv.write_csv(pa.concat_tables(parts), out)
    return out.getvalue()


FACT_COLUMNS = ("fact", "supported", "score", "repeated", "second", "human", "title", "question")


def _with_facts(cards: Iterable[dict], out: io.StringIO) -> Iterator[dict]:
    """The cards, while `out` gets a line of CSV for each of their facts, without its passage."""
    heads = ("topic", "split", "model", "sample", *FACT_COLUMNS, "conf", "fact_id")
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    for c in cards:
        for r in c["responses"]:
            head = {k: c[k] for k in ("topic", "split")} | {k: r[k] for k in ("model", "sample")}
            for f in r["facts"]:
                known = {k: f.get(k) for k in (*FACT_COLUMNS, "conf")}
                writer.writerow(head | known | {"fact_id": f.get("id")})
        yield c


def _tables(summary: Summary) -> dict[str, list[dict]]:
    """The summary's tables as rows."""
    out: dict[str, list[dict]] = {
        "models": [{"model": n} | _flat(m) for n, m in summary["models"].items()],
        "comparisons": [{"model": n} | _flat(c) for n, c in summary["comparisons"].items()],
        "stages": summary["stages"],
        "errors": summary["errors"],
    }
    for name, key in (("groups", "group"), ("kinds", "kind")):
        out[name] = [
            {key: row[key], "model": n} | _flat(m)
            for row in summary[name]
            for n, m in row["models"].items()
        ]
    out["hacking"] = [
        {"model": n} | _flat({sign: found[sign] for sign in SIGNS})
        for n, found in summary["hacking"].items()
    ]
    out["rewards"] = [
        {"reward": n} | {k: v for k, v in r.items() if not isinstance(v, list)}
        for n, r in summary["rewards"].items()
    ]
    return out


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """{"correct": {"value": 1.6, "low": ...}} -> {"correct": 1.6, "correct.low": ...}"""
    return {key.removesuffix(".value"): inner for key, inner in flatten(value).items()}


def _rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """CSV with the columns of all rows; lists are joined by "; "."""
    rows = list(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, dict.fromkeys(k for r in rows for k in r), lineterminator="\n")
    writer.writeheader()
    for r in rows:
        cells = {k: "; ".join(map(str, v)) if isinstance(v, list) else v for k, v in r.items()}
        writer.writerow(cells)
    return out.getvalue().encode()
