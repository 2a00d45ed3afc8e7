"""A parsed sentence: its tokens, their labels, and the text of some of them.

    parsed.text({0, 1, 5})   the words with these indices, without a comma beside the gap
    own_subject(verb)        the subject of a verb, unless it is "who" or "which"

The labels are those of ClearNLP, as `en_core_web_sm` has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from facttune_ray.text.quantities import MONTHS

Token = Any  # spacy.tokens.Token; spaCy is imported where a pipeline is loaded

VERBS = {"VERB", "AUX"}
NOUNS = {"NOUN", "PROPN", "NUM"}
SUBJECTS = {"nsubj", "nsubjpass", "csubj", "csubjpass"}
ROLES = {"attr", "oprd"}
WH = {"WDT", "WP", "WP$", "WRB"}
COMMAS = {",", "-", "--", "\u2013", "\u2014"}
_CONSONANT_VOWEL = re.compile(r"uni|us[eu]|eu|one\b|once", re.I)
_SPACES = re.compile(r"\s(?=,\s)")


class UnclearParse(Exception):
    """The parse cannot be right, or could mean two things."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed sentence. `shown`: token index -> the text that the token stands for."""

    tokens: list[Token]
    shown: Mapping[int, str]

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


def is_past_clause(head: Token) -> bool:
    first = child(head, "aux", "auxpass")
    return head.tag_ == "VBD" if first is None else first.lower_ not in {"is", "are"}


def conjunction(part: Token) -> set[int]:
    """The conjunction before a part."""
    others = [c.i for c in part.head.children if c.dep_ == "conj" and c.i < part.i]
    start = max(others, default=0)
    return {c.i for c in part.head.children if c.dep_ == "cc" and start < c.i < part.i}
