"""Facts of one sentence -> those that say what the sentence says (FActScore, biographies).

    clean("She studied at Lyon Conservatory in 1970.",
          ["Mara Veldt studied.", "Mara Veldt studied at Lyon.", "Mara Veldt studied in 1970.",
           "Mara Veldt studied in Paris."], by_rules, known=["Mara Veldt"])
        ->  ["Mara Veldt studied at Lyon Conservatory.", "Mara Veldt studied in 1970."]

Three repairs of what an LLM adds or leaves out: a fact with a name, date or number that the
sentence does not have is dropped; a name that is cut short is restored; a fact that breaks off
where another one goes on ("Mara Veldt was born.") is dropped. Entities come from spaCy where it
is installed, else from rules: capitalised words, dates and numbers of English.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from facttune_ray.errors import UserError


@dataclass(frozen=True)
class Entities:
    """What a text mentions, each in the text's own words, in order."""

    text: str
    names: tuple[str, ...] = ()  # of people, places, bodies, works, peoples
    dates: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


Parser = Callable[[str], Entities]


def clean(
    sentence: str, facts: Sequence[str], entities: Parser, known: Sequence[str] = ()
) -> list[str]:
    """The facts that stay, in order, without repeats.

    `known`: texts whose entities a fact may mention as well: the topic, what stood before the
    sentence. `entities`: `by_rules`, or what `load` gives.
    """
    told = entities(sentence)
    names = [*told.names, *(n for text in known for n in (text, *entities(text).names))]
    words = _words(" ".join([sentence, *known]))
    kept = []
    for fact in facts:
        said = entities(fact)
        fact, said_names = _restored(fact, said.names, told.names, names)
        mentioned = {w for part in (*said_names, *said.dates, *said.numbers) for w in _words(part)}
        if all(w in words or _inflected(w, words) for w in mentioned):
            kept.append(fact)
    return _undangled(list(dict.fromkeys(kept)))


def _restored(
    fact: str, said: Iterable[str], told: Sequence[str], names: Sequence[str]
) -> tuple[str, list[str]]:
    """(fact, its names) with each name that is cut short made whole."""
    whole = {_plain(n) for n in names}
    out = []
    for name in said:
        before, _, after = fact.partition(name)
        if _plain(name) not in whole and name in fact:
            full = next((n for n in told if _cut(name, n, before, after)), None)
            fact, name = (before + full + after, full) if full else (fact, name)
        out.append(name)
    return fact, out


def _cut(name: str, full: str, before: str, after: str) -> bool:
    """Whether `name`, between these texts, is a longer name that breaks off.

    Within a word it does: "in Lyo" for "Lyon". Between words it does so only at the fact's end:
    "at Lyon." for "Lyon Conservatory". "She is British." is no "British Museum", and a "Minister"
    is not cut off from "of Trade".
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


# Where a fact ends on one of these, and another one goes on from there, it only breaks off.
_DANGLING = set(
    "born raised appointed elected named known described characterized characterised regarded "
    "considered recognized recognised praised member advocate educated trained nominated "
    "awarded studied worked appeared served became received won played is was has had a an "
    "the in on at of for to by with as and".split()
)


def _undangled(facts: list[str]) -> list[str]:
    """Without facts that end on such a word, when another fact starts with all of their words."""
    listed = [_plain(f).split() for f in facts]
    starts = {tuple(w[:i]) for w in listed for i in range(1, len(w))}
    return [
        fact
        for fact, words in zip(facts, listed, strict=True)
        if not (words and words[-1] in _DANGLING and tuple(words) in starts)
    ]


# ---------------------------------------------------------------- words

_WORD = re.compile(r"\d[\d,]*(?:\.\d+)?(?=s\b)|\d[\d,]*(?:\.\d+)?|[^\W\d_]+")
_MONTHS = "january february march april may june july august september october november december"
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    word: str(number)
    for number, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth".split(), 1
    )
}
_MONTH_OF = {m[:3]: m for m in _MONTHS.split()} | {"sept": "september"}
_EMPTY = set("a an the of s st nd rd th in on at and to from".split())


def _plain(text: str) -> str:
    """Case, accents, end marks and a possessive aside."""
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'")).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"'s\b", "", text)
    return " ".join(text.split()).strip(" .,;:!?\"'\u201c\u201d()").removeprefix("the ")


def _inflected(word: str, words: set[str]) -> bool:
    """Whether a word is there in another form: "Cup" for "Cups", "Argentinian" for "Argentine"."""
    if f"{word}s" in words or (word.endswith("s") and word[:-1] in words):
        return True
    stem = word[: max(4, len(word) - 3)]
    return len(word) > 4 and not word[0].isdigit() and any(w.startswith(stem) for w in words)


def _words(text: str) -> set[str]:
    """Content words and numbers in one form: "two" and "2", "Jan." and "January" are the same."""
    found = set()
    for word in _WORD.findall(_plain(text)):
        word = word.replace(",", "") if word[0].isdigit() else word
        word = _MONTH_OF.get(word, _NUMBERS.get(word, word))
        if word not in _EMPTY:
            found.add(word)
    return found


# ---------------------------------------------------------------- entities

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)[a-z]*\.?"
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
# Capitalised because a sentence opens with them, or always: "She", "In", "I".
_NOT_NAMES = set(
    "a an the he she it they we you i his her their its this that these those there in on at by "
    "for from with of to as after before during since until when while where who which what one "
    "some many most several both all no not and or but if although however also born tv mp "
    "ceo phd dvd cd mvp".split()
)


def by_rules(text: str) -> Entities:
    """Entities by rules of English: spans of capitalised words, dates, other numbers.

    A capitalised word that opens the text is a name only when another one follows it.
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
    """The parser of a spaCy pipeline: name of an installed one, or a folder.

    `by_rules`, and one warning that says how to install it, when spaCy or the pipeline is missing.
    UserError: a folder that holds none.
    """
    try:
        import spacy

        pipeline = spacy.load(model)
    except (ImportError, OSError) as e:
        if "/" in model:
            reason = " ".join(str(e).split())[:160]
            raise UserError(f'facts.spacy_model: no pipeline in "{model}": {reason}') from None
        missing = "spaCy" if isinstance(e, ImportError) else f'the spaCy model "{model}"'
        first = "pip install spacy && " if isinstance(e, ImportError) else ""
        warnings.warn(
            f"facts.cleanup: {missing} is not installed, names and dates are found by rules. "
            f"Install: {first}python -m spacy download {model}",
            stacklevel=2,
        )
        return by_rules
    return functools.partial(_by_spacy, pipeline)


def _by_spacy(pipeline: Callable, text: str) -> Entities:
    found = [(e.label_, e.text) for e in pipeline(text).ents]
    return Entities(
        text,
        tuple(t for label, t in found if label not in _SPACY_DATES | _SPACY_NUMBERS),
        tuple(t for label, t in found if label in _SPACY_DATES),
        tuple(t for label, t in found if label in _SPACY_NUMBERS),
    )
