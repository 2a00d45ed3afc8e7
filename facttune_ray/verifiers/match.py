"""What an article says about a relation of a fact, and the clauses that may say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from facttune_ray.text.relations import DETERMINERS, PREPOSITIONS, TOPIC, Clause
from facttune_ray.verifiers.article import Article

EMPTY = (
    frozenset("be also a an the , and or not it its there now still one have".split())
    | DETERMINERS
    | PREPOSITIONS
)
STATED, DENIED, SILENT, OPEN = "stated", "denied", "silent", "open"


@dataclass(frozen=True)
class Match:
    """What the article says about the relation of a fact.

    STATED: one clause states the whole value. DENIED: the relation is stated with another value.
    SILENT: no clause states the relation of this subject. OPEN: words must decide.
    """

    answer: str
    cue: str
    missing: frozenset[str] = frozenset()  # words of the value that the best clause lacks
    place: int | None = None  # of the best clause


def values(words: Sequence[str]) -> list[str]:
    """The words that carry meaning: no articles, prepositions, copulas or marks."""
    return [w for w in words if w not in EMPTY and w[0].isalnum()]


def clauses_with(cue: str, article: Article) -> Iterator[tuple[int, Clause]]:
    """Yield (place, clause) of the clauses that hold the cue."""
    places = article.places.get(cue, ())
    if cue in {"born", "die"}:  # the first sentence may give the dates alone, in brackets
        places = sorted({*places, *article.opening()})
    for place in places:
        for clause in article.clauses(place):
            if cue in clause.said or cue in clause.who:
                named = clause.who and clause.capital.issuperset(clause.who)
                if cue == "born" and named and article.in_opening_passage(place):
                    # the topic's full name, under which the article has no title
                    yield place, replace(clause, subject=TOPIC)
                else:
                    yield place, clause
