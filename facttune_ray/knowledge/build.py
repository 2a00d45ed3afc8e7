"""{title, text} articles -> the SQLite form of FActScore's knowledge sources.

in   {"title": "Mara Veldt", "text": ["Mara Veldt was born in ...", "..."]}   (or one string)
out  table documents(title PRIMARY KEY, text), passages joined by SEPARATOR

The database appears whole or not at all. A title given twice gets both texts.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from facttune_ray.errors import UserError

SEPARATOR = "####SPECIAL####SEPARATOR####"
PASSAGE_WORDS = 256  # a longer text is cut at sentence ends


def build(inputs: Sequence[str | Path], out: str | Path) -> int:
    """JSONL files -> database. -> number of titles; UserError names file and line."""
    return write((article for path in inputs for article in read_jsonl(path)), out)


def write(articles: Iterable[Mapping[str, Any]], out: str | Path) -> int:
    """Articles -> database, streamed. -> number of titles."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".tmp")
    unfinished.unlink(missing_ok=True)
    database = sqlite3.connect(unfinished)
    try:
        with database:
            database.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
            database.executemany(
                "INSERT INTO documents VALUES (?, ?) "
                f"ON CONFLICT (title) DO UPDATE SET text = text || '{SEPARATOR}' || excluded.text",
                ((a["title"], SEPARATOR.join(passages(a["text"]))) for a in articles),
            )
        (titles,) = database.execute("SELECT COUNT(*) FROM documents").fetchone()
    except sqlite3.OperationalError as e:
        raise UserError(f"cannot write {out}: {e}") from None
    finally:
        database.close()
    if not titles:
        unfinished.unlink()
        raise UserError(f"cannot build {out}: the input has no article")
    os.replace(unfinished, out)
    return titles


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Articles of one file; UserError names the file and the line that is wrong."""
    try:
        lines = open(path, encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise UserError(f"{path}:{number}: not JSON: {e}") from None
            if not isinstance(row, dict) or not isinstance(row.get("title"), str):
                raise UserError(f'{path}:{number}: needs "title": a string')
            text = row.get("text")
            listed = isinstance(text, list) and all(isinstance(p, str) for p in text)
            if not isinstance(text, str) and not listed:
                raise UserError(f'{path}:{number}: needs "text": a string or a list of strings')
            yield row


def passages(text: str | Sequence[str]) -> list[str]:
    """A list as it is; a string cut at sentence ends into passages of PASSAGE_WORDS at most."""
    if not isinstance(text, str):
        return list(text)
    out: list[str] = []
    held: list[str] = []
    count = 0
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        words = len(sentence.split())
        if held and count + words > PASSAGE_WORDS:
            out.append(" ".join(held))
            held, count = [], 0
        held.append(sentence)
        count += words
    return [*out, " ".join(held)]
