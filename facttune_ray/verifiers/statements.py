"""Look for a fact's relation in an article: does a clause state its value of the same subject?

    article = read_article("Ada Vane", ["Ada Vane was born in Lyon. Her mother was born in Rome."])
    words = split_words("Ada Vane was born in Rome.")
    judge(read(words, article.name)[0], words, article)
        ->  Match("denied", "born", missing={"rome"}, ...)

A relation has a cue (born, border, capital), a subject and a value. These are read: births, deaths
and borders; a noun with an owner ("the capital of Mali is"); a place ("is in Africa"); a role ("is
a journalist"); who did a thing to whom; a number of things. Evidence is a clause with the same
subject and cue. A fact without such a relation gets None, and its words decide (`lexical.py`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from facttune_ray.text.meanings import NARROWER, meaning
from facttune_ray.text.relations import (
    OTHER,
    OWNERS,
    TOPIC,
    Clause,
    is_date,
)
from facttune_ray.verifiers.actions import by_action, by_another, by_quantity, by_year
from facttune_ray.verifiers.article import COPULAS, Article, phrase
from facttune_ray.verifiers.match import (
    DENIED,
    EMPTY,
    OPEN,
    SILENT,
    STATED,
    Match,
    clauses_with,
    values,
)

RELATION_VERBS = frozenset({"born", "die", "border", "locate"})
_WHOLE = frozenset({"border", "capital"})  # the value is a whole name: Sudan is not South Sudan
_PLACES = frozenset("in on at within".split())  # prepositions of places and times
_ASIDE = frozenset("to as with by for from after because".split())
_KINDS = frozenset("country nation state city town village island region place".split())
_STATES = COPULAS | {meaning("include")}
_SHARES = frozenset(map(meaning, ("share", "have")))

# ---------------------------------------------------------------- the relation of a fact


def judge(fact: Clause, words: Sequence[str], article: Article) -> Match | None:
    """What the article says about a fact's clause; None for a fact without a relation that this
    file reads. `words`: of the whole fact, in its own forms."""
    match = _by_relation(fact, words, article) or by_another(fact, article)
    if match is None and fact.verb not in COPULAS:
        match = by_year(fact, article) or by_action(fact, article)
    if match is None or match.answer == OPEN:
        match = by_quantity(words, article) or match
    return match


def _by_relation(fact: Clause, words: Sequence[str], article: Article) -> Match | None:
    said, noun = fact.said, _owned(fact.who)
    itself = fact.subject == TOPIC and noun is None
    if fact.verb in RELATION_VERBS:
        if fact.verb == "locate":
            return _by_place(fact, said, article) if itself else None
        return _by_verb(fact, article)
    if "border" in said and fact.verb in _SHARES:  # "shares a border with"
        return _by_verb(fact, article, "border")
    if fact.verb not in _STATES or len(said) < 2:
        return None
    at = 1 if said[0] == fact.verb else said.index(fact.verb) + 1 if fact.verb in said else 1
    if noun:
        owner = _owner(fact.who)
        if noun in fact.capital or noun == "one" or fact.verb not in {"be", meaning("include")}:
            return None  # "The University of Lyon is", "One of his films is"
        if fact.subject == TOPIC:
            return _by_noun(noun, said[at:], article)
        if owner <= fact.capital and owner.isdisjoint(article.name):
            return _of_another(noun, owner, values(said[at:]), article)
        return None
    if at >= len(said) or fact.verb not in COPULAS:
        return None
    if said[at] == "the" and "of" in said:  # "Bamako is the capital of Mali"
        of = said.index("of")
        owner = frozenset(values(said[of:]))
        if owner and owner <= article.name and said[of - 1] not in fact.capital:
            return _by_noun(said[of - 1], fact.who, article)
    if fact.subject == OTHER:
        return None
    if said[at] in _PLACES:
        return _by_place(fact, said[at:], article)
    if said[at] in {"a", "an"}:
        if _KINDS & set(said[at:]) and "in" in said:
            return _by_place(fact, said[said.index("in") :], article)
        return _by_role(fact, said[at:], words, article)
    return None


def _owned(who: list[str]) -> str | None:
    """The noun that somebody owns: "the capital of mali", "mali 's capital", "its capital"."""
    if "of" in who:
        at = who.index("of")
        return who[at - 1] if at else None
    if "'s" in who[:-1] or (who and who[0] in OWNERS and len(who) > 1):
        return who[-1]
    return None


def _owner(who: list[str]) -> frozenset[str]:
    """The words of the owner; none for "its"."""
    if "of" in who:
        return frozenset(values(who[who.index("of") :]))
    return frozenset(values(who[: who.index("'s")] if "'s" in who else []))


# ---------------------------------------------------------------- evidence for it


@dataclass(frozen=True)
class _Statement:
    """A clause of the article that states a relation."""

    place: int
    words: Sequence[str]  # of its value
    capital: Set[str] = frozenset()
    plain: bool = True  # it is a sentence about this relation, so another value is a denial


def _by_verb(fact: Clause, article: Article, cue: str = "") -> Match | None:
    cue = cue or fact.verb
    wanted = _value(fact.said, cue)
    if fact.subject == OTHER:
        if cue != "border" or article.name.isdisjoint(fact.said):
            return _of_another(cue, frozenset(values(fact.who)), wanted, article)
        wanted = fact.who  # "Algeria borders Mali"
    life = cue in {"born", "die"}
    if not values(wanted) or (life and ("age" in wanted or wanted[0] not in _PLACES)):
        return None  # "was born Ada Vane", "died at the age of 60"
    statements = []
    for place, clause in clauses_with(cue, article):
        if clause.subject == TOPIC:
            words = _value(clause.said, cue)
            statements.append(_Statement(place, words, clause.capital))
        elif cue == "border" and not article.name.isdisjoint(clause.said):
            statements.append(_Statement(place, clause.who, plain=False))
    return _best(cue, wanted, statements, fact.capital)


def _by_noun(noun: str, wanted: list[str], article: Article) -> Match | None:
    if not values(wanted):
        return None
    statements = []
    for place, clause in clauses_with(noun, article):
        said = clause.said
        if noun in clause.who:
            # "The official languages are": of the article's subject, unless a name owns them
            if clause.subject == TOPIC or (
                clause.capital.isdisjoint(clause.who[1:]) and _owned(clause.who) is None
            ):
                plain = clause.verb == "be" and not clause.passive
                statements.append(_Statement(place, said, clause.capital, plain))
        else:
            after = said[said.index(noun) + 1 :]
            if after[:1] == ["of"] and clause.verb == "be" and article.name & set(after):
                statements.append(_Statement(place, clause.who))
            elif clause.subject == TOPIC:
                statements.append(_Statement(place, after, clause.capital, plain=False))
    itself = article.name.issuperset(values(wanted))
    match = _best(noun, wanted, statements, whole=itself)
    silent = match.answer == SILENT and not itself
    return Match(OPEN, noun, match.missing) if silent else match


def _by_place(fact: Clause, said: list[str], article: Article) -> Match | None:
    wanted = _value(said, "locate")
    if fact.capital.isdisjoint(wanted):
        return None  # "is in a band"
    if article.name == frozenset(values(wanted)):
        return Match(DENIED, "locate", frozenset(values(wanted)))  # nothing lies in itself
    near = {p for w in wanted for p in article.places.get(w, ())}
    statements = []
    for place in sorted({*near, *article.places.get("locate", ())}):
        for clause in article.clauses(place):
            if clause.subject != TOPIC or clause.verb not in {"be", "locate"}:
                continue
            if "locate" in clause.said:
                statements.append(_Statement(place, _value(clause.said, "locate")))
                continue
            at = next((i for i, w in enumerate(clause.said) if w in _PLACES), None)
            if at is not None and _owned(clause.who) is None:  # "is a country in Africa"
                words = _value(clause.said[at:], "locate")
                statements.append(_Statement(place, words, plain=at == 1))
    return _best("locate", wanted, statements)


def _by_role(fact: Clause, said: list[str], forms: Sequence[str], article: Article) -> Match | None:
    """Whether the topic is said to be this: "is a", "as a", an apposition, or an activity. A role
    noun elsewhere ("she met a journalist") says nothing; another form ("journalism") may."""
    wanted = values(phrase(said))
    if not wanted:
        return None
    found, hinted, at = set(), set(), None
    for word in wanted:
        for kind in (word, *NARROWER.get(word, ())):
            for place in article.places.get(kind, ()):
                if kind in article.roles(place):
                    found.add(word)
                    at = place
                elif word not in hinted and _hinted(kind, place, forms, article):
                    hinted.add(word)
            if word in found:
                break
    missing = frozenset(wanted) - found
    plain = len(phrase(said)) == len(said)  # without "of the band"
    if not missing and plain:
        return Match(STATED, "be", place=at)
    if found or hinted or not plain or wanted[-1] in fact.capital:
        return Match(OPEN, "be", missing, at)
    return Match(SILENT, "be", missing)


def _hinted(kind: str, place: int, forms: Sequence[str], article: Article) -> bool:
    """Whether a clause about the topic holds the word in another form than the fact."""
    if not any(c.subject == TOPIC and kind in c.said for c in article.clauses(place)):
        return False
    means = article.meanings[place]
    same = {w for w, m in zip(article.words[place], means, strict=True) if m == kind}
    return same.isdisjoint(forms)


def _of_another(cue: str, owner: Set[str], wanted: Sequence[str], article: Article) -> Match | None:
    """A relation of another subject: one clause must hold subject, cue and value."""
    need = frozenset(values(wanted))
    if not owner or not need:
        return None
    for place in article.places.get(cue, ()):
        for clause in article.clauses(place):
            have = {*clause.who, *clause.said}
            if (
                need <= have
                and owner <= have
                and (owner & set(clause.who) or need & set(clause.who))
            ):
                return Match(STATED, cue, place=place)
    return Match(SILENT, cue, need)


def _value(said: Sequence[str], cue: str) -> list[str]:
    """The words after a cue that are its value: no parents, no occasion, no "between"."""
    words = said[said.index(cue) + 1 :] if cue in said else said
    if cue == "border":
        return list(words)
    out: list[str] = []
    inside = True
    for word in words:
        if word in _ASIDE or (word == "between" and cue == "locate"):
            inside = False
        elif word in _PLACES or word == ",":
            inside = inside or word != ","
        if inside:
            out.append(word)
    return out


def _best(
    cue: str,
    wanted: Sequence[str],
    statements: list[_Statement],
    capital: Set[str] = frozenset(),
    whole: bool = False,
) -> Match:
    """The statement that has most of the value. `capital`: capitalised words of the fact; `whole`:
    the value must be a whole item, with its small words."""
    need = frozenset(values(wanted))
    dated = any(map(is_date, need))
    named = not all(map(is_date, need))
    best, missing, denied = None, need, False
    for statement in statements:
        if cue in _WHOLE or whole:
            items = _items(statement.words, frozenset() if whole else statement.capital)
            own = _items(wanted, capital & need)
            lacks = frozenset(w for item in own if item not in items for w in item)
        else:
            lacks = need.difference(statement.words)
            if cue == "locate" and not lacks and not _in_order(wanted, statement.words):
                lacks = need  # North America is not the north of South America
        if statement.plain:
            other = [w for w in values(statement.words) if w != cue]
            denied |= (dated and any(map(is_date, other))) or (
                named and not all(map(is_date, other))
            )
        if best is None or len(lacks) < len(missing):
            best, missing = statement.place, lacks
    if best is None:
        return Match(SILENT, cue, need)
    return Match(STATED if not missing else DENIED if denied else SILENT, cue, missing, best)


def _in_order(wanted: Sequence[str], words: Sequence[str]) -> bool:
    return f" {' '.join(values(wanted))} " in f" {' '.join(values(words))} "


def _items(words: Sequence[str], capital: Set[str]) -> set[frozenset[str]]:
    """The items of a list: "the gulf of guinea , between benin and cameroon" -> three items. Only
    capitalised words count, where they are known."""
    items: list[set[str]] = [set()]
    for word in words:
        if word in {",", "and", "or", "between", "with"}:
            items.append(set())
        elif word not in EMPTY and word[0].isalnum() and (not capital or word in capital):
            items[-1].add(word)
    return {frozenset(item) for item in items if item}
