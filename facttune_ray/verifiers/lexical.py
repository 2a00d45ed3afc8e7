"""A verifier without any model: is a fact's content found close together in the article?

    prepared = prepare("Mara Veldt", ["Mara Veldt was born in Lyon. She plays the cello."])
    support_prepared("Mara Veldt plays the cello.", prepared)   ->  Support(score=0.90, evidence=0)
    support_prepared("Mara Veldt was born in Rome.", prepared)  ->  Support(score=0.35, evidence=0)

Evidence is added up in log-odds. For a fact speak the share of its content words, weighted by
their rarity, that one sentence of the article holds, and the share of its neighbouring words that
are neighbours in the article. Against it speak names and numbers that the sentence lacks, a name
that is found only in parts, a year that the whole article lacks, a negation on one side only.
The topic's name is in every fact, says nothing and is left out.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from facttune_ray.text.words import FAMILY, stem, stems, tokens

__all__ = [
    *("THRESHOLD", "Prepared", "Support", "no_rarity", "prepare", "rarity_of", "stem", "stems"),
    *("support", "support_prepared"),
]

THRESHOLD = 0.5  # supported from here: even odds

# Log-odds, in round values. A logistic fit to one labelled file of FActScore gives about these,
# tells true from false in the other file as well as its own fit does, and no better than these:
# half or twice any of them changes AUROC by less than 0.007.
SLOPE = 4.0  # from no word found to all of them
HALF = 0.4  # share found where a fact about the topic is as likely true as not
PAIRS = 0.2  # part of that share which neighbouring words decide
ASIDE = 0.5  # for a fact that is not about the topic: "Lyon is in France" is seldom written out
MISSING_NAME = 0.5  # against, each capitalised word: names are what makes a fact specific
MISSING_NUMBER = 1.0  # against, each: a wrong year, day or count is wrong for sure
MISSING_YEAR = 1.0  # against, on top: not even elsewhere in the article
SPLIT_NAME = 1.0  # against, each: "University of Lyon" where there is a university, and Lyon
NEGATION = 2.5  # against: as much as all words found speak for

LIGHT = 0.5  # weight of a word that says little, against a common word's 1
_STOP = frozenset(
    "a an the and or of in on at by for to from with as is was were are be been being has have had "
    "he she his her hers him it its they their them who whom which that this these those also but "
    "than then so such into over after before during under about against between through out up "
    "down off if when while where there here".split()
)
_PRONOUNS = frozenset("he she it his her hers him its they their them".split())
_NEGATIONS = frozenset("not no never neither nor without none".split())
_LIGHT = frozenset(
    "known best one first including include includes included well career work worked works "
    "become became made make received award awards name named later early several many various "
    "numerous most more other new life year years time began start started served role roles "
    "contributions contribution field notable famous successful member part would could may can "
    "people person used use widely considered continued throughout".split()
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z\"'0-9])")
_YEAR = re.compile(r"1\d{3}|20\d\d")
_BRACKET = re.compile(r"\([^)]*\)")
_COMMON = frozenset(FAMILY.values())


class Support(NamedTuple):
    """`score` in [0, 1], None when the fact has nothing to check; `evidence`: passage index."""

    score: float | None
    evidence: int | None


@dataclass(frozen=True)
class Prepared:
    """An article ready for any number of facts. A place is a sentence, by its index."""

    name: frozenset[str]  # stems of the topic
    passages: tuple[int, ...]  # the passage that each place is in
    negated: tuple[frozenset[str], ...]  # each place's stems in the three words after a negation
    places: dict[str, list[int]]  # of each stem
    pairs: frozenset[tuple[str, str]]  # neighbours in any passage
    rarity: Callable[[str], float]


@dataclass(frozen=True)
class _Content:
    """What a fact says, in stems."""

    order: list[str]  # all words
    weights: dict[str, float]  # words with content
    names: set[str] = field(default_factory=set)  # of these, capitalised inside the fact
    numbers: set[str] = field(default_factory=set)  # of these, with digits
    runs: list[list[str]] = field(default_factory=list)  # capitalised words in a row


def no_rarity(stem: str) -> float:
    """Without a source to count in: what most biographies say is common, the rest rare alike."""
    return 1.0 if stem in _COMMON else 4.0


def prepare(
    topic: str, passages: Sequence[str], rarity: Callable[[str], float] = no_rarity
) -> Prepared:
    """Stem an article once, for all facts of its topic."""
    inside: list[int] = []
    negated: list[frozenset[str]] = []
    places: dict[str, list[int]] = defaultdict(list)
    pairs: set[tuple[str, str]] = set()
    for i, passage in enumerate(passages):
        whole: list[str] = []
        for sentence in _SENTENCE_END.split(passage):
            parts = stems(sentence)
            # a year says its decade as well
            for s in {*parts, *(s[:3] + "0s" for s in parts if _YEAR.fullmatch(s))}:
                places[s].append(len(inside))
            inside.append(i)
            negated.append(_negated(parts))
            whole += parts
        pairs.update(zip(whole, whole[1:], strict=False))
    # what stands in brackets, "Wendy (singer)", is no name but a claim
    name = frozenset(stems(_BRACKET.sub(" ", topic)) or stems(topic))
    return Prepared(name, tuple(inside), tuple(negated), dict(places), frozenset(pairs), rarity)


def _negated(parts: list[str]) -> frozenset[str]:
    at = [i for i, s in enumerate(parts) if s in _NEGATIONS]
    return frozenset(s for i in at for s in parts[i + 1 : i + 4])


def support_prepared(fact: str, article: Prepared) -> Support:
    """How far the article supports the fact; `evidence` is the passage of the best sentence."""
    said = _read(fact, article)
    if not said.weights or not article.places:
        return Support(None, None)
    held: dict[int, float] = defaultdict(float)
    for s, weight in said.weights.items():
        for place in article.places.get(s, ()):
            held[place] += weight
    best = min(held, key=lambda p: (-held[p], p), default=0)
    found = {s for s in said.weights if best in article.places.get(s, ())}
    odds = _odds_for(said, found, article) - _odds_against(said, found, article)
    odds -= NEGATION * ((_negated(said.order) & found) != (article.negated[best] & found))
    return Support(1 / (1 + math.exp(-odds)), article.passages[best])


def _odds_for(said: _Content, found: set[str], article: Prepared) -> float:
    weights = said.weights
    share = sum(w for s, w in weights.items() if s in found) / sum(weights.values())
    beside = total = 0.0
    for pair in zip(said.order, said.order[1:], strict=False):
        weight = weights.get(pair[0], 0.0) + weights.get(pair[1], 0.0)
        total += weight
        beside += weight * (pair in article.pairs)
    share = (1 - PAIRS) * share + PAIRS * (beside / total if total else share)
    about = not article.name.isdisjoint(said.order) or not _PRONOUNS.isdisjoint(said.order)
    return SLOPE * (share - HALF) + (0.0 if about else ASIDE)


def _odds_against(said: _Content, found: set[str], article: Prepared) -> float:
    unheard = any(_YEAR.fullmatch(s) and s not in article.places for s in said.numbers)
    split = sum(not article.pairs.issuperset(zip(r, r[1:], strict=False)) for r in said.runs)
    return (
        MISSING_NAME * len(said.names - found)
        + MISSING_NUMBER * len(said.numbers - found)
        + MISSING_YEAR * unheard
        + SPLIT_NAME * split
    )


def _read(fact: str, article: Prepared) -> _Content:
    said = _Content([], {})
    run: list[str] = []
    for i, word in enumerate(tokens(fact)):
        lower = word.lower()
        root = stem(lower)
        said.order.append(root)
        capital = i > 0 and word[0].isupper() and root not in article.name
        if capital:
            run.append(root)
            if len(run) == 2:
                said.runs.append(run)
        else:
            run = []
        if lower in _STOP or lower in _NEGATIONS or root in article.name:
            continue
        if any(map(str.isdigit, word)):
            said.numbers.add(root)
        elif capital:
            said.names.add(root)
        # the square root keeps one very rare word from deciding alone
        weight = math.sqrt(max(article.rarity(root), 0.05)) * (LIGHT if lower in _LIGHT else 1.0)
        said.weights[root] = max(weight, said.weights.get(root, 0.0))
    return said


def support(fact: str, topic: str, passages: Sequence[str]) -> Support:
    """`support_prepared` for a single fact."""
    return support_prepared(fact, prepare(topic, passages))
