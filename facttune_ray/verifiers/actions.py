"""Compare who did a thing to whom, in which year, and how many of them.

    function     a fact that it denies    the evidence
    by_action    "Ada coached Tom"        "Ada was coached by Tom"
    by_another   "Tom left Lyon"          "Ada left Lyon"
    by_year      "Ada left in 1955"       "Ada left in 1948"
    by_quantity  "two children"           "three children"

These functions only deny. A fact that they do not deny is judged by its words.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from facttune_ray.text.meanings import meaning
from facttune_ray.text.quantities import NUMBERS
from facttune_ray.text.relations import TOPIC, Clause, is_year
from facttune_ray.verifiers.article import Article
from facttune_ray.verifiers.match import DENIED, Match, clauses_with, values

_COUNTS = frozenset(w for w, n in NUMBERS.items() if 2 <= n <= 12)
# active and passive mean the same
_MUTUAL = frozenset("marry collaborate meet divorce fight play raise".split())


def by_action(fact: Clause, article: Article) -> Match | None:
    """Who did it to whom: "Tom coached Ada" says nothing about whom Ada coached."""
    part = _part(fact, article.name)
    need = frozenset(w for w in values([*fact.said, *fact.who]) if w != fact.verb) - article.name
    if part in {None, "none"} or fact.capital.isdisjoint(need) or fact.verb in _MUTUAL:
        return None
    place = None
    for place_, clause in clauses_with(fact.verb, article):
        if clause.verb == fact.verb and need <= {*clause.said, *clause.who}:
            if _part(clause, article.name) in {part, None}:
                return None  # words decide about the rest
            place = place_
    return None if place is None else Match(DENIED, fact.verb, place=place)


def by_another(fact: Clause, article: Article) -> Match | None:
    """Whether the article says of the topic what the fact says of another name."""
    who = frozenset(values(fact.who))
    said = frozenset(values(fact.said)) - {fact.verb} - article.name
    named = bool(who) and who <= fact.capital and who.isdisjoint(article.name)
    if fact.subject == TOPIC or not named or said.isdisjoint(fact.capital) or fact.verb == "be":
        return None  # two things may both be in England
    rarest = min(said, key=lambda w: len(article.places.get(w, ())))
    denied = None
    for place in article.places.get(rarest, ()):
        for clause, words in zip(article.clauses(place), article.clause_words(place), strict=True):
            if said <= words:
                if not who.isdisjoint(article.meanings[place]) or clause.subject != TOPIC:
                    return None
                if clause.verb == fact.verb and clause.who and not clause.passive:
                    denied = place
    return None if denied is None else Match(DENIED, fact.verb, frozenset(who), denied)


def by_year(fact: Clause, article: Article) -> Match | None:
    """Whether the article gives another year for the same action."""
    years = [w for w in fact.said if is_year(w)]
    if len(years) != 1 or not fact.verb:
        return None
    need = frozenset(values([*fact.said, *fact.who])) - {fact.verb, *years} - article.name
    if not need or fact.capital.isdisjoint(need):
        return None
    if any(need <= set(article.meanings[p]) for p in article.places.get(years[0], ())):
        return None  # stated with another verb: "In 1955 she moved"
    denied = None
    for place, clause in clauses_with(fact.verb, article):
        if need <= set(article.meanings[place]):
            if any(is_year(w) for w in [*clause.said, *clause.who]):
                denied = place
    return None if denied is None else Match(DENIED, fact.verb, frozenset(years), denied)


def _part(clause: Clause, name: Set[str]) -> str | None:
    """The topic's part in an action: "does", "gets it done", "none"; None where rules fail."""
    if clause.subject == TOPIC:
        if not clause.who and not clause.passive:
            return None
        return "gets it done" if clause.passive else "does"
    objects = name | {"him", "her", "them", "it", "he", "she", "they"}
    if not clause.who:
        return "none"  # of the other subject of the clause before
    if not clause.capital.intersection(clause.who):
        return None
    if clause.passive:
        by = clause.said[clause.said.index("by") + 1 :] if "by" in clause.said else []
        return "does" if objects & set(by[:3]) else "none"
    return "gets it done" if objects & set(clause.said) else "none"


def by_quantity(words: Sequence[str], article: Article) -> Match | None:
    """Whether the article counts the same things otherwise: "two children", "three children"."""
    if not any(w in _COUNTS or w[0].isdigit() for w in words):
        return None
    order = [meaning(w.lower()) for w in words]
    for i, count in enumerate(order):
        named = words[i][0].isupper() or (i and words[i - 1][0].isupper() and i > 1)
        if not count.isdigit() or len(count) == 4 or named or not i:
            continue
        things = [w for w in values(order[i + 1 : i + 4]) if not w[0].isdigit()]
        if not things:
            continue
        others = []
        for place in article.places.get(things[-1], ()):
            there = article.meanings[place]
            at = there.index(things[-1]) if things[-1] in there else 0
            near = {w for w in there[max(0, at - 3) : at] if w.isdigit() and len(w) < 4}
            if count in near:
                return None
            if near and set(things) <= set(there):
                others.append(place)
        if len(others) == 1:
            return Match(DENIED, things[-1], frozenset({count}), others[0])
    return None
