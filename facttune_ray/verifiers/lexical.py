"""A verifier without a model: does one sentence of the article hold a fact's words?

    prepared = prepare("Mara Veldt", ["Mara Veldt was born in Lyon. She plays the cello."])
    support_prepared("Mara Veldt plays the cello.", prepared)   ->  Support(score=0.90, evidence=0)
    support_prepared("Mara Veldt was born in Rome.", prepared)  ->  Support(score=0.35, evidence=0)

Evidence is added in log-odds. In favour of a fact count the share of its content words, weighted by
rarity, that the best sentence of the article holds, and the share of its neighbouring words that
are neighbours in the article. Against the fact count names and numbers that the sentence lacks, a
name of which the article holds only parts, a year that the whole article lacks, and a negation on
one side only. The topic's name is in every fact, so it is ignored.
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

THRESHOLD = 0.5  # smallest score of a supported fact: even odds

# Log-odds, as round numbers. A logistic regression on one labelled file of FActScore gives about
# these numbers and is no more accurate on the other file. Half or twice any of them changes AUROC
# by less than 0.007.
SLOPE = 4.0  # difference between no word found and all words found
HALF = 0.4  # share of found words at which a fact about the topic has even odds
PAIRS = 0.2  # weight of neighbouring words in that share
ASIDE = 0.5  # bonus of a fact that is not about the topic: few articles say "Lyon is in France"
MISSING_NAME = 0.5  # penalty per missing capitalised word: names make a fact specific
MISSING_NUMBER = 1.0  # penalty per missing number: a wrong year, day or count is surely wrong
MISSING_YEAR = 1.0  # further penalty for a year that the whole article lacks
SPLIT_NAME = 1.0  # penalty per name in parts: "University of Lyon" from "a university" and "Lyon"
NEGATION = 2.5  # penalty of a negation on one side only; all words found give 2.4

LIGHT = 0.5  # weight of a word with little meaning; a common word has 1
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
    """`score` in [0, 1], None for a fact without content words; `evidence`: passage index."""

    score: float | None
    evidence: int | None


@dataclass(frozen=True)
class Prepared:
    """An article, prepared for any number of facts. A place is the index of a sentence."""

    name: frozenset[str]  # stems of the topic
    passages: tuple[int, ...]  # the passage of each place
    negated: tuple[frozenset[str], ...]  # per place, the stems of three words after each negation
    places: dict[str, list[int]]  # stem -> its places
    pairs: frozenset[tuple[str, str]]  # neighbouring stems in any passage
    rarity: Callable[[str], float]


@dataclass(frozen=True)
class _Content:
    """The words of a fact, as stems."""

    order: list[str]  # all words
    weights: dict[str, float]  # content words
    names: set[str] = field(default_factory=set)  # content words, capitalised inside the fact
    numbers: set[str] = field(default_factory=set)  # content words with digits
    runs: list[list[str]] = field(default_factory=list)  # capitalised words in a row


def no_rarity(stem: str) -> float:
    """Rarity without a knowledge source: words of most biographies are common, all others rare."""
    return 1.0 if stem in _COMMON else 4.0


def prepare(
    topic: str, passages: Sequence[str], rarity: Callable[[str], float] = no_rarity
) -> Prepared:
    """Stem an article once, for all facts of its topic."""
    passage_of: list[int] = []
    negated: list[frozenset[str]] = []
    places: dict[str, list[int]] = defaultdict(list)
    pairs: set[tuple[str, str]] = set()
    for i, passage in enumerate(passages):
        whole: list[str] = []
        for sentence in _SENTENCE_END.split(passage):
            parts = stems(sentence)
            # a year also supports its decade
            for s in {*parts, *(s[:3] + "0s" for s in parts if _YEAR.fullmatch(s))}:
                places[s].append(len(passage_of))
            passage_of.append(i)
            negated.append(_negated(parts))
            whole += parts
        pairs.update(zip(whole, whole[1:], strict=False))
    # brackets, as in "Wendy (singer)", are a claim and no part of the name
    name = frozenset(stems(_BRACKET.sub(" ", topic)) or stems(topic))
    return Prepared(name, tuple(passage_of), tuple(negated), dict(places), frozenset(pairs), rarity)


def _negated(parts: list[str]) -> frozenset[str]:
    at = [i for i, s in enumerate(parts) if s in _NEGATIONS]
    return frozenset(s for i in at for s in parts[i + 1 : i + 4])


def support_prepared(fact: str, article: Prepared) -> Support:
    """The article's support of the fact; `evidence` is the passage of the best sentence."""
    content = _read(fact, article)
    if not content.weights or not article.places:
        return Support(None, None)
    weight_at: dict[int, float] = defaultdict(float)  # place -> weight of its words of the fact
    for s, weight in content.weights.items():
        for place in article.places.get(s, ()):
            weight_at[place] += weight
    best = min(weight_at, key=lambda p: (-weight_at[p], p), default=0)
    found = {s for s in content.weights if best in article.places.get(s, ())}
    odds = _odds_for(content, found, article) - _odds_against(content, found, article)
    odds -= NEGATION * ((_negated(content.order) & found) != (article.negated[best] & found))
    return Support(1 / (1 + math.exp(-odds)), article.passages[best])


def _odds_for(content: _Content, found: set[str], article: Prepared) -> float:
    weights = content.weights
    share = sum(w for s, w in weights.items() if s in found) / sum(weights.values())
    neighbours = total = 0.0
    for pair in zip(content.order, content.order[1:], strict=False):
        weight = weights.get(pair[0], 0.0) + weights.get(pair[1], 0.0)
        total += weight
        neighbours += weight * (pair in article.pairs)
    share = (1 - PAIRS) * share + PAIRS * (neighbours / total if total else share)
    about = not article.name.isdisjoint(content.order) or not _PRONOUNS.isdisjoint(content.order)
    return SLOPE * (share - HALF) + (0.0 if about else ASIDE)


def _odds_against(content: _Content, found: set[str], article: Prepared) -> float:
    missing_year = any(_YEAR.fullmatch(s) and s not in article.places for s in content.numbers)
    split = sum(not article.pairs.issuperset(zip(r, r[1:], strict=False)) for r in content.runs)
    return (
        MISSING_NAME * len(content.names - found)
        + MISSING_NUMBER * len(content.numbers - found)
        + MISSING_YEAR * missing_year
        + SPLIT_NAME * split
    )


def _read(fact: str, article: Prepared) -> _Content:
    content = _Content([], {})
    run: list[str] = []
    for i, word in enumerate(tokens(fact)):
        lower = word.lower()
        root = stem(lower)
        content.order.append(root)
        capital = i > 0 and word[0].isupper() and root not in article.name
        if capital:
            run.append(root)
            if len(run) == 2:
                content.runs.append(run)
        else:
            run = []
        if lower in _STOP or lower in _NEGATIONS or root in article.name:
            continue
        if any(map(str.isdigit, word)):
            content.numbers.add(root)
        elif capital:
            content.names.add(root)
        # the square root keeps one very rare word from deciding alone
        weight = math.sqrt(max(article.rarity(root), 0.05)) * (LIGHT if lower in _LIGHT else 1.0)
        content.weights[root] = max(weight, content.weights.get(root, 0.0))
    return content


def support(fact: str, topic: str, passages: Sequence[str]) -> Support:
    """`support_prepared` for a single fact."""
    return support_prepared(fact, prepare(topic, passages))
