"""The responses of the report, in parts that the page unpacks when a reader needs them.

    packed(cards)  ->  Packed(index="H4sI...", inline={"8c1f...": "H4sI..."},
                              files={"report_data/9b2e....js": b"facttune_part(...)"}, ...)

The index has a line a response: topic, counts, id. It is in the page, so the page opens, filters
and finds a topic or a response without any text. A part is base64 of gzipped JSON: the texts and
facts of some prompts, or the traces of these facts. The page holds the first INLINE_BYTES of parts.
Each further part is a file beside the page, a script with one call, because a page that is opened
as a file may load scripts but may not read files. A part is named by its content, so a page never
shows the part of another report.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

FOLDER = "report_data"  # beside report.html
INLINE_BYTES = 16_000_000  # limit of the parts in the page: report.html stays below 20 MB
PART_FACTS = 5_000  # facts of a part, which is unpacked in about 0.1 s
SHARED = ("evidence", "question", "title", "reason")  # keys whose texts are stored once, by number
MARKS = {"second": 1, "human": 2, "repeated": 4, "error": 8}  # bits of a response in the index


@dataclass
class Packed:
    """The index, the parts in the page by name, and the files beside the page by path. `facets`:
    the values that the page can filter by."""

    index: str
    inline: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    facets: dict[str, Any] = field(default_factory=dict)


def packed(cards: Iterable[dict]) -> Packed:
    """Pack cards one part at a time; memory holds the packed parts and the index."""
    index: list[list] = []
    names: list[list[str]] = []  # [responses, traces] of each part; traces: "" for none
    texts: dict[str, str] = {}
    traces: dict[str, str] = {}
    for number, some in enumerate(_batches(cards)):
        index += [_line(card, number) for card in some]
        trace = _traces(some)
        name, of_traces = _add(shared(some), texts), _add(trace, traces) if trace else ""
        names.append([name, of_traces])
    inline, files, size = {}, {}, 0
    texts |= traces
    for name in list(texts):
        text = texts.pop(name)  # a file holds it from here on
        size += len(text)
        if size <= INLINE_BYTES:
            inline[name] = text
        else:
            files[f"{FOLDER}/{name}.js"] = f'facttune_part("{name}","{text}");\n'.encode()
    responses = [r for line in index for r in line[-1]]
    facets = {
        "split": sorted({line[1] for line in index}),
        "group": sorted({line[2] for line in index if line[2]}),
        "model": list(dict.fromkeys(r[0] for r in responses)),
        "second": any(r[-1] & MARKS["second"] for r in responses),
        "human": any(r[-1] & MARKS["human"] for r in responses),
        "responses": len(responses),
    }
    return Packed(compressed({"cards": index, "parts": names}), inline, files, facets)


def _batches(cards: Iterable[dict]) -> Iterator[list[dict]]:
    """Cards that are neighbours, with about PART_FACTS facts together."""
    some: list[dict] = []
    facts = 0
    for card in cards:
        some.append(card)
        facts += sum(len(r["facts"]) + 1 for r in card["responses"])
        if facts >= PART_FACTS:
            yield some
            some, facts = [], 0
    if some:
        yield some


def _line(card: dict, part: int) -> list:
    """A card in the index, with a line of `counted` for each response."""
    head = [card["topic"], card["split"], card["group"], part]
    return [*head, [counted(r) for r in card["responses"]]]


def counted(r: dict) -> list:
    """[model, sample, id, supported, not supported, without verdict, failed, marks]."""
    stated = [f for f in r["facts"] if "fact" in f]
    distinct = [f.get("supported") for f in stated if not f.get("repeated")]
    counts = [distinct.count(True), distinct.count(False), distinct.count(None)]
    marks = MARKS["error"] if "error" in r else 0
    for f in stated:
        judged = f.get("supported")
        if f.get("repeated"):
            marks |= MARKS["repeated"]
        if judged is not None and f.get("second", judged) != judged:
            marks |= MARKS["second"]
        if judged is not None and f.get("human") in ("S", "NS"):
            marks |= MARKS["human"] * ((f["human"] == "S") != judged)
    failed = len(r["facts"]) - len(stated)
    return [r["model"], r["sample"], r.get("id", ""), *counts, failed, marks]


def shared(cards: list[dict]) -> dict[str, Any]:
    """The cards without traces, with the texts of SHARED as numbers, and the list of the texts."""
    numbers: dict[str, int] = {}

    def fact(f: dict) -> dict:
        return {
            k: numbers.setdefault(v, len(numbers)) if k in SHARED else v
            for k, v in f.items()
            if k != "trace"
        }

    numbered = [
        {
            "prompt": c["prompt"],
            "responses": [r | {"facts": list(map(fact, r["facts"]))} for r in c["responses"]],
        }
        for c in cards
    ]
    return {"cards": numbered, "strings": list(numbers)}


def _traces(cards: list[dict]) -> dict[str, Any] | None:
    """fact_id -> numbers of its steps. A step that facts share, and a line that messages share, is
    stored once."""
    lines: dict[str, int] = {}
    numbers: dict[int, int] = {}  # id() of a step, which several facts hold
    steps: list[dict] = []
    of_fact: dict[str, list[int]] = {}

    def split(text: str) -> list[int]:
        return [lines.setdefault(line, len(lines)) for line in text.split("\n")]

    for f in (f for c in cards for r in c["responses"] for f in r["facts"] if f.get("trace")):
        for step in f["trace"]:
            if id(step) not in numbers:
                numbers[id(step)] = len(steps)
                steps.append(step | _in_lines(step, split))
        of_fact[f["id"]] = [numbers[id(step)] for step in f["trace"]]
    return {"lines": list(lines), "steps": steps, "facts": of_fact} if of_fact else None


def _in_lines(step: dict, split: Any) -> dict[str, Any]:
    """The messages and passages of a step with numbers of lines for their texts."""
    named = ("messages", "passages")
    return {k: [[name, split(text)] for name, text in step[k]] for k in named if k in step}


def _add(value: Any, to: dict[str, str]) -> str:
    """Compress a part. -> its name"""
    text = compressed(value)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    to[name] = text
    return name


def compressed(value: Any) -> str:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(data.encode(errors="replace"), 6, mtime=0)).decode()
