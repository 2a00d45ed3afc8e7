"""The lists of a parsed predicate: "studied law and music in Paris" states two facts.

`split_lists` gives the tokens of each fact. It also splits the times and places of an action, and a
nationality from a profession. Where the parse of a list is not plain, it leaves the list to the
rules of `clauses.py`, or raises UnclearParse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from facttune_ray.text.clauses import ARTICLES, POSSESSIVES
from facttune_ray.text.parsed_tree import (
    NOUNS,
    ROLES,
    VERBS,
    Parsed,
    Token,
    UnclearParse,
    below,
    child,
    is_time,
)
from facttune_ray.text.verbs import base

# A list may be split where its first item has one of these labels.
_LISTED = {"dobj", "attr", "pobj", "oprd", "acomp", "xcomp", "pcomp", "prep", "dative", "agent"}
# The items of these belong together.
_TOGETHER = set(
    "mix mixture combination combine blend fusion pair balance between merge unite difference "
    "relationship marriage among union collaboration cross".split()
)
# Verbs without an object whose time and place are two facts, too.
_EVENTS = set("born died passed married graduated retired debuted".split())
_TIMES_PLACES = {"in", "on", "at", "during"}
NATION = re.compile(r"[A-Z][a-z]+(?:an|ese|ish|nch|lsh|wiss|[^n]i|eek|ndic|egian)|Dutch|Thai|Czech")
# "is an American football player" and "is an English teacher" name no nationality.
_NONATION = set("football language literature history law teacher professor lecturer".split())


# ---------------------------------------------------------------- the facts of a predicate


def split_lists(parsed: Parsed, head: Token, kept: set[int]) -> list[set[int]] | None:
    """The tokens of each fact of the predicate `kept` of `head`; None where rules should split it.

    Raise UnclearParse where the items of a list do not match.
    """
    tokens = [parsed.tokens[i] for i in kept]
    group = _group(head, tokens)
    if not group:
        if any(t.dep_ == "cc" for t in tokens):
            return _whole(head, tokens)
        return [f for some in _times_places(head, kept) for f in _nation(parsed, head, some)]
    trees = [below(item) & kept for item in group]
    owns = [tree.difference(*(t for t in trees if t < tree)) for tree in trees]
    shared = _shared(group)
    every = set().union(*owns)
    rest = kept - every
    examples = next((t for t in tokens if _opens_examples(t)), None)
    if not _is_plain(parsed, group, owns, rest, examples, shared):
        return _whole(head, tokens)
    joints = _joints(parsed, group)
    _check_prepositions(group, [parsed.tokens[i] for i in rest | shared])
    facts = [
        (rest | shared | own) - joints | _borrowed(parsed, group[0], item)
        for item, own in zip(group, owns, strict=True)
    ]
    if examples:
        facts.insert(0, kept - below(examples))
    return [f for some in facts for f in _nation(parsed, head, some)]


def _whole(head: Token, tokens: list[Token]) -> list[set[int]] | None:
    """A predicate with a list that the parse does not show plainly: one fact where it holds a
    clause, else None."""
    clauses = [t for t in tokens if t.dep_ == "conj" and t.pos_ in VERBS]
    if any(t.i - t.head.i > 3 or t.head != head for t in clauses):
        raise UnclearParse
    inner = any(t.dep_ in {"mark", "relcl", "ccomp"} or t.tag_[0] == "W" for t in tokens)
    together = any(base(t.lower_) in _TOGETHER for t in tokens)
    return [{t.i for t in tokens}] if inner or together else None


def _group(head: Token, tokens: list[Token]) -> list[Token]:
    """The items of the first list that can be split, in order; [] without a list."""
    kept = {t.i for t in tokens}
    for token in sorted(tokens, key=lambda t: t.i):
        apposition = token == head and head.dep_ == "appos"
        if not apposition and (token == head or not _is_reached(token, head)):
            continue
        group = [token]
        for item in group:
            group += [c for c in item.children if c.dep_ == "conj" and c.i in kept]
        if len(group) == 2:
            group[0] = _like(group[1], token, head)
        if len(group) > 1 and _is_list(group):
            return sorted(group, key=lambda t: t.i)
    return []


def _is_reached(token: Token, head: Token) -> bool:
    while token != head:
        if token.dep_ not in _LISTED:
            return False
        token = token.head
    return True


def _like(item: Token, first: Token, head: Token) -> Token:
    """The first item: "her work in the field of law and her poems" lists her work."""
    owner = next((c.lower_ for c in item.children if c.dep_ == "poss"), "")
    above = first
    while owner in POSSESSIVES and above != head:
        if any(c.dep_ == "poss" and c.lower_ == owner for c in above.children):
            return above
        above = above.head
    return first


def _is_list(group: list[Token]) -> bool:
    first, above = group[0], (group[0].head, group[0].head.head)
    words = {t.lower_ for g in group[:-1] for t in g.children if t.dep_ == "cc"}
    if not words or not words <= {"and", "well", "as"}:
        return False
    if any(base(t.lower_) in _TOGETHER for t in above):
        return False
    if first.dep_ == "pobj" and first.head.lower_ in {"of", "for"} and above[1].pos_ == "PROPN":
        return False  # "the Ministry of Trade and Industry"
    if first.pos_ == "VERB" and group[1].i - first.i < 3:
        return False  # "to write and direct films"
    if first.dep_ == "prep" and len({g.lower_ for g in group}) > 1:
        return False  # "as mayor from 1990 to 1995 and as minister"
    if first.pos_ == "VERB" and len({g.tag_ for g in group}) > 1:
        return False  # "began acting and established herself"
    kinds = {"NOUN" if g.pos_ in {*NOUNS, "X"} else g.pos_ for g in group}
    return len(kinds) == 1 and kinds <= {"NOUN", "ADJ", "VERB", "ADP"}


def _is_plain(
    parsed: Parsed, group: list[Token], owns: list[set[int]], rest: set[int],
    examples: Token | None, shared: set[int],
) -> bool:  # fmt: skip
    """Whether the items follow each other without other words and without an inner list."""
    every = set().union(*owns)
    joints = _joints(parsed, group)
    if any(min(every) < i < max(every) for i in rest - joints):
        return False
    behind = max(every) + 1
    if behind in rest and parsed.tokens[behind].pos_ in NOUNS:
        return False
    inner = [parsed.tokens[i] for i in every - shared - joints]
    if any(t.text == "," or t.dep_ == "appos" for t in inner):
        return False
    return examples is None or group[0].head == examples and max(rest) <= max(below(examples))


def _joints(parsed: Parsed, group: list[Token]) -> set[int]:
    """The commas and conjunctions between the items, and "both" before them."""
    between = parsed.tokens[group[0].i : group[-1].i]
    well = {i for t in between if t.lower_ == "well" for i in (t.i - 1, t.i, t.i + 1)}
    return well | {
        t.i
        for g in group
        for t in g.children
        if t.dep_ in {"cc", "preconj"} or t.text == "," and g.i < t.i < group[-1].i
    }


def _opens_examples(token: Token) -> bool:
    """Whether the token opens a list of examples: "including", or "as" of "such as"."""
    such = token.lower_ == "as" and any(c.lower_ == "such" for c in token.children)
    return token.dep_ == "prep" and (token.lower_ == "including" or such)


def _shared(group: list[Token]) -> set[int]:
    """The phrase behind the last item that belongs to all items: "law and music in Paris"."""
    first, last = group[0], group[-1]
    phrases = [c for item in group for c in item.children if c.dep_ == "prep"]
    trailing = [c for c in phrases if c.i > last.i]
    if first.dep_ == "prep" or len(trailing) < len(phrases) or child(last, "det", "poss"):
        return set()
    opens = child(first, "det")
    if opens is None or opens.lower_ != "the":  # "his wit and love of music"
        trailing = [c for c in trailing if c.lower_ != "of" or c.head == first]
    if opens is not None and opens.lower_ in {"a", "an"}:
        trailing = [c for c in trailing if c.lower_ == "in" and first.dep_ not in ROLES]
    return set().union(*map(below, trailing))


def _check_prepositions(group: list[Token], others: list[Token]) -> None:
    """Raise UnclearParse where a preposition outside a list may belong to one item alone."""
    first, last = group[0], group[-1]
    for other in (t for t in others if t.dep_ == "prep"):
        if first.dep_ == "prep" and other.head == first.head and other.lower_ == first.lower_:
            raise UnclearParse  # "as mayor of Lyon as minister"
        near = other.i > last.i >= other.head.i
        if near and first.dep_ == "pobj" and other.lower_ == first.head.lower_:
            raise UnclearParse  # "in 'Up' and Bea in 'Down'"


def _borrowed(parsed: Parsed, first: Token, item: Token) -> set[int]:
    """The first item's article, owner or "to", if a later item needs it."""
    if item == first:
        return set()
    if item.pos_ == "VERB":
        if any(c.lower_ == "to" for c in item.children):
            return set()
        return {c.i for c in first.children if c.dep_ == "aux" and c.lower_ == "to"}
    opens, own = child(first, "det", "poss"), child(item, "det", "poss", "nummod")
    indefinite = opens is not None and opens.lower_ in {"a", "an"}
    if own is None and indefinite and item.tag_ == "NNS":
        raise UnclearParse  # "as a player, known for his skills"
    phrase = child(item, "prep")
    if first.dep_ == "pobj" and phrase is not None and phrase.lower_ == first.head.lower_:
        raise UnclearParse  # "studied law in Lyon and music in Rome"
    if indefinite and item.pos_ == "PROPN" and own is not None and child(first, "prep"):
        raise UnclearParse  # "a member of the Committee, the Council and the Board"
    if own is not None and own.dep_ == "poss" and opens is None and first.dep_ == "pobj":
        raise UnclearParse  # "his degree from Yale and his doctorate"
    if own is not None or opens is None:
        return set()
    if first.dep_ in ROLES and indefinite and parsed.tokens[min(below(item))].text.islower():
        return {opens.i}
    many = any(c.lower_ in {"other", "many", "several", "various"} for c in item.children)
    if opens.lower_ == "the" and item.text[0].isdigit():
        return {opens.i}  # "the 1930s and 1940s"
    if item.pos_ != "NOUN" or many:
        return set()
    article = opens.lower_ in ARTICLES and item.tag_ == "NN"
    return {opens.i} if article or opens.lower_ in POSSESSIVES else set()


# ---------------------------------------------------------------- times, places, nationalities


def _times_places(head: Token, kept: set[int]) -> Iterator[set[int]]:
    """Split the times and places of an action: "was released in Lyon", "was released in 1950"."""
    phrases = [
        below(c)
        for c in head.children
        if c.dep_ == "prep" and c.i in kept and c.i > head.i and c.lower_ in _TIMES_PLACES
        if any(o.dep_ == "pobj" and (o.pos_ == "PROPN" or is_time(o)) for o in c.children)
    ]
    complete = child(head, "dobj", "auxpass", "nsubjpass") or head.lower_ in _EVENTS
    if len(phrases) < 2 or not complete:
        yield kept
        return
    for phrase in phrases:
        yield kept - set().union(*phrases) | phrase & kept


def _nation(parsed: Parsed, head: Token, some: set[int]) -> list[set[int]]:
    """Split a nationality from a role: "is a French actor" -> "is French", "is an actor"."""
    for word in (parsed.tokens[i] for i in some):
        noun, i = word.head, word.i
        role = noun.dep_ == "attr" or noun.dep_ == "conj" and noun.head.dep_ in {"attr", "conj"}
        if word.dep_ != "amod" or not role or not NATION.fullmatch(word.text) or i < 2:
            continue
        opens, after, before = child(noun, "det"), parsed.tokens[i + 1], parsed.tokens[i - 1]
        alone = after.text.islower() and after.dep_ not in {"cc", "conj"}
        if opens is None or opens.lower_ not in {"a", "an"} or not alone:
            continue
        hedged = any(c.dep_ in {"neg", "advmod"} and c.lower_ != "also" for c in head.children)
        if hedged or after.dep_ == "compound":
            continue  # "was reportedly a French spy", "is a French horn player"
        if {after.lower_, noun.lower_} & _NONATION or after.pos_ not in {"NOUN", "ADJ"}:
            continue
        two = before.text.isalpha() and before.text[0].isupper()  # "South Korean"
        nation = {i - 1, i} if two else {i}
        verb = {c.i for c in head.children if c.dep_ in {"aux", "neg"}} | {head.i}
        return [verb & some | nation, some - nation]
    return [some]
