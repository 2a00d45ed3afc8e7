"""A verifier without any model: is a fact's content found close together in the article?

    prepared = prepare("Mara Veldt", ["Mara Veldt was born in Lyon. She plays the cello."])
    support_prepared("Mara Veldt plays the cello.", prepared)   ->  Support(score=1.0, evidence=0)
    support_prepared("Mara Veldt was born in Rome.", prepared)  ->  Support(score=0.47, evidence=0)

A fact's score is the share of its content words that one place of the article holds, each word
weighted by its rarity, mean of three widths of "place" (a sentence, two, a passage), mixed with
the share of its word pairs that stand side by side there. The topic's name says nothing and is
left out. A year that the whole article lacks, or a negation on one side only, speaks against, and
so do names and numbers that the best sentence lacks: "born in Rome" differs from "born in Lyon" in
one word of three, but in the one that matters.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

THRESHOLD = 0.6  # supported from here

# Round values, chosen by reason. They are not sharp: on FActScore's labelled files half or twice a
# value moves the AUROC by less than 0.003.
SENTENCE, WINDOW, PASSAGE = 0.5, 0.3, 0.2  # how much each width of place counts
PAIRS = 0.2  # share of the score that adjacent words decide
NUMBER, NAME, LIGHT = 2.0, 1.5, 0.5  # weights of numbers, capitalised and near-empty words
MISSING_YEAR, NEGATION = 0.7, 0.3  # factors for what speaks against
# Taken off when the sentence that fits best has none of the fact's names, or of its numbers: they
# tell facts of one kind apart, where the other words are the kind's.
MISSING_NAMES, MISSING_NUMBERS = 0.3, 0.3

_STOP = frozenset(
    "a an the and or of in on at by for to from with as is was were are be been being has have had "
    "he she his her hers him it its they their them who whom which that this these those also but "
    "than then so such into over after before during under about against between through out up "
    "down off if when while where there here".split()
)
_NEGATIONS = frozenset("not no never neither nor without none".split())
_LIGHT = frozenset(
    "known best one first including include includes included well career work worked works "
    "become became made make received award awards name named later early several many various "
    "numerous most more other new life year years time began start started served role roles "
    "contributions contribution field notable famous successful member part would could may can "
    "people person used use widely considered continued throughout".split()
)
_ENDINGS = (
    *("ations", "ation", "ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "ers", "ors", "er"),
    *("or", "ians", "ian", "an", "ists", "ist", "ism", "ment", "al", "ic", "e", "y"),
)
_WORD = re.compile(r"\d[\d,]*\d|\d|[^\W\d_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z\"'0-9])")
_YEAR = re.compile(r"1\d{3}|20\d\d")


class Support(NamedTuple):
    """`score` in [0, 1], None when the fact has nothing to check; `evidence`: passage index."""

    score: float | None
    evidence: int | None


@dataclass(frozen=True)
class Place:
    """A stretch of the article: its stems, its pairs of neighbours, the stems it negates."""

    stems: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    negated: frozenset[str]  # stems in the three words after a negation
    passage: int


@dataclass(frozen=True)
class Prepared:
    """An article ready for any number of facts."""

    name: frozenset[str]  # stems of the topic
    sentences: tuple[Place, ...]
    windows: tuple[Place, ...]
    passages: tuple[Place, ...]
    stems: frozenset[str]
    rarity: Callable[[str], float]


@functools.lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """A lower-case word without a common ending; at least four letters stay."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def stems(text: str) -> list[str]:
    """Stems of all words in order; numbers without thousands commas."""
    return [stem(w.replace(",", "").lower()) for w in _WORD.findall(text)]


def no_rarity(stem: str) -> float:
    """Every word weighs the same: used when there is no knowledge source to count in."""
    return 1.0


def rarity_of(texts: Iterable[str]) -> Callable[[str], float]:
    """Inverse document frequency over `texts`: ln((n + 1) / (texts with the stem + 1))."""
    found: Counter[str] = Counter()
    n = 0
    for text in texts:
        n += 1
        found.update(set(stems(text)))
    return lambda stem: math.log((n + 1) / (found[stem] + 1))


def prepare(
    topic: str, passages: Sequence[str], rarity: Callable[[str], float] = no_rarity
) -> Prepared:
    """Stem an article once, for all facts of its topic."""
    sentences, windows, whole = [], [], []
    for i, passage in enumerate(passages):
        parts = [stems(s) for s in _SENTENCE_END.split(passage) if s.strip()]
        sentences += [_place(p, i) for p in parts]
        windows += [_place(a + b, i) for a, b in zip(parts, parts[1:], strict=False)]
        whole.append(_place([s for p in parts for s in p], i))
    return Prepared(
        name=frozenset(stems(topic)),
        sentences=tuple(sentences),
        windows=tuple(windows) or tuple(sentences),
        passages=tuple(whole),
        stems=frozenset(s for p in whole for s in p.stems),
        rarity=rarity,
    )


def _place(parts: list[str], passage: int) -> Place:
    pairs = frozenset(zip(parts, parts[1:], strict=False))
    return Place(frozenset(parts), pairs, _negated(parts), passage)


def _negated(parts: list[str]) -> frozenset[str]:
    at = [i for i, s in enumerate(parts) if s in _NEGATIONS]
    return frozenset(s for i in at for s in parts[i + 1 : i + 4])


def support_prepared(fact: str, article: Prepared) -> Support:
    """How far the article supports the fact."""
    order, weights, names, numbers = _weigh(fact, article)
    if not weights or not article.sentences:
        return Support(None, None)
    total = sum(weights.values())
    covered: list[tuple[float, Place]] = []
    for places in (article.sentences, article.windows, article.passages):
        best = max(places, key=lambda p: sum(w for s, w in weights.items() if s in p.stems))
        covered.append((sum(w for s, w in weights.items() if s in best.stems) / total, best))
    shares = (SENTENCE, WINDOW, PASSAGE)
    score = sum(k * share for k, (share, _) in zip(shares, covered, strict=True))
    pairs = [p for p in zip(order, order[1:], strict=False) if p[0] in weights or p[1] in weights]
    if pairs:
        beside = sum(any(p in place.pairs for place in article.passages) for p in pairs)
        # words that all stand there need not stand in the fact's order
        score = max((1 - PAIRS) * score + PAIRS * beside / len(pairs), score if score == 1 else 0)
    years = [s for s in weights if _YEAR.fullmatch(s)]
    if years and not article.stems.intersection(years):
        score *= MISSING_YEAR
    sentence = covered[0][1]
    shared = sentence.stems.intersection(weights)
    if (_negated(order) & shared) != (sentence.negated & shared):
        score *= NEGATION
    cost = 0.0
    for group, most in ((names, MISSING_NAMES), (numbers, MISSING_NUMBERS)):
        if group:
            cost += most * len(group - sentence.stems) / len(group)
    worst = MISSING_NAMES + MISSING_NUMBERS
    return Support((min(1.0, score) - cost + worst) / (1 + worst), sentence.passage)


def _weigh(fact: str, article: Prepared) -> tuple[list[str], dict[str, float], set[str], set[str]]:
    """The fact's stems in order, the weight of each that carries content; names, numbers."""
    order: list[str] = []
    weights: dict[str, float] = {}
    names: set[str] = set()
    numbers: set[str] = set()
    for i, word in enumerate(_WORD.findall(fact)):
        lower = word.replace(",", "").lower()
        root = stem(lower)
        order.append(root)
        if lower in _STOP or lower in _NEGATIONS or root in article.name:
            continue
        # the square root keeps one very rare word from deciding alone
        weight = math.sqrt(max(article.rarity(root), 0.05))
        if lower[0].isdigit():
            weight *= NUMBER
            numbers.add(root)
        elif word[0].isupper() and i > 0:
            weight *= NAME
            names.add(root)
        if lower in _LIGHT:
            weight *= LIGHT
        weights[root] = max(weight, weights.get(root, 0.0))
    return order, weights, names, numbers


def support(fact: str, topic: str, passages: Sequence[str]) -> Support:
    """`support_prepared` for a single fact."""
    return support_prepared(fact, prepare(topic, passages))
