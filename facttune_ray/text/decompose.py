"""Split a sentence into atomic facts by rules of English grammar.

rule_facts("Ada Lovelace", "She was a writer and mathematician who lived in London.")
    ->  ["Ada Lovelace was a writer.", "Ada Lovelace was a mathematician.",
         "Ada Lovelace lived in London."]
"""

from __future__ import annotations

import re

from facttune_ray.text.clauses import (
    CAP,
    CAPS,
    LEAD,
    MARK,
    POSSESSIVES,
    PRONOUNS,
    facts,
    is_person,
    name_length,
)
from facttune_ray.text.fragments import is_fragment
from facttune_ray.text.quantities import MONTHS
from facttune_ray.text.verbs import KNOWN, third

_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]|\(?\d{1,3}[.)]|#+)\s+")


def normal_fact(text: str) -> str:
    """The form in which equal facts are equal strings: without case, extra spaces and end marks."""
    text = " ".join(text.replace("\u2019", "'").casefold().split())
    return text.strip(" .!?;:,\"'\u201c\u201d")


_DATE = rf"(?:(?:{'|'.join(MONTHS).title()})\s\d{{1,2}},\s\d{{3,4}})"
_LIFE = re.compile(r"\s\(([^()]*?\d{3,4}(?:\sBC)?)\s?[-\u2013\u2014]\s?([^()]*?\d{3,4}[^()]*)\)")
_MASKED = (
    re.compile(
        rf'()("[^"]+"|\u201c[^\u201d]+\u201d|\([^()]*\)|{_DATE}|[A-Z]\w+,\s(?:Jr|Sr)\b\.?|'
        r"Bosnia and Herzegovina|Trinidad and Tobago|Antigua and Barbuda|Jammu and Kashmir|"
        r"Rock and Roll|Arts and (?:Crafts|Letters|Sciences))"
    ),
    # "City, Region", but not the list "Paris, London and Rome"
    re.compile(
        rf"(\b(?:in|at|of|to|from|near)\s)((?!\d){CAPS},\s{CAPS}(?:,\s{CAPS})?)"
        rf"(?!\S|,?\s(?:and|or)\s{CAP}|,\s{CAP}|\s(?:was|is|has|had|[a-z]+ed)\b)"
    ),
    # "the Ministry of Trade and Industry"
    re.compile(
        r"(\b(?:School|Department|Faculty|Academy|Ministry|Institute|University|Minister|"
        rf"Secretary|Committee)\s)((?:of|for)(?:\sthe)?\s{CAPS}(?:,\s{CAPS})*,?\sand\s{CAPS})"
    ),
)


def rule_facts(topic: str, sentence: str) -> list[str]:
    """Atomic facts of a sentence, with the topic in place of its pronouns; [] without a fact.

    Coordinated clauses, predicates and objects, relative and participle clauses, appositions and
    "born on DATE in PLACE" are split. A simple sentence is returned unchanged; a fragment, such as
    "The currency of.", is dropped.
    """
    name = re.sub(r"\s*\([^)]*\)$", "", topic).strip() or topic
    text = bare_sentence(sentence)
    if not re.search(r"\w", text) or text.endswith("?"):
        return []
    if len(text.split()) > 400:  # a table, or a model that repeats itself
        return [] if is_fragment(text) else [text]
    text, raw_facts = lifespan(text.rstrip(" .!;:"))
    masked: list[str] = []
    text = mask(text.replace(", however,", "," if LEAD.match(text) else ""), masked, name)
    raw_facts += facts(text, name)
    finished = [finish(unmask(f, masked), name) for f in raw_facts]
    return list(dict.fromkeys(f for f in finished if f and not is_fragment(f)))


def bare_sentence(sentence: str) -> str:
    """The sentence with single spaces, without a list mark and without characters of `mask`."""
    return _BULLET.sub("", " ".join(sentence.replace(MARK, " ").split()))


def lifespan(text: str) -> tuple[str, list[str]]:
    """Split off life dates: "A B (1703-63) was" -> ("A B was", ["A B was born in 1703", ...])."""
    if match := _LIFE.search(text):
        who = text[: match.start()]
        if len(who.split()) <= 6:
            text = who + text[match.end() :]
            return text, [f"{who} {verb} {_when(date)}" for verb, date in
                          zip(("was born", "died"), match.groups(), strict=True)]  # fmt: skip
    if match := re.match(r"([^(]{2,60}?) \((?:also )?born ([^()]*?)\)(?= )", text):
        born = match[2] if match[2].startswith(("in ", "on ", "as ")) else _when(match[2])
        return match[1] + text[match.end() :], [f"{match[1]} was born {born}"]
    return text, []


def _when(date: str) -> str:
    """Add a preposition: "1703" -> "in 1703"; "May 3, 1703" -> "on May 3, 1703"."""
    date = re.sub(r"^(?:born|died|in|on)\s", "", date.strip())
    day = re.search(r"[A-Za-z]{3,} \d{1,2}\b|\b\d{1,2} [A-Z]", date)
    return f"{'on' if day else 'in'} {date}"


def mask(text: str, masked: list[str], name: str) -> str:
    """Replace quotations, brackets, dates with a comma and "City, Region" by one placeholder word
    each. Append the replaced texts to `masked`."""

    def placeholder(match: re.Match[str]) -> str:
        whole, comma = match[2], ""
        if match[1] and set(name.split()) & set(whole.replace(",", " ").split()[1:]):
            return match[0]  # "At Real Madrid, Ronaldo ..." is no place
        if whole[0] in '"\u201c' and whole[-2] in ",.":  # American style: "Title," -> "Title",
            whole, comma = whole[:-2] + whole[-1], whole[-2].replace(".", "")
        masked.append(whole)
        return f"{match[1]}{MARK}{len(masked) - 1}{MARK}{comma}"

    for pattern in _MASKED:
        text = pattern.sub(placeholder, text)
    return text


def unmask(text: str, masked: list[str]) -> str:
    pattern = re.compile(f"{MARK}(\\d+){MARK}")
    while MARK in text:
        text = pattern.sub(lambda m: masked[int(m[1])], text)
    return text


def finish(text: str, name: str) -> str:
    """Make a sentence: replace the topic's pronoun by its name, end with one full stop."""
    words = " ".join(text.split()).strip(" ,;").split()
    if not words:
        return ""
    first = words[0].lower()
    rest = words[1:]
    if first in PRONOUNS and not (first == "it" and is_person(name)):
        if first == "they" and rest:
            fixed = {"were": "was", "are": "is", "have": "has", "do": "does"}.get(rest[0], rest[0])
            rest[0] = third(fixed) if fixed == rest[0] and fixed in KNOWN else fixed
        words = [name, *rest]
    elif first in POSSESSIVES:
        words = [name + ("'" if name.endswith("s") else "'s"), *rest]
    elif length := name_length(words, name):
        words = [name, *words[length:]]
    elif (owner := re.match(r"(.+)'s?$", words[0])) and owner[1] in {name, *name.split()[-1:]}:
        words = [f"{name}'s", *rest]
    sentence = " ".join(words).strip()
    if not sentence:
        return ""
    return sentence[0].upper() + sentence[1:] + ("" if sentence[-1] in ".!?" else ".")
