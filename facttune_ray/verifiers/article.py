"""An article as words and clauses, prepared once for all facts of its topic.

article = read_article("Mara Veldt", ["Mara Veldt was born in Lyon. She plays the cello."])
article.places["cello"]   ->  [1]
article.clauses(1)        ->  [Clause(TOPIC, who=["she"], verb="play", ...)]
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from facttune_ray.text.meanings import meaning
from facttune_ray.text.relations import PREPOSITIONS, TOPIC, Clause, is_year, read, split_words

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z\"'0-9])")
_BRACKET = re.compile(r"\([^)]*\)")
COPULAS = frozenset("be become remain".split())
MOST_WORDS = 80  # a longer sentence counts as one of this length
_OPENING = 3  # sentences that may give the dates of the topic's life


@dataclass(frozen=True)
class Article:
    """An article, prepared for any number of facts. A place is the index of a sentence."""

    name: frozenset[str]  # words of the topic
    words: tuple[list[str], ...]  # per place, words and marks
    meanings: tuple[list[str], ...]  # per place, their meanings
    bulk: tuple[int, ...]  # per place, its words, at most MOST_WORDS
    passages: tuple[int, ...]  # per place, the index of its passage
    lead: int | None  # the place that opens the article
    places: dict[str, list[int]]  # meaning -> its places
    pairs: frozenset[tuple[str, str]]  # neighbouring meanings in any passage
    _clauses: dict[int, list[Clause]] = field(default_factory=dict)
    _clause_words: dict[int, list[frozenset[str]]] = field(default_factory=dict)
    _roles: dict[int, frozenset[str]] = field(default_factory=dict)

    def clauses(self, place: int) -> list[Clause]:
        """The clauses of a sentence, read when a fact first needs them."""
        if place not in self._clauses:
            lead, first = place in self.opening(), place == self.lead
            means = self.meanings[place]
            self._clauses[place] = read(self.words[place], self.name, lead, first, means)
        return self._clauses[place]

    def clause_words(self, place: int) -> list[frozenset[str]]:
        """The words of each clause of a sentence."""
        if place not in self._clause_words:
            clauses = self.clauses(place)
            self._clause_words[place] = [frozenset([*c.who, *c.said]) for c in clauses]
        return self._clause_words[place]

    def roles(self, place: int) -> frozenset[str]:
        """The words that a sentence says the topic to be."""
        if place not in self._roles:
            said = (_roles(clause, self.name) for clause in self.clauses(place))
            self._roles[place] = frozenset().union(*said)
        return self._roles[place]

    def sentence(self, place: int, passages: Sequence[str]) -> str:
        """The text of a sentence. `passages`: those that the article was read from."""
        of = self.passages[place]
        return list(sentences(passages[of]))[place - self.passages.index(of)]

    def opening(self) -> range:
        """The places that may give the dates of the topic's life in brackets."""
        if self.lead is None:
            return range(0)
        return range(self.lead, min(self.lead + _OPENING, len(self.words)))

    def in_opening_passage(self, place: int) -> bool:
        """Whether the place is in the passage that opens the article."""
        return self.lead is not None and self.passages[place] == self.passages[self.lead]


def read_article(topic: str, passages: Sequence[str]) -> Article:
    """Split an article into words once, for all facts of its topic."""
    every: list[list[str]] = []
    meant: list[list[str]] = []
    passage_of: list[int] = []
    places: dict[str, list[int]] = defaultdict(list)
    pairs: set[tuple[str, str]] = set()
    # brackets, as in "Wendy (singer)", are a claim and no part of the name
    name = names(_BRACKET.sub(" ", topic)) or names(topic)
    for i, passage in enumerate(passages):
        whole: list[str] = []
        for sentence in sentences(passage):
            words = split_words(sentence)
            means = [meaning(w.lower()) for w in words]
            found = [w for w in means if w[0].isalnum()]
            # a year also supports its decade
            for s in {*found, *(s[:3] + "0s" for s in found if is_year(s))}:
                places[s].append(len(every))
            every.append(words)
            meant.append(means)
            passage_of.append(i)
            whole += found
        pairs.update(zip(whole, whole[1:], strict=False))
    lead = _lead(every, passage_of, topic)
    bulk = tuple(min(len(words), MOST_WORDS) for words in every)
    return Article(
        name,
        tuple(every),
        tuple(meant),
        bulk,
        tuple(passage_of),
        lead,
        dict(places),
        frozenset(pairs),
    )


def _lead(every: Sequence[list[str]], passage_of: Sequence[int], topic: str) -> int | None:
    """The place that opens the article: the first sentence of a passage that begins with the title
    and has a bracket, else the first that names the title behind a bracket ("Samuel Clemens (1835),
    known as Mark Twain"). Passages may come in any order; None when no passage opens so."""
    title = [w for w in split_words(topic) if w[0].isalnum()]
    opens = [
        place
        for place, words in enumerate(every)
        if (place == 0 or passage_of[place] != passage_of[place - 1]) and "(" in words[:30]
    ]
    begins = (place for place in opens if every[place][:1] == title[:1])
    return next(begins, next((p for p in opens if _known_as(every[p], title)), None))


def _known_as(words: list[str], title: list[str]) -> bool:
    if ")" not in words or not words[0][0].isupper():
        return False
    behind = words[words.index(")") :]
    return any(behind[i : i + len(title)] == title for i in range(1, min(12, len(behind))))


def sentences(passage: str) -> Iterator[str]:
    """Sentences, and the parts of long ones at a semicolon; an open bracket is not cut."""
    held = ""
    for part in _SENTENCE_END.split(passage):
        held = f"{held} {part}" if held else part
        if held.count("(") <= held.count(")") or len(held) > 400:
            yield held
            held = ""
    if held:
        yield held


def names(text: str) -> frozenset[str]:
    """The meanings of the words of a name."""
    return frozenset(meaning(w.lower()) for w in split_words(text) if w[0].isalnum())


def phrase(said: Sequence[str]) -> Sequence[str]:
    """The words of a noun phrase up to its first preposition."""
    return said[: next((i for i, w in enumerate(said) if i and w in PREPOSITIONS), len(said))]


def _roles(clause: Clause, name: Set[str]) -> set[str]:
    """The words that a clause says the topic to be."""
    if clause.subject != TOPIC:
        return set()
    said, out = clause.said, set()
    if clause.verb in COPULAS or not clause.verb:
        inside = True
        for word in said:
            inside = word in {",", "and"} or (inside and word not in PREPOSITIONS)
            if inside:
                out.add(word)
    elif not clause.passive:
        out.add(clause.verb)  # she sings: a singer
    for i, word in enumerate(said):
        if word == "as":
            out.update(phrase(said[i + 1 :]))
    if "," in clause.who:
        out.update(phrase(clause.who[clause.who.index(",") + 1 :]))
    out.update(w for w, after in zip(clause.who, clause.who[1:], strict=False) if after in name)
    return out
