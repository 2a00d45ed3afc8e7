"""FActScore's files: its input and labelled JSONL, decisions as it writes them, its scores.

in   {"topic": "Lanny Flaherty", "input": "Question: Tell me a bio of ...", "output": "Lanny ...",
      "annotations": [{"text": "Lanny Flaherty is an American actor.",
                       "human-atomic-facts": [{"text": "... is an actor.", "label": "S"}]}]}
out  Record(topic="Lanny Flaherty", ..., sentences=(Sentence(text, (("... actor.", "S"),)),))

`annotations` is null where the model abstained; a file without labels has no such key. Labels: S
supported, NS not, IR irrelevant.

aggregate([[True, False], None], gamma=10)  ->  Summary(score=0.009, ...)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facttune_ray.errors import UserError, one_line
from facttune_ray.scoring.factscore import Summary, summarise
from facttune_ray.sources.records import in_line, loads
from facttune_ray.storage.folders import Folder, explain, join

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
    group: str | None = None  # how rare the topic is, as FActScore's release says it: "very rare"


# ---------------------------------------------------------------- labelled and input JSONL


def read(path: str | Path) -> Iterator[Record]:
    """Records of one file in order. UserError `FILE:LINE: ...` at the first that is wrong."""
    try:
        lines = io.TextIOWrapper(_open(str(path)), encoding="utf-8-sig")
    except OSError as e:
        raise UserError(f"{path}: {_why(e)}: check data.folder and data.files") from None
    number = found = 0
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            found += 1
            try:
                yield _record(loads(line.rstrip()))
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8") from None
            except (ValueError, RecursionError) as e:
                raise UserError(f"{path}:{number}: not JSON: {in_line(e)}") from None
            except (KeyError, TypeError) as e:
                raise UserError(f"{path}:{number}: {e.args[0]}") from None
    if not found:
        raise UserError(f"{path}: the file is empty")


def read_all(folder: str | Path, files: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """(model, record) of several files; the model is the file's name without its ending. UserError
    when two have the same."""
    if not files:
        raise UserError("data.files is empty: name at least one labelled JSONL file")
    named: dict[str, str] = {}
    for file in files:
        if (other := named.setdefault(Path(file).stem, file)) != file:
            raise UserError(f"{other} and {file}: both are model {Path(file).stem}: rename one")
    for file in files:
        for record in read(join(str(folder), file)):
            yield Path(file).stem, record


def file_digest(folder: str | Path, file: str) -> str:
    """Hash of a file's content, for recipes; UserError when it is missing."""
    path = join(str(folder), file)
    try:
        with _open(path) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()[:16]
    except OSError as e:
        raise UserError(f"{path}: {_why(e)}: check data.folder and the file's name") from None


def _open(path: str) -> Any:
    """A file, for reading bytes."""
    if "://" not in path:
        return open(path, "rb")
    file = Folder.of(path)
    return file.fs.open_input_stream(file.path)


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else explain(error) or one_line(error)


def _record(row: Any) -> Record:
    if not isinstance(row, dict):
        raise TypeError("expected an object {topic, input, output, annotations}")
    annotations = row.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        raise TypeError('"annotations" must be a list or null')
    return Record(
        topic=_text(row, "topic"),
        prompt=_text(row, "input") if "input" in row else f"Tell me a bio of {row['topic']}.",
        response=_text(row, "output"),
        abstained=annotations is None if "annotations" in row else None,
        sentences=tuple(_sentence(s) for s in annotations or []),
        group=_group(row.get("cat")),
    )


def _group(cat: Any) -> str | None:
    """Of ["very rare", "North America"] the first; a file of one's own may hold a string."""
    first = cat[0] if isinstance(cat, list) and cat else cat
    return first if isinstance(first, str) else None


def _sentence(row: Any) -> Sentence:
    if not isinstance(row, dict):
        raise TypeError("each annotation must be an object")
    human = [(_text(f, "text"), _text(f, "label")) for f in row.get("human-atomic-facts") or []]
    for _, label in human:
        if label not in LABELS:
            raise TypeError(f'label "{label}" is none of S, NS, IR')
    model = [_text(f, "text") for f in row.get("model-atomic-facts") or []]
    return Sentence(_text(row, "text"), tuple(human), tuple(model))


def _text(row: Any, key: str) -> str:
    if not isinstance(row, dict) or key not in row:
        raise KeyError(f'"{key}" is missing')
    if not isinstance(row[key], str):
        raise TypeError(f'"{key}" must be a string')
    return row[key]


def given_facts(
    record: Record, which: Literal["model", "human"] = "model"
) -> list[tuple[str, tuple[tuple[str, str | None], ...]]]:
    """(sentence, (fact, label)s) that the file brings; FActScore's --use_atomic_facts takes
    "model", whose facts have no labels.

    UserError when the file has none, as a record without labels.
    """
    if record.abstained is None:
        raise UserError(
            f'"{record.topic}" has no "annotations" to take facts from: let facts.method make them'
        )
    if which == "human":
        return [(s.text, s.human_facts) for s in record.sentences]
    return [(s.text, tuple((fact, None) for fact in s.model_facts)) for s in record.sentences]


def jsonl(responses: Iterable[dict], facts: Iterable[dict]) -> Iterator[str]:
    """Rows of `responses` and `facts` as lines of FActScore's JSONL, of one shard at a time.

    Facts are written as model-atomic-facts, those with a human label as human-atomic-facts too.
    Failed responses are left out, and so are sentences that failed.
    """
    by_response: dict[str, list[dict]] = {}
    for f in facts:
        by_response.setdefault(f["response_id"], []).append(f)
    for r in responses:
        if r["text"] is None:
            continue
        found = sorted(by_response.get(r["response_id"], []), key=lambda f: f["position"])
        line = {
            "topic": r["topic"],
            "input": r["prompt"],
            "output": r["text"],
            "annotations": None if _declined(r, found) else _annotations(found),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _declined(response: dict, facts: Iterable[dict]) -> bool:
    return bool(response["abstained"]) or any(f["abstained"] for f in facts)


def _annotations(facts: Iterable[dict]) -> list[dict]:
    sentences: dict[Any, dict] = {}
    for f in facts:
        if f["fact"] is None:
            continue
        one = sentences.setdefault(
            f["sentence"], {"text": f["sentence_text"], "model-atomic-facts": []}
        )
        one["model-atomic-facts"].append({"text": f["fact"]})
        if f["human_label"] is not None:
            labelled = {"text": f["fact"], "label": f["human_label"]}
            one.setdefault("human-atomic-facts", []).append(labelled)
    return list(sentences.values())


# ---------------------------------------------------------------- scores


def aggregate(decisions: Iterable[Sequence[bool | None] | None], gamma: float) -> Summary:
    """FActScore over responses: each one's decisions, None (or no facts) where it abstained. A
    decision None (no article) is in no score, but its fact is among the facts per response."""
    found = (one or () for one in decisions)
    return summarise(((d.count(True), len(d) - d.count(None), len(d)) for d in found), gamma)


def decisions(
    responses: Iterable[dict], facts: Iterable[dict], verdicts: Iterable[dict]
) -> Iterator[list[bool | None] | None]:
    """What `aggregate` takes, from the rows of one shard; shards can be chained.

    A response that failed, or whose sentences all failed, says nothing and is left out.
    """
    supported = {v["fact_id"]: v["supported"] for v in verdicts}
    found: dict[str, list[bool | None]] = {}
    failed = set()
    for f in facts:
        if f["fact"] is not None:
            found.setdefault(f["response_id"], []).append(supported.get(f["fact_id"]))
        elif f["error"] is not None:
            failed.add(f["response_id"])
    for r in responses:
        key = r["response_id"]
        if r["text"] is not None and (key in found or key not in failed):
            yield found.get(key)


def read_decisions(row: Any) -> tuple[tuple[str, bool | None], ...] | None:
    """One response's decisions. KeyError, TypeError for another form."""
    if row is None:
        return None
    if not isinstance(row, list):
        raise TypeError("decisions of a response must be a list or null")
    for d in row:
        supported = d["is_supported"] if isinstance(d, dict) else d
        if not isinstance(supported, bool | None):
            raise TypeError(f'"is_supported" is {supported!r:.40}, none of true, false and null')
    return tuple((_text(d, "atom"), d["is_supported"]) for d in row)
