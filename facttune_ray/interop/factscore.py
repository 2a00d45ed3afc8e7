"""FActScore's labelled JSONL, read as it is.

in   {"topic": "Lanny Flaherty", "input": "Question: Tell me a bio of ...", "output": "Lanny ...",
      "annotations": [{"text": "Lanny Flaherty is an American actor.",
                       "human-atomic-facts": [{"text": "... is an actor.", "label": "S"}]}]}
out  Record(topic="Lanny Flaherty", ..., sentences=(Sentence(text, (("... actor.", "S"),)),))

`annotations` is null where the model abstained. Labels: S supported, NS not, IR irrelevant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facttune_ray.errors import UserError

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
    abstained: bool
    sentences: tuple[Sentence, ...]


def read(path: str | Path) -> Iterator[Record]:
    """Records of one file in order. UserError `FILE:LINE: ...` at the first that is wrong."""
    try:
        lines = open(path, encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}: check data.folder and data.files") from None
    number = 0
    with lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _record(json.loads(line))
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8") from None
            except ValueError as e:
                raise UserError(f"{path}:{number}: not JSON: {e}") from None
            except (KeyError, TypeError) as e:
                raise UserError(f"{path}:{number}: {e.args[0]}") from None
    if not number:
        raise UserError(f"{path}: the file is empty")


def read_all(folder: str | Path, files: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """(model, record) of several files; the model is the file's name without its ending."""
    if not files:
        raise UserError("data.files is empty: name at least one labelled JSONL file")
    for file in files:
        for record in read(Path(folder) / file):
            yield Path(file).stem, record


def file_digest(folder: str | Path, file: str) -> str:
    """Hash of a file's content, for recipes; UserError when it is missing."""
    path = Path(folder) / file
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()[:16]
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}: check data.folder and the file's name") from None


def _record(row: Any) -> Record:
    if not isinstance(row, dict):
        raise TypeError("expected an object {topic, input, output, annotations}")
    annotations = row.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        raise TypeError('"annotations" must be a list or null')
    return Record(
        topic=_text(row, "topic"),
        prompt=_text(row, "input"),
        response=_text(row, "output"),
        abstained=annotations is None,
        sentences=tuple(_sentence(s) for s in annotations or []),
    )


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
