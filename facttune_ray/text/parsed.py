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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from facttune_ray.text.clauses import CAPS, CONNECTIVE, MARK
from facttune_ray.text.decompose import bare_sentence, finish, lifespan, mask, rule_facts, unmask
from facttune_ray.text.fragments import is_fragment
from facttune_ray.text.parsed_checks import PLACEHOLDER, holds_all
from facttune_ray.text.parsed_clauses import read_sentence
from facttune_ray.text.parsed_lists import NATION
from facttune_ray.text.parsed_tree import Parsed
from facttune_ray.text.quantities import MONTHS

# The parser takes these for a name and a year; they stand for masked texts.
_NAME, _YEAR = "Casablanca", "1985"
_NAMES = re.compile(rf"(?<=\s){CAPS}(?::\s{CAPS})?")
_SEMICOLON = re.compile(r";\s(?=(?:he|she|they|it|his|her|the)\s|[A-Z])")
_MOST_WORDS, _MOST_CHARACTERS = 100, 2_000  # a longer sentence is a list or a repetition


@dataclass(slots=True)
class _Part:
    """A sentence or, where it has a semicolon, a part of it."""

    text: str  # with placeholders of `decompose.mask`
    doc: Any  # to be parsed
    shown: dict[int, str]  # token index -> its placeholder
    titles: set[int]  # the tokens that stand for quotations
    masked: list[str]  # the texts of the placeholders
    life: list[str]  # facts of dates in brackets


def parsed_facts(nlp: Any, responses: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[str]]:
    """Yield the facts of each sentence of (topic, sentences), in order.

    `nlp`: of `pipelines.load_for_facts`; it parses the sentences of all responses in batches.
    """
    prepared = [
        (topic, _bare(topic), [(s, _parts(nlp, s, _bare(topic))) for s in sentences])
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
        parsed = Parsed(list(next(docs)), part.shown, part.titles)
        found, thing = read_sentence(parsed, name, thing)
        thing = unmask(thing, part.masked)
        clear = clear and bool(found) and holds_all(found, part.text)
        facts += [finish(unmask(text, part.masked), name) for text in [*part.life, *found]]
    if not clear:
        return [], ""
    return [f for f in dict.fromkeys(facts) if f and not is_fragment(f, has_verb=True)], thing


def _parts(nlp: Any, sentence: str, name: str) -> list[_Part]:
    """The parts of a sentence; none where only the rules may split it."""
    masked: list[str] = []
    text = bare_sentence(sentence)
    if not re.search(r"\w", text) or text.endswith("?"):
        return []
    if len(text.split()) > _MOST_WORDS or len(text) > _MOST_CHARACTERS:
        return []
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

    parts: list[_Part] = []
    for piece in filter(str.strip, _SEMICOLON.split(_NAMES.sub(placeholder, text))):
        part = _part(nlp, piece, masked)
        if part is None:
            return []
        parts.append(part)
    if parts:
        parts[0].life = life
    return parts


def _part(nlp: Any, text: str, masked: list[str]) -> _Part | None:
    """A part in whose document one word stands for each masked text. Brackets stay behind the word
    before them; None where a masked text has no word of its own."""
    spans: dict[tuple[int, int], str] = {}  # first and last character -> placeholder
    asides: dict[int, str] = {}  # end of a word -> placeholders of brackets
    out, start = "", 0
    for match in PLACEHOLDER.finditer(text):
        out += text[start : match.start()]
        start, whole = match.end(), unmask(match[0], masked)
        if whole[0] == "(":
            if out[-1:] != " ":
                return None  # at the start, or "Ca(OH)2"
            # Of two brackets the second has a space behind the first's word, too.
            at = len(out.rstrip())
            out, asides[at] = out[:at], f"{asides.get(at, '')} {match[0]}"
            continue
        last = whole.split()[-1]
        dated = whole[-1].isdigit() and whole.split()[0].lower() in MONTHS
        word = _YEAR if dated else last if last.isalpha() else _NAME
        spans[len(out), len(out) + len(word)] = match[0]
        out += word
    doc = nlp.make_doc(out + text[start:])
    for token in doc[1:]:
        token.is_sent_start = False
    shown: dict[int, str] = {}
    titles: set[int] = set()
    for token in doc:
        end = token.idx + len(token.text)
        if placeholder := spans.pop((token.idx, end), None):
            shown[token.i] = placeholder
            if unmask(placeholder, masked)[0] in '"\u201c':
                titles.add(token.i)
        if aside := asides.pop(end, None):
            shown[token.i] = shown.get(token.i, token.text) + aside
    return None if spans or asides else _Part(text, doc, shown, titles, masked, [])
