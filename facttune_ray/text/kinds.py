"""The kind of a fact, by its verb. A comparison of two models counts facts per kind.

kind_of("Mara Veldt", "Mara Veldt was born in Ostrel.")     ->  "born in"
kind_of("Mara Veldt", "She works as a baker.")              ->  "work as"
kind_of("Asthma", "Asthma is a disease of the airways.")    ->  "is a"
"""

from __future__ import annotations

from facttune_ray.text.clauses import ADVERBS, ARTICLES, PREPOSITIONS, verb_at
from facttune_ray.text.verbs import AUXILIARIES, BE, base, is_past

OTHER = "other"


def kind_of(topic: str, fact: str) -> str:
    """The main verb with the preposition that follows it. A bare "is" gives "is a", "is in" or
    "is". A fact without a verb gives OTHER."""
    words = fact.strip(" .!;:").split()
    at = verb_at(words, topic)
    if at is None:
        return OTHER
    rest = [w.strip(",").lower() for w in words[at:]]
    verb, rest = rest[0], [w for w in rest[1:] if w not in ADVERBS]
    while rest and _is_auxiliary_of(verb, rest[0]):
        passive = verb in _BE
        verb, rest = rest[0], rest[1:]
        if passive and verb not in _BE:  # "born", "known", "working": keep the form
            return _with_preposition(verb, rest)
    if verb in _BE:
        return "is a" if rest and rest[0] in ARTICLES else _with_preposition("is", rest)
    return _with_preposition(base(verb), rest)


_BE = {*BE, "be", "been", "being"}
_HAVE = {"has", "have", "had"}


def _is_auxiliary_of(verb: str, after: str) -> bool:
    """Whether `verb` is an auxiliary of the word after it."""
    if verb in _BE:
        return is_past(after) or after.endswith("ing")
    if verb in _HAVE:
        return is_past(after) or after == "been"
    return verb in AUXILIARIES


def _with_preposition(verb: str, rest: list[str]) -> str:
    return f"{verb} {rest[0]}" if rest and rest[0] in PREPOSITIONS else verb
