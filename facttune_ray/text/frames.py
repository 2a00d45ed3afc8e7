"""Find statements that say nothing: the topic as its own value, and frames that topics share.

names_only_its_topic("Mali", "Mali borders Mali.")           ->  True
frame("Mali", "Mali is a country in Africa.")                ->  "… is a country in africa"

A model that learns to please a verifier writes more of them: they say much to the verifier and
little to a reader.
"""

from __future__ import annotations

import re

from facttune_ray.text.clauses import (
    ADVERBS,
    ARTICLES,
    POSSESSIVES,
    PREPOSITIONS,
    PRONOUNS,
    name_length,
    verb_at,
)
from facttune_ray.text.decompose import normal_fact

NAME_MARK = "…"  # stands for the topic's name in a frame
_FIRST = ARTICLES | POSSESSIVES | PREPOSITIONS | PRONOUNS | {"there", "this", "these", "both"}
_BRACKET = re.compile(r"\s*\([^)]*\)$")
_VERB_FORM = re.compile(r"[a-z]+(?:s|ed)$")
_WORD = re.compile(r"[^\W_]+")


def names_only_its_topic(topic: str, fact: str) -> bool:
    """Whether the fact has no name or number but the topic's own name, and has it after the verb.

    Such a fact gives the topic as its own value: "Mali borders Mali", "Her teacher was Mara Veldt"
    about Mara Veldt. A verifier that counts the topic's name as evidence supports it. A fact
    without a name after its verb ("Mara Veldt is a cellist") is no such fact.
    """
    words = fact.split()
    at = _verb_at(words, topic)
    if at is None:
        return False
    own = {w.casefold() for w in _WORD.findall(_BRACKET.sub("", topic) or topic)}
    after = _named(words[at + 1 :])
    before = _named(words[:at][words[0].lower() in _FIRST :])
    return bool(after) and before | after <= own


def _named(words: list[str]) -> set[str]:
    """Capitalised words and numbers, without a possessive "s"."""
    text = re.sub(r"['\u2019]s\b", "", " ".join(words))
    return {w.casefold() for w in _WORD.findall(text) if w[0].isupper() or w[0].isdigit()}


def _verb_at(words: list[str], topic: str) -> int | None:
    """`verb_at`; or, after the topic as the subject, a word in the form of a verb that it does not
    know ("Mali borders Niger")."""
    at = verb_at(words, topic)
    if at is not None or not words:
        return at
    at = 1 if words[0].lower() in PRONOUNS else name_length(words, topic)
    while at and at < len(words) and (words[at] in ADVERBS or words[at].endswith("ly")):
        at += 1
    return at if 0 < at < len(words) - 1 and _VERB_FORM.match(words[at]) else None


def frame(topic: str, sentence: str) -> str:
    """The sentence in its normal form with NAME_MARK in place of the topic's name, and of a part
    of the name or a pronoun that begins the sentence. Equal frames of different topics are one
    sentence that the model fills in."""
    name = _BRACKET.sub("", topic).strip() or topic
    text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", NAME_MARK, sentence, flags=re.IGNORECASE)
    words = text.split()
    if words and not words[0].startswith(NAME_MARK):
        length = 1 if words[0].lower() in PRONOUNS else name_length(words, name)
        owner = re.sub(r"['\u2019]s?$", "", words[0])
        if length:
            words = [NAME_MARK, *words[length:]]
        elif words[0].lower() in POSSESSIVES or (owner != words[0] and owner in name.split()):
            words = [f"{NAME_MARK}'s", *words[1:]]
    return normal_fact(" ".join(words))
