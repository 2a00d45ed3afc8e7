"""Facts of sentences that a spaCy pipeline parses (`facts.method=spacy`).

    parsed_facts(nlp, "Ada Lovelace", ["Born in London, she was a writer. She died in 1852."])

`syntax.py` splits a sentence. Here a quotation becomes one word, which the parser takes for a name,
and a bracket is set aside; both come back in the facts. A sentence without a clause that the parser
finds is split by the rules of `decompose.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from facttune_ray.text import syntax
from facttune_ray.text.clauses import CONNECTIVE, MARK
from facttune_ray.text.decompose import BULLET, finish, lifespan, mask, rule_facts, unmask
from facttune_ray.text.fragments import is_fragment

# The parser takes these for a name and a date, as it should take the masked text.
_NAME, _YEAR = "Casablanca", "1985"
_QUOTES = '"\u201c'
_MASK = re.compile(f"{MARK}\\d+{MARK}")
_SEMICOLON = re.compile(r";\s(?=(?:he|she|they|it|his|her|the)\s|[A-Z])")
_MOST_WORDS = 100


def parsed_facts(nlp: Any, topic: str, sentences: Sequence[str]) -> list[list[str]]:
    """Facts of each sentence of a response."""
    name = re.sub(r"\s*\([^)]*\)$", "", topic).strip() or topic
    jobs = [list(_prepare(nlp, s, name)) for s in sentences]
    docs = [job[0] for some in jobs for job in some if job[0] is not None]
    parsed = iter(list(nlp.pipe(docs)))
    out = []
    for sentence, some in zip(sentences, jobs, strict=True):
        raw: list[str] = []
        failed = not some
        for doc, shown, life in some:
            raw += life
            if doc is None:
                continue
            found = syntax.facts(syntax.Parsed(list(next(parsed)), shown), name)
            raw += found
            failed |= not found
        if failed:
            out.append(rule_facts(topic, sentence))
            continue
        done = [finish(f, name) for f in raw]
        out.append(list(dict.fromkeys(f for f in done if f and not is_fragment(f))))
    return out


def _prepare(nlp: Any, sentence: str, name: str) -> Iterator[tuple[Any, dict[int, str], list[str]]]:
    """(document to parse, its replaced words, facts of life dates) of each part of a sentence."""
    text = BULLET.sub("", " ".join(sentence.split()))
    if not re.search(r"\w", text) or text.endswith("?") or len(text.split()) > _MOST_WORDS:
        return
    text, life = lifespan(text.rstrip(" .!;:"))
    masked: list[str] = []
    text = mask(CONNECTIVE.sub("", text, count=1), masked, name)
    for part in _SEMICOLON.split(text):
        yield *_doc(nlp, part, masked), life
        life = []


def _doc(nlp: Any, text: str, masked: list[str]) -> tuple[Any, dict[int, str]]:
    """A document in which one plain word stands for each masked text, and token -> that text."""
    shown_at: dict[int, str] = {}
    asides: dict[int, str] = {}
    out, start = "", 0
    for match in _MASK.finditer(text):
        out += text[start : match.start()]
        start, whole = match.end(), unmask(match[0], masked)
        if whole[0] == "(":
            out = out.rstrip()
            asides[len(out)] = f" {whole}"
        else:
            shown_at[len(out)] = whole
            out += _YEAR if whole[-1].isdigit() and whole[0] not in _QUOTES else _NAME
    doc = nlp.make_doc(out + text[start:])
    for token in doc[1:]:
        token.is_sent_start = False
    shown = {t.i: shown_at[t.idx] for t in doc if t.idx in shown_at}
    for t in doc:
        if aside := asides.get(t.idx + len(t.text)):
            shown[t.i] = shown.get(t.i, t.text) + aside
    return doc, shown
