"""Split the sentences of a response into facts with spaCy's parse (`facts.method=spacy`).

    parsed_facts(nlp, [("Ada Lovelace", ["Born in London, she was a writer.", "She died."])])
        ->  ["Ada Lovelace was a writer.", "Ada Lovelace was born in London."],
            ["Ada Lovelace died."]

`parsed_clauses.py` reads the parse. Before that, each quotation, date, place and longer name is
replaced by one word, because the parser often cuts them, and brackets are set aside. A sentence
without a clear parse is split by the rules of `decompose.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facttune_ray.text.clauses import CAPS, CONNECTIVE, MARK
from facttune_ray.text.decompose import bare_sentence, finish, lifespan, mask, rule_facts, unmask
from facttune_ray.text.fragments import is_fragment
from facttune_ray.text.parsed_clauses import read_sentence
from facttune_ray.text.parsed_lists import NATION
from facttune_ray.text.parsed_tree import Parsed
from facttune_ray.text.quantities import MONTHS

# The parser takes these for a name and a year; they stand for masked texts.
_NAME, _YEAR = "Casablanca", "1985"
_MASK = re.compile(f"{MARK}\\d+{MARK}")
_NAMES = re.compile(rf"(?<=\s){CAPS}(?::\s{CAPS})?")
_SEMICOLON = re.compile(r";\s(?=(?:he|she|they|it|his|her|the)\s|[A-Z])")
_MOST_WORDS, _MOST_CHARACTERS = 100, 2_000  # a longer sentence is a list or a repetition


@dataclass(slots=True)
class _Part:
    """A sentence or, where it has a semicolon, a part of it."""

    doc: Any  # to be parsed
    shown: Mapping[int, str]  # token index -> the placeholder of `decompose.mask`
    masked: list[str]  # the texts of the placeholders
    life: list[str]  # facts of dates in brackets


def parsed_facts(nlp: Any, responses: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[str]]:
    """Yield the facts of each sentence of (topic, sentences), in order.

    `nlp`: of `pipelines.load_for_facts`; it parses the sentences of all responses in batches.
    """
    prepared = [
        (topic, _bare(topic), [(s, [*_parts(nlp, s, _bare(topic))]) for s in sentences])
        for topic, sentences in responses
    ]
    docs = nlp.pipe(part.doc for *_, some in prepared for _, parts in some for part in parts)
    for topic, name, some in prepared:
        thing = ""  # what "it" means in the next sentence
        for sentence, parts in some:
            facts, thing = _facts(parts, docs, name, thing)
            yield facts or rule_facts(topic, sentence)


def _bare(topic: str) -> str:
    """The topic without its last bracket."""
    return re.sub(r"\s*\([^)]*\)$", "", topic).strip() or topic


def _facts(parts: list[_Part], docs: Iterator, name: str, thing: str) -> tuple[list[str], str]:
    """(facts, what "it" means next) of the parts of a sentence; no facts where one is unclear."""
    facts: list[str] = []
    clear = bool(parts)
    for part in parts:
        found, thing = read_sentence(Parsed(list(next(docs)), part.shown), name, thing)
        thing = unmask(thing, part.masked)
        clear = clear and bool(found)
        facts += [finish(unmask(text, part.masked), name) for text in [*part.life, *found]]
    if not clear:
        return [], ""
    return [f for f in dict.fromkeys(facts) if f and not is_fragment(f)], thing


def _parts(nlp: Any, sentence: str, name: str) -> Iterator[_Part]:
    """Yield the parts of a sentence; none where only the rules may split it."""
    masked: list[str] = []
    text = bare_sentence(sentence)
    if not re.search(r"\w", text) or text.endswith("?"):
        return
    if len(text.split()) > _MOST_WORDS or len(text) > _MOST_CHARACTERS:
        return
    text, life = lifespan(text.rstrip(" .!;:"))
    text = CONNECTIVE.sub("", text, count=1).replace(", however,", ",")
    text = mask(text, masked, name)

    def placeholder(match: re.Match[str]) -> str:
        words = match[0].split()
        own = set(words) & set(name.split()) or any(w.lower() in MONTHS for w in words)
        if len(words) < 2 or own or NATION.fullmatch(words[-1]) or words[-1].endswith("'s"):
            return match[0]
        masked.append(match[0])
        return f"{MARK}{len(masked) - 1}{MARK}"

    for part in _SEMICOLON.split(_NAMES.sub(placeholder, text)):
        if part.strip():
            yield _Part(*_doc(nlp, part, masked), masked, life)
            life = []


def _doc(nlp: Any, text: str, masked: list[str]) -> tuple[Any, dict[int, str]]:
    """(document in which one word stands for each masked text, token index -> placeholder)."""
    shown_at: dict[int, str] = {}  # by characters
    asides: dict[int, str] = {}
    out, start = "", 0
    for match in _MASK.finditer(text):
        out += text[start : match.start()]
        start, whole = match.end(), unmask(match[0], masked)
        if whole[0] == "(":  # it stays behind its word
            out = out.rstrip()
            asides[len(out)] = f" {match[0]}"
            continue
        shown_at[len(out)] = match[0]
        last = whole.split()[-1]
        dated = whole[-1].isdigit() and whole.split()[0].lower() in MONTHS
        out += _YEAR if dated else last if last.isalpha() else _NAME
    doc = nlp.make_doc(out + text[start:])
    for token in doc[1:]:
        token.is_sent_start = False
    shown = {t.i: shown_at[t.idx] for t in doc if t.idx in shown_at}
    for token in doc:
        if aside := asides.get(token.idx + len(token.text)):
            shown[token.i] = shown.get(token.i, token.text) + aside
    return doc, shown
