"""A verifier without a model: does the article state a fact's relation, and does it hold its words?

    prepared = prepare("Mara Veldt", ["Mara Veldt was born in Lyon. She plays the cello."])
    support_prepared("Mara Veldt plays the cello.", prepared).score  ->  0.92
    support_prepared("Mara Veldt was born in Rome.", prepared)
        ->  Support(0.27, 0, "born: the passage states another value than rome")
    support_prepared("Mara Veldt moved to the.", prepared)
        ->  Support(None, None, 'a fragment: it ends on "the"')

Two readings give one score. Words: in favour count the share of the fact's words, weighted by
rarity, that the best sentence holds; against it count names and numbers that the sentence lacks, a
name of which the article holds only parts, and a negation on one side only. Relation
(`statements.py`): a relation that a clause states raises the score, one that is stated with another
value, or of nobody, bounds it. A fact without a known relation is judged by its words alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from facttune_ray.text.clauses import PRONOUNS
from facttune_ray.text.fragments import unfinished
from facttune_ray.text.meanings import NARROWER, ROLES, meanings
from facttune_ray.text.relations import OTHER, OWNERS, Clause, is_year, read, split_words
from facttune_ray.text.words import FAMILY, stem
from facttune_ray.verifiers import statements
from facttune_ray.verifiers.article import Article, read_article
from facttune_ray.verifiers.match import DENIED, OPEN, SILENT, STATED, Match

THRESHOLD = 0.5  # smallest score of a supported fact: even odds
VERSION = 3  # raised when the code changes scores

# Log-odds, as round numbers. A regression on one labelled file of FActScore is no better on the
# other file: jobs/results/README.md, "Real text".
BIAS = -0.7
SHARE = 2.2  # difference between no word and all words found in the best sentence
CLAUSE = 0.7  # the same for the best clause of that sentence
PAIRS = 0.8  # the same for neighbouring words, found as neighbours in the article
ASIDE = 1.0  # bonus of a fact that is not about the topic: few articles say "Lyon is in France"
MISSING_NAME = 0.45  # penalty per missing capitalised word: names make a fact specific
MISSING_NUMBER = 1.0  # penalty per missing number: a wrong year, day or count is surely wrong
MISSING_YEAR = 1.5  # further penalty for a year that the whole article lacks
SPLIT_NAME = 0.75  # penalty per name in parts: "University of Lyon" from "a university" and "Lyon"
NOWHERE = 0.2  # penalty per root of the weight of words that the whole article lacks
RAREST = 0.25  # penalty per weight of the rarest word that the sentence lacks
NEGATION = 3.5  # penalty of a negation on one side only
BOUNDS = {  # odds of a fact by what the article says about its relation
    STATED: (1.5, math.inf),
    DENIED: (-math.inf, -1.0),
    SILENT: (-math.inf, -0.3),
    OPEN: (-math.inf, math.inf),
}

LIGHT = 0.5  # weight of a word with little meaning; a common word has 1
NARROW = 0.7  # a narrower role counts this share: a boxer is an athlete
LENGTH = 0.003  # share that a sentence loses per word: long lists hold many words by chance
_STOP = frozenset(
    "a an the and or of in on at by for to from with as is was are were be been being has have had "
    "he she his her hers him it its they their them who whom which that this these those also but "
    "than then so such into over after before during under about against between through out up "
    "down off if when while where there here".split()
)
_NEGATIONS = frozenset("not no never neither nor without none".split())
_EMPTY = _STOP | _NEGATIONS
_LIGHT = frozenset(
    "known best one including include includes included well career work worked works become "
    "became name named later early several many various numerous most more other new life year "
    "years time served role roles contributions contribution field notable famous successful "
    "member part would could may can people person used use widely considered continued throughout "
    # praise, which writers of biographies add to any fact
    "figure figures position positions legacy significant often involved remembered controversial "
    "regarded prominent recognition variety way popular highly respected talented influential "
    "strong active actively quickly faced behind remains".split()
)
_COMMON = frozenset(FAMILY.values())
_ABOUT = OWNERS | PRONOUNS | {"him", "them"}


Parts = tuple[tuple[str, float], ...]  # (name, log-odds) of what adds up to a score


class Support(NamedTuple):
    """`score` in [0, 1], None for a fact without anything to check; `evidence`: passage index;
    `reason`: why there is no score, or what the article says about the fact's relation."""

    score: float | None
    evidence: int | None
    reason: str | None = None


class Explained(NamedTuple):
    """A score and how it came about: score = 1 / (1 + exp(-sum of `parts`)). `place`: the best
    sentence's index in the article. Without a score there are neither."""

    support: Support
    place: int | None = None
    parts: Parts = ()


@dataclass(frozen=True)
class Prepared:
    """An article, prepared for any number of facts."""

    article: Article
    rarity: Callable[[str], float]
    weights: dict[str, float] = field(default_factory=dict)  # of words that facts have used


@dataclass(frozen=True)
class _Content:
    """The words of a fact, by their meanings."""

    order: list[str]  # all words
    weights: dict[str, float]  # content words
    names: set[str] = field(default_factory=set)  # content words, capitalised inside the fact
    numbers: set[str] = field(default_factory=set)  # content words with digits
    runs: list[list[str]] = field(default_factory=list)  # capitalised words in a row
    roles: set[str] = field(default_factory=set)  # content words that are nouns for roles


def no_rarity(stem: str) -> float:
    """Rarity without a knowledge source: words of most biographies are common, all others rare."""
    return 1.0 if stem in _COMMON else 4.0


def prepare(
    topic: str, passages: Sequence[str], rarity: Callable[[str], float] = no_rarity
) -> Prepared:
    """Read an article once, for all facts of its topic."""
    return Prepared(read_article(topic, passages), rarity)


def support(fact: str, topic: str, passages: Sequence[str]) -> Support:
    """`support_prepared` for a single fact."""
    return support_prepared(fact, prepare(topic, passages))


def support_prepared(fact: str, prepared: Prepared) -> Support:
    """The article's support of the fact; `evidence` is the passage of the best sentence."""
    return explain(fact, prepared).support


def explain(fact: str, prepared: Prepared) -> Explained:
    """The article's support of the fact, with the best sentence and the parts of the score."""
    article, words = prepared.article, split_words(fact)
    means = meanings(words)
    content = _read(words, means, prepared)
    clauses = read(words, article.name, means=means)
    clause = next((c for c in clauses if c.verb), None)
    if why := unfinished(words, clause):
        return Explained(Support(None, None, why))
    match = None
    if clause:
        if _other_name(clause, article):
            clause.subject = OTHER
        match = statements.judge(clause, words, article) or _unknown_subject(clause, article)
    if not article.places or not (content.weights or match):
        return Explained(Support(None, None, "nothing to check"))
    best, odds, parts = _odds(content, article)
    if match:
        low, high = BOUNDS[match.answer]
        bounded = min(max(odds, low), high)
        parts += (("bound of the relation", bounded - odds),)
        odds, best = bounded, best if match.place is None else match.place
    score = 1 / (1 + math.exp(-odds))
    return Explained(Support(score, article.passages[best], _reason(match)), best, parts)


def best_clause(fact: str, prepared: Prepared, place: int) -> str:
    """The clause of a sentence that shares the most words with the fact, as it was read: subject
    and predicate, each word as its meaning."""
    wanted = set(meanings(split_words(fact))) - _EMPTY
    clauses = ([*c.who, *c.said] for c in prepared.article.clauses(place))
    return " ".join(max(clauses, key=lambda words: len(wanted & set(words)), default=[]))


def _other_name(clause: Clause, article: Article) -> bool:
    """Whether the subject shares only a first or a last name with the topic."""
    who = clause.who
    if len(who) < 2 or not clause.capital.issuperset(who):
        return False
    if who[0] in article.name:
        return who[-1] not in article.name
    # another first name that the article mentions, but not with this last name
    return who[0] in article.places and not article.pairs.issuperset(
        zip(who, who[1:], strict=False)
    )


def _unknown_subject(clause: Clause, article: Article) -> Match | None:
    """A fact about a name that the article does not mention says nothing that it could state."""
    who = clause.who
    if clause.subject != OTHER or not who or not clause.capital.issuperset(who):
        return None
    known = any(w in article.places and w not in article.name for w in who)
    return None if known else Match(SILENT, "subject", frozenset(who))


def _reason(match: Match | None) -> str | None:
    if match is None or match.answer == OPEN:
        return None
    lacks = f" {' '.join(sorted(match.missing))}" if match.missing else ""
    return {
        STATED: f"{match.cue}: stated",
        DENIED: f"{match.cue}: the passage states another value than{lacks}",
        SILENT: f"{match.cue}: not said of this subject:{lacks}",
    }[match.answer]


def _odds(content: _Content, article: Article) -> tuple[int, float, Parts]:
    """(place of the best sentence, log-odds of the fact by its words, the parts of the odds)."""
    weights, order = content.weights, content.order
    total = sum(weights.values()) or 1.0
    weight_at: dict[int, float] = defaultdict(float)  # place -> weight of its words of the fact
    narrower: dict[str, set[int]] = {}  # word -> places that hold only a narrower role
    for word, weight in weights.items():
        places = article.places.get(word, ())
        for place in places:
            weight_at[place] += weight
        if word in content.roles:
            found_at = {p for n in NARROWER[word] for p in article.places.get(n, ())}
            narrower[word] = found_at.difference(places)
            for place in narrower[word]:
                weight_at[place] += NARROW * weight
    dilution = LENGTH * total
    best = max(
        weight_at,
        key=lambda p: (weight_at[p] - dilution * article.bulk[p], -p),
        default=0,
    )
    found = {w for w in weights if best in article.places.get(w, ()) or best in narrower.get(w, ())}
    clause = 0.0
    if found:
        items = [(w, weights[w]) for w in found]
        parts = article.clause_words(best)
        clause = max((sum([x for w, x in items if w in part]) for part in parts), default=0.0)
    near = possible = 0.0
    for pair in zip(order, order[1:], strict=False):
        weight = weights.get(pair[0], 0.0) + weights.get(pair[1], 0.0)
        possible += weight
        near += weight * (pair in article.pairs)
    share = weight_at[best] / total
    about = not article.name.isdisjoint(order) or not _ABOUT.isdisjoint(order)
    words, together = SHARE * share, CLAUSE * clause / total
    pairs, aside = PAIRS * (near / possible if possible else share), 0.0 if about else ASIDE
    in_favour = (
        ("start of every fact", BIAS),
        ("words in the best sentence", words),
        ("words in its best clause", together),
        ("neighbouring words", pairs),
        ("not about the topic", aside),
    )
    against, penalties = _against(content, found, narrower, best, article)
    odds = BIAS + words + together + (pairs + aside)
    return best, odds - against, in_favour + penalties


def _against(
    content: _Content, found: set[str], narrower: dict[str, set[int]], best: int, article: Article
) -> tuple[float, Parts]:
    """(sum of the penalties, the penalties as negative parts)."""
    weights, places = content.weights, article.places
    lacking = [w for word, w in weights.items() if word not in found]
    nowhere = sum(w for s, w in weights.items() if s not in places and not narrower.get(s))
    years = sum(is_year(n) and n not in places for n in content.numbers)
    split = sum(not article.pairs.issuperset(zip(r, r[1:], strict=False)) for r in content.runs)
    negated = (_negated(content.order) & found) != (_negated(article.meanings[best]) & found)
    penalties = (
        ("names that the sentence lacks", MISSING_NAME * len(content.names - found)),
        ("numbers that the sentence lacks", MISSING_NUMBER * len(content.numbers - found)),
        ("years that the article lacks", MISSING_YEAR * years),
        ("names that the article holds in parts", SPLIT_NAME * split),
        ("words that the article lacks", NOWHERE * math.sqrt(nowhere)),
        ("rarest word that the sentence lacks", RAREST * max(lacking, default=0.0)),
        ("negation on one side", NEGATION * negated),
    )
    total = 0.0
    for _, value in penalties:
        total += value
    return total, tuple((name, -value) for name, value in penalties if value)


def _negated(parts: list[str]) -> frozenset[str]:
    """Three words after each negation."""
    if _NEGATIONS.isdisjoint(parts):
        return frozenset()
    at = [i for i, s in enumerate(parts) if s in _NEGATIONS]
    return frozenset(s for i in at for s in parts[i + 1 : i + 4])


def _read(words: list[str], means: list[str], prepared: Prepared) -> _Content:
    """Collect the words of a fact, with their weights."""
    content, name = _Content([], {}), prepared.article.name
    order, weights, known = content.order, content.weights, prepared.weights
    run: list[str] = []
    for word, root in zip(words, means, strict=True):
        first = word[0]
        if not first.isalnum():
            run = []
            continue
        capital = bool(order) and first.isupper() and root not in name
        order.append(root)
        if capital:
            run.append(root)
            if len(run) == 2:
                content.runs.append(run)
        elif run:
            run = []
        if root in name or (lower := word.lower()) in _EMPTY:
            continue
        if first.isdigit() or (first == "d" and word[1:2].isdigit()):
            content.numbers.add(root)
        elif capital:
            content.names.add(root)
        if lower in ROLES:
            content.roles.add(root)
        weight = known.get(lower)
        if weight is None:
            # the square root keeps one very rare word from deciding alone
            weight = math.sqrt(max(prepared.rarity(stem(lower)), 0.05))
            weight *= LIGHT if lower in _LIGHT else 1.0
            known[lower] = weight
        weights[root] = max(weight, weights.get(root, 0.0))
    return content
