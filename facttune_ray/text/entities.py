"""Noun chunks of a text, found by spaCy. Each is a unit of confidence.

    nlp = pipelines.load("entities.spacy_model", "en_core_web_sm")
    extract(nlp, ["Mara Veldt was born in Ostrava. She plays the cello."])
    ->  [[Entity("Ostrava", 23, 30), Entity("the cello", 42, 51)]]

Subjects are left out, because almost any text could replace a subject; so are pronouns and the head
of a sentence without a verb. The pipeline needs a dependency parser and parts of speech.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entity:
    text: str
    start: int  # characters start..end-1 of the parsed text
    end: int


PREFIX_CHARS = 200  # context for a judge of equivalence
SUBJECTS = {"nsubj", "nsubjpass", "nsubj:pass", "ROOT"}
POINTERS = {"which", "that", "it", "this"}

# List marks, which are layout and no words: "\n- the cello", "2. the cello", "the cello\n*".
_MARK = r"(?:[-*+>#\u2022\u2013\u2014\u00b7]+|\d{1,3}[.)])"
_LEADING = re.compile(rf"\s*(?:{_MARK}\s+)?")


def noun_chunks(doc: Any) -> list[Entity]:
    """Entities of a parsed spaCy `Doc`, in text order, with their determiners."""
    chunks = (
        _trimmed(doc.text, chunk.start_char, chunk.end_char)
        for chunk in doc.noun_chunks
        if chunk.root.dep_ not in SUBJECTS and chunk.root.pos_ != "PRON"
    )
    return [e for e in chunks if e.text.lower() not in POINTERS and any(map(str.isalnum, e.text))]


def _trimmed(text: str, start: int, end: int) -> Entity:
    """Strip spaces and list marks at both ends. A list mark is first in its line."""
    chunk = text[start:end].rstrip()
    head, _, last = chunk.rpartition("\n")
    if re.fullmatch(_MARK, last.strip()) and "\n" in chunk:  # a mark of the next list item
        chunk = head.rstrip()
    inside = text[text.rfind("\n", 0, start) + 1 : start].strip()
    lead = _LEADING.match(chunk)
    assert lead is not None  # it matches the empty string
    kept = chunk.lstrip() if inside and "\n" not in lead[0] else chunk[lead.end() :]
    start += len(chunk) - len(kept)
    return Entity(kept, start, start + len(kept))


def extract(nlp: Any, texts: Sequence[str]) -> list[list[Entity] | None]:
    """Entities of each text; None for a text longer than `nlp.max_length` characters."""
    fit = [t for t in texts if t.strip() and len(t) <= nlp.max_length]
    parsed = iter([noun_chunks(doc) for doc in nlp.pipe(fit)])
    none: list[Entity] = []
    return [
        none if not t.strip() else next(parsed) if len(t) <= nlp.max_length else None for t in texts
    ]


def before(text: str, start: int, limit: int = PREFIX_CHARS) -> str:
    """The text before an entity: at most its last `limit` characters, cut at a word's begin."""
    text = text[:start].rstrip()
    if len(text) <= limit:
        return text
    last = text[-limit - 1 :]  # one character more shows whether a word begins at the limit
    space = re.search(r"\s+", last)
    return last[space.end() :] if space else last[1:]
