"""Keep the facts of a sentence that say what the sentence says (FActScore, biographies).

    clean("She studied at Lyon Conservatory in 1970.",
          ["Mara Veldt studied.", "Mara Veldt studied at Lyon.", "Mara Veldt studied in 1970.",
           "Mara Veldt studied in Paris."], by_rules, known=["Mara Veldt"])
        ->  ["Mara Veldt studied at Lyon Conservatory.", "Mara Veldt studied in 1970."]

Three repairs of an LLM's facts: drop a fact with a name, date or number that the sentence lacks;
restore a truncated name; drop a truncated fact ("Mara Veldt was born.") that another fact
continues. Entities come from spaCy if it is installed, else from rules: capitalised words, dates
and numbers of English.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from facttune_ray.text import pipelines
from facttune_ray.text.quantities import MONTHS, NUMBERS, ORDINALS, SHORT_MONTHS


@dataclass(frozen=True)
class Entities:
    """The entities that a text mentions, as substrings of the text, in order."""

    text: str
    names: tuple[str, ...] = ()  # people, places, organisations, works, nationalities
    dates: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


Parser = Callable[[str], Entities]


def clean(
    sentence: str, facts: Sequence[str], entities: Parser, known: Sequence[str] = ()
) -> list[str]:
    """The supported facts, in order, without repeats and with complete names.

    `known`: other texts whose entities a fact may mention: the topic, the text before the
    sentence. `entities`: `by_rules`, or the result of `load`.
    """
    in_sentence = entities(sentence)
    names = [*in_sentence.names, *(n for text in known for n in (text, *entities(text).names))]
    words = _words(" ".join([sentence, *known]))
    kept = []
    for fact in facts:
        in_fact = entities(fact)
        fact, fact_names = _restored(fact, in_fact.names, in_sentence.names, names)
        parts = (*fact_names, *in_fact.dates, *in_fact.numbers)
        if all(w in words or _inflected(w, words) for part in parts for w in _words(part)):
            kept.append(fact)
    return _without_truncated(list(dict.fromkeys(kept)))


def _restored(
    fact: str, fact_names: Iterable[str], sentence_names: Sequence[str], names: Sequence[str]
) -> tuple[str, list[str]]:
    """(fact, its names) with each truncated name completed from the sentence's names."""
    complete = {_plain(n) for n in names}
    out = []
    for name in fact_names:
        before, _, after = fact.partition(name)
        if _plain(name) not in complete and name in fact:
            full = next((n for n in sentence_names if _is_cut(name, n, before, after)), None)
            fact, name = (before + full + after, full) if full else (fact, name)
        out.append(name)
    return fact, out


def _is_cut(name: str, full: str, before: str, after: str) -> bool:
    """Whether `name`, between these texts, is a truncated form of `full`.

    A name may end within a word: "in Lyo" for "Lyon". It may end between words only at the fact's
    end: "at Lyon." for "Lyon Conservatory". "She is British." does not truncate "British Museum",
    and "Minister" does not truncate "Minister of Trade".
    """
    short, full = _plain(name), _plain(full)
    rest = full[len(short) :]
    if not short or not rest or not full.startswith(short):
        return False
    if rest[0].isalnum():
        return not _FORM.match(rest)
    last = before.split()[-1:] or [""]
    return not after.strip(" .") and not _JOINS.match(rest) and last[0].lower() not in _BEFORE_KIND


_FORM = re.compile(r"(?:e?s|n|an|ian|ish|ese)\b")  # "Prize", "Prizes"; "India", "Indian"
_JOINS = re.compile(r"[ -](?:of|for|and|in|at|the|de|born|based|&)\b|[',(]")
_BEFORE_KIND = set("is was are were be been a an as".split())


# A fact that ends on one of these words is truncated if another fact continues it.
_DANGLING = set(
    "born raised appointed elected named known described characterized characterised regarded "
    "considered recognized recognised praised member advocate educated trained nominated "
    "awarded studied worked appeared served became received won played is was has had a an "
    "the in on at of for to by with as and".split()
)


def _without_truncated(facts: list[str]) -> list[str]:
    """Drop a fact that ends on a dangling word when another fact starts with all of its words."""
    listed = [_plain(f).split() for f in facts]
    starts = {tuple(w[:i]) for w in listed for i in range(1, len(w))}
    return [
        fact
        for fact, words in zip(facts, listed, strict=True)
        if not (words and words[-1] in _DANGLING and tuple(words) in starts)
    ]


# ---------------------------------------------------------------- words

_WORD = re.compile(r"\d[\d,]*(?:\.\d+)?(?=s\b)|\d[\d,]*(?:\.\d+)?|[^\W\d_]+")
# "two" -> "2", "jan" -> "january"; the rules know numbers up to twenty and ordinals up to tenth
_SAME = (
    {word: str(n) for word, n in NUMBERS.items() if n <= 20}
    | {word: nth.removesuffix("th") for word, nth in [*ORDINALS.items()][1:11]}
    | SHORT_MONTHS
)
_EMPTY = set("a an the of s st nd rd th in on at and to from".split())


def _plain(text: str) -> str:
    """The text in lower case, without accents, end marks, possessives and a leading "the"."""
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'")).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"'s\b", "", text)
    return " ".join(text.split()).strip(" .,;:!?\"'\u201c\u201d()").removeprefix("the ")


def _inflected(word: str, words: set[str]) -> bool:
    """Whether `words` has another form: "Cups" of "Cup", "Argentine" of "Argentinian"."""
    if f"{word}s" in words or (word.endswith("s") and word[:-1] in words):
        return True
    stem = word[: max(4, len(word) - 3)]
    return len(word) > 4 and not word[0].isdigit() and any(w.startswith(stem) for w in words)


def _words(text: str) -> set[str]:
    """Content words and numbers in one form: "two" and "2", "Jan." and "January" are the same."""
    words = (w.replace(",", "") if w[0].isdigit() else w for w in _WORD.findall(_plain(text)))
    return {_SAME.get(w, w) for w in words} - _EMPTY


# ---------------------------------------------------------------- entities

_MONTH = rf"(?:{'|'.join(m[:3].title() for m in MONTHS)})[a-z]*\.?"
_DATE = re.compile(
    rf"{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{3,4}}|\d{{1,2}} {_MONTH},? \d{{3,4}}"
    rf"|{_MONTH} \d{{1,4}}\b|\b\d{{1,2}} {_MONTH}(?!\w)|\b\d{{4}}-\d{{2}}-\d{{2}}\b"
    r"|\b(?:1\d|20)\d\ds?\b(?![,.]\d)"
)
_NUMBER = re.compile(
    r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th|%)?(?!\w)|\b(?:two|three|four|five|six|seven|eight"
    r"|nine|ten|eleven|twelve|thirteen|fifteen|twenty)\b",
    re.I,
)
_CAPITAL = r"[^\W\d_a-z](?:[\w.&-]|['\u2019](?!s\b))*"
_NAME = re.compile(
    rf"(?<![\w'])({_CAPITAL}(?: (?:(?:of|the|de|da|del|von|van|&) ){{0,2}}{_CAPITAL})*)"
)
# words that are capitalised at a sentence's begin, or always, and are no names: "She", "In", "I"
_NOT_NAMES = set(
    "a an the he she it they we you i his her their its this that these those there in on at by "
    "for from with of to as after before during since until when while where who which what one "
    "some many most several both all no not and or but if although however also born tv mp "
    "ceo phd dvd cd mvp".split()
)


def by_rules(text: str) -> Entities:
    """Entities by rules of English: spans of capitalised words, dates, other numbers.

    A capitalised first word of the text is a name only when another capitalised word follows it.
    """
    dates = tuple(m[0] for m in _DATE.finditer(text))
    rest = _DATE.sub(lambda m: " " * len(m[0]), text)
    numbers = tuple(m[0] for m in _NUMBER.finditer(rest))
    return Entities(text, tuple(_names(rest)), dates, numbers)


def _names(text: str) -> Iterable[str]:
    first = re.search(r"\w", text)
    for match in _NAME.finditer(text):
        opens = first is not None and match.start() == first.start()
        words = match[1].split(" ")
        while words and words[0].lower() in _NOT_NAMES:
            words, opens = words[1:], False
        name = " ".join(words).rstrip(".,'\u2019-&")
        if name[:1].isupper() and not (opens and len(words) == 1):
            yield name


_SPACY_DATES = {"DATE", "TIME"}
_SPACY_NUMBERS = {"CARDINAL", "ORDINAL", "QUANTITY", "MONEY", "PERCENT"}


@functools.cache
def load(model: str = "en_core_web_sm") -> Parser:
    """The parser of a spaCy pipeline, given the name of an installed package or a folder.

    Without spaCy or the package: `by_rules`, and one warning that says how to install it.
    Raise UserError for a folder that holds no pipeline.
    """
    try:
        pipeline = pipelines.open_pipeline("facts.spacy_model", model)
    except pipelines.NotInstalled as e:
        if "/" in model:
            raise
        warnings.warn(f"facts.cleanup: rules find names and dates: {e}", stacklevel=2)
        return by_rules
    return functools.partial(_by_spacy, pipeline)


def _by_spacy(pipeline: Callable, text: str) -> Entities:
    ents = [(e.label_, e.text) for e in pipeline(text).ents]
    return Entities(
        text,
        tuple(t for label, t in ents if label not in _SPACY_DATES | _SPACY_NUMBERS),
        tuple(t for label, t in ents if label in _SPACY_DATES),
        tuple(t for label, t in ents if label in _SPACY_NUMBERS),
    )
