"""Signs that the facts of a parse are not those of the sentence: they lack some of its words.

covers(["she was a writer"], parsed)    whether the facts hold the names, numbers and nouns
holds_all(["she wrote \ue0000\ue000"], [text])    whether they hold all placeholders
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from facttune_ray.text.clauses import MARK
from facttune_ray.text.parsed_tree import SUBJECTS, Parsed

PLACEHOLDER = re.compile(f"{MARK}\\d+{MARK}")
_WORD = re.compile(r"[\w'-]+")
_OWNER = re.compile(r"['\u2019](?:s\b|(?!\w))")  # spaCy has "Anna's" as two words


def covers(facts: list[str], parsed: Parsed) -> bool:
    """Whether the facts hold all names and numbers, and all nouns behind the subject."""
    held = Counter(_WORD.findall(_OWNER.sub(" ", " ".join(facts))))
    need = Counter(t.text for t in parsed.tokens if t.i not in parsed.shown)
    subject = next((t.i for t in parsed.tokens if t.dep_ in SUBJECTS), 0)
    return all(
        held[t.text] >= need[t.text]
        for t in parsed.tokens
        if t.i not in parsed.shown and _WORD.fullmatch(t.text)
        if t.pos_ in {"PROPN", "NUM"} or t.pos_ == "NOUN" and t.i > subject
    )


def holds_all(facts: Iterable[str], text: str) -> bool:
    """Whether each placeholder of a masked text stands in a fact."""
    return set(PLACEHOLDER.findall(text)) <= set(PLACEHOLDER.findall(" ".join(facts)))
