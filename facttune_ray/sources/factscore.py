"""FActScore's files: its input and labelled JSONL, and its scores over table rows.

    read("ChatGPT.jsonl")
        {"topic": "Lanny Flaherty", "input": "Question: Tell me a ...", "output": "Lanny ...",
         "annotations": [{"text": "Lanny Flaherty is an American actor.",
                          "human-atomic-facts": [{"text": "... is an actor.", "label": "S"}]}]}
    ->  Record(topic="Lanny Flaherty", ..., sentences=(Sentence(text, (("... actor.", "S"),)),))

    aggregate([[True, False], None], gamma=10)  ->  Summary(score=0.009, ...)

`annotations` is null where the model abstained; a file without labels has no such key. Labels are
S (supported), NS (not supported) and IR (irrelevant).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facttune_ray.errors import RowError, UserError
from facttune_ray.scoring.factscore import Summary, summarise
from facttune_ray.sources.topic_files import Rows, by_response, facts_by_response
from facttune_ray.storage import records
from facttune_ray.storage.folders import join

LABELS = {"S", "NS", "IR"}


@dataclass(frozen=True)
class Sentence:
    text: str
    human_facts: tuple[tuple[str, str], ...]  # (fact, label)
    model_facts: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One response and its labels."""

    topic: str
    prompt: str
    response: str
    abstained: bool | None  # None: the file does not say
    sentences: tuple[Sentence, ...]
    group: str | None = None  # how rare the topic is in FActScore's release: "very rare"


# ---------------------------------------------------------------- labelled and input JSONL


def read(path: str | Path, key: str = "data.folder and data.files") -> Iterator[Record]:
    """Records of one file in order. UserError `FILE:LINE: ...` at the first wrong line.

    `key`: the setting that the error for a missing file names.
    """
    for where, row in records.read(str(path), key):
        try:
            yield _record(row)
        except RowError as e:
            raise UserError(f"{where}: {e}") from None


def read_all(folder: str | Path, files: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """(model, record) of several files. The model is the file's name without its ending; UserError
    when two files give the same model."""
    if not files:
        raise UserError("data.files is empty: name at least one labelled JSONL file")
    named: dict[str, str] = {}
    for file in files:
        if (other := named.setdefault(Path(file).stem, file)) != file:
            raise UserError(f"{other} and {file}: both are model {Path(file).stem}: rename one")
    for file in files:
        for record in read(join(str(folder), file)):
            yield Path(file).stem, record


def _record(row: records.Row) -> Record:
    annotations = row.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        raise RowError('"annotations" must be a list or null')
    return Record(
        topic=_text(row, "topic"),
        prompt=_text(row, "input") if "input" in row else f"Tell me a bio of {row['topic']}.",
        response=_text(row, "output"),
        abstained=annotations is None if "annotations" in row else None,
        sentences=tuple(_sentence(s) for s in annotations or []),
        group=_group(row.get("cat")),
    )


def _group(cat: Any) -> str | None:
    """The first of ["very rare", "North America"]; a user's own file may hold a plain string."""
    first = cat[0] if isinstance(cat, list) and cat else cat
    return first if isinstance(first, str) else None


def _sentence(row: Any) -> Sentence:
    if not isinstance(row, dict):
        raise RowError("each annotation must be an object")
    human = [(_text(f, "text"), _text(f, "label")) for f in _facts(row, "human-atomic-facts")]
    for _, label in human:
        if label not in LABELS:
            raise RowError(f'label "{label}" is none of S, NS, IR')
    model = tuple(_text(f, "text") for f in _facts(row, "model-atomic-facts"))
    return Sentence(_text(row, "text"), tuple(human), model)


def _facts(row: dict, key: str) -> list:
    facts = row.get(key) or []
    if not isinstance(facts, list):
        raise RowError(f'"{key}" must be a list or null')
    return facts


def _text(row: Any, key: str) -> str:
    if not isinstance(row, dict) or key not in row:
        raise RowError(f'"{key}" is missing')
    if not isinstance(row[key], str):
        raise RowError(f'"{key}" must be a string')
    return row[key]


def given_facts(
    record: Record, which: Literal["model", "human"] = "model"
) -> list[tuple[str, tuple[tuple[str, str | None], ...]]]:
    """(sentence, (fact, label)s) that stand in the file. FActScore's --use_atomic_facts takes the
    "model" facts, which have no labels (None).

    UserError for a record without annotations.
    """
    if record.abstained is None:
        raise UserError(
            f'"{record.topic}" has no "annotations" to take facts from: let facts.method make them'
        )
    if which == "human":
        return [(s.text, s.human_facts) for s in record.sentences]
    return [(s.text, tuple((fact, None) for fact in s.model_facts)) for s in record.sentences]


def jsonl(responses: Rows, facts: Rows) -> Iterator[str]:
    """Rows of `responses` and `facts` of one shard as lines of FActScore's JSONL.

    Every fact is written as a model-atomic-fact; a fact with a human label is a human-atomic-fact
    as well. Failed responses and failed sentences are left out.
    """
    facts_of = facts_by_response(facts)
    for r in responses:
        if r["text"] is None:
            continue
        rows = facts_of[r["response_id"]]
        abstained = r["abstained"] or any(f["abstained"] for f in rows)
        line = {
            "topic": r["topic"],
            "input": r["prompt"],
            "output": r["text"],
            "annotations": None if abstained else _annotations(rows),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _annotations(facts: Rows) -> list[dict]:
    sentences: dict[Any, dict] = {}
    for f in facts:
        if f["fact"] is None:
            continue
        annotation = sentences.setdefault(
            f["sentence"], {"text": f["sentence_text"], "model-atomic-facts": []}
        )
        annotation["model-atomic-facts"].append({"text": f["fact"]})
        if f["human_label"] is not None:
            labelled = {"text": f["fact"], "label": f["human_label"]}
            annotation.setdefault("human-atomic-facts", []).append(labelled)
    return list(sentences.values())


# ---------------------------------------------------------------- scores


def aggregate(decisions: Iterable[Sequence[bool | None] | None], gamma: float) -> Summary:
    """FActScore over the decisions of each response; None or no decision: the response abstained.

    A decision None (the topic has no article) is in no score, but its fact counts among the facts
    per response.
    """
    responses = (d or () for d in decisions)
    return summarise(((d.count(True), len(d) - d.count(None), len(d)) for d in responses), gamma)


def decisions(responses: Rows, facts: Rows, verdicts: Rows) -> Iterator[list[bool | None] | None]:
    """The input of `aggregate` from the rows of one shard; the results of shards can be chained.

    A response is left out when it failed, or when all its sentences failed.
    """
    supported = {v["fact_id"]: v["supported"] for v in verdicts}
    facts_of = by_response(facts)
    for r in responses:
        rows = facts_of[r["response_id"]]
        decided = [supported.get(f["fact_id"]) for f in rows if f["fact"] is not None]
        failed = any(f["error"] is not None for f in rows if f["fact"] is None)
        if r["text"] is not None and (decided or not failed):
            yield decided or None
