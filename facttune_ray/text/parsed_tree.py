"""A parsed sentence: its tokens, their labels, and the text of some of them.

    parsed.text({0, 1, 5})   the words with these indices, without a comma beside the gap
    own_subject(verb)        the subject of a verb, unless it is "who" or "which"

The labels are those of ClearNLP, as `en_core_web_sm` has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from facttune_ray.text.quantities import MONTHS
from facttune_ray.text.verbs import MODALS

Token = Any  # spacy.tokens.Token; spaCy is imported where a pipeline is loaded

VERBS = {"VERB", "AUX"}
NOUNS = {"NOUN", "PROPN", "NUM"}
SUBJECTS = {"nsubj", "nsubjpass", "csubj", "csubjpass"}
ROLES = {"attr", "oprd"}
WH = {"WDT", "WP", "WP$", "WRB"}
COMMAS = {",", "-", "--", "\u2013", "\u2014"}
_UNDIVIDED = set(
    "never hardly barely scarcely rarely seldom almost nearly only solely merely "
    "exclusively".split()
)
_CONSONANT_VOWEL = re.compile(r"uni|us[eu]|eu|one\b|once", re.I)
_SPACES = re.compile(r"\s(?=,\s)")


class UnclearParse(Exception):
    """The parse cannot be right, or could mean two things."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed sentence. `shown`: token index -> the text that the token stands for. `titles`: the
    tokens that stand for quotations."""

    tokens: list[Token]
    shown: Mapping[int, str]
    titles: Set[int] = frozenset()

    def text(self, kept: Iterable[int], swap: Mapping[int, str] | None = None) -> str:
        """The text of the tokens with these indices, without commas beside a gap. `swap`: token
        index -> another text."""
        order = sorted(kept)
        out: list[str] = []
        for at, i in enumerate(order):
            token = self.tokens[i]
            word = (swap or {}).get(i, self.shown.get(i, token.text))
            gap = at + 1 == len(order) or order[at + 1] != i + 1
            # A comma stays behind a gap that no other comma opens: "law [and art], a new subject".
            paired = at == 0 or (
                order[at - 1] != i - 1 and self.tokens[order[at - 1]].text in COMMAS
            )
            if token.text in COMMAS and (gap or paired):
                out.append(" ")
                continue
            if gap and token.lower_ in {"a", "an"} and at + 1 < len(order):
                word = _article(word, self.tokens[order[at + 1]].text)
            out.append(word + (" " if gap else token.whitespace_))
        return _SPACES.sub("", " ".join("".join(out).split())).strip(" ,;:")


def _article(word: str, before: str) -> str:
    """The form of "a" before a word, with the case of `word`."""
    vowel = before[:1].lower() in "aeiou" and not _CONSONANT_VOWEL.match(before)
    return word[0] + "n" * vowel


def below(token: Token) -> set[int]:
    """The indices of a token and of all tokens that depend on it."""
    return {t.i for t in token.subtree}


def is_time(noun: Token) -> bool:
    """Whether a noun is a year, a date or a number."""
    return noun.text[0].isdigit() or any(
        t.lower_ in MONTHS or t.lower_[:-1].isdigit() for t in (noun, *noun.children)
    )


def child(token: Token, *labels: str) -> Token | None:
    """The first child of a token with one of these labels."""
    return next((c for c in token.children if c.dep_ in labels), None)


def own_subject(head: Token) -> Token | None:
    return next((c for c in head.children if c.dep_ in SUBJECTS and c.tag_ not in WH), None)


def is_whole(indices: set[int]) -> bool:
    """Whether no token stands between these."""
    return len(indices) == max(indices) - min(indices) + 1


def tense(head: Token) -> str:
    """ "past", "perfect" ("has met"), "present", or "" where the clause says what may be. A verb
    that is not finite has the tense of the clause above it."""
    helper = child(head, "aux", "auxpass")
    verb = head if helper is None else helper
    if verb.tag_ == "MD" or verb.lower_ in MODALS:
        return ""
    if verb.tag_ == "VBD":
        return "past"
    if helper is not None and helper.lower_ in {"has", "have"}:
        return "perfect"
    if verb.tag_ in {"VBZ", "VBP"} or head.head == head:
        return "present"
    return tense(head.head)


def is_undivided(head: Token) -> bool:
    """Whether what a verb says of a list need not be true of one item: "did not", "only"."""
    if any(c.dep_ == "neg" or c.dep_ == "advmod" and c.lower_ in _UNDIVIDED for c in head.children):
        return True
    shared = head.dep_ == "conj" and head.tag_ in {"VB", "VBN", "VBG"}
    return shared and not child(head, "aux", "auxpass") and is_undivided(head.head)


def is_expletive(head: Token) -> bool:
    """Whether "it", the subject of a verb, may mean nothing: "it is said that ..."."""
    parts = [head, *(c for c in head.children if c.dep_ in {*ROLES, "acomp", "xcomp"})]
    clauses = [c for part in parts for c in part.children]
    if any(c.dep_ == "ccomp" or c.dep_ == "advcl" and _has(c, "that") for c in clauses):
        return True
    if head.lower_ not in {"is", "was"}:
        return False
    parts = [c for c in head.children if c.dep_ in {"attr", "prep"}]
    nouns = [child(part, "pobj") if part.dep_ == "prep" else part for part in parts]
    return any(
        c.dep_ == "relcl" and _has(c, "that", "who")  # "it was Tom who sang"
        for noun in nouns
        if noun is not None and not _has(noun, "a", "an")  # "it was a hit that surprised all"
        for c in noun.children
    )


def _has(token: Token, *words: str) -> bool:
    return any(c.lower_ in words for c in token.children)


def conjunction(part: Token) -> set[int]:
    """The conjunction before a part."""
    others = [c.i for c in part.head.children if c.dep_ == "conj" and c.i < part.i]
    start = max(others, default=0)
    return {c.i for c in part.head.children if c.dep_ == "cc" and start < c.i < part.i}
