"""Read the clauses of a sentence: what each clause is about, its verb, and the words it says.

    read(split_words("Her mother was born in Mumbai, and she coached Leeds."), {"ada", "vane"})
        ->  [Clause(OTHER, who=["her", "parent"], verb="born",
                    said=["be", "born", "in", "mumbai", ","], ...),
             Clause(TOPIC, who=["she"], verb="coach", said=["coach", "leed"], ...)]

Rules find the clauses: marks, conjunctions and relative pronouns open one, and the words before its
first finite verb are its subject. A clause without a subject has the subject of the clause before.
Words are meanings (`meanings.py`), so facts and evidence of one meaning have equal words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from facttune_ray.text.clauses import ARTICLES, POSSESSIVES, PRONOUNS
from facttune_ray.text.clauses import PREPOSITIONS as ALL_PREPOSITIONS
from facttune_ray.text.meanings import meaning, meanings
from facttune_ray.text.quantities import MONTHS
from facttune_ray.text.verbs import AUXILIARIES, BE, KNOWN, base, is_finite, is_past
from facttune_ray.text.words import plain

TOPIC, OTHER = "topic", "other"
OWNERS = frozenset(POSSESSIVES) | {"whose"}
DETERMINERS = frozenset(ARTICLES) | OWNERS | frozenset("this that these those".split())
# after these, the words of `clauses.PREPOSITIONS` that name no relation, a clause goes on
PREPOSITIONS = frozenset(ALL_PREPOSITIONS) - {
    "including", "featuring", "alongside", "through", "throughout"
}  # fmt: skip

_WORD = re.compile(r"d\d\d?[a-z]{3}\b|\d{3}0s\b|\d[\d,]*\d|\d|'s\b|[^\W\d_]+|[,;:()\u2013]")
# other ways to write the dash between two dates: "May 1901 - 2 June 1980", "1901-1980"
_DASH = re.compile(r"\s(?:--?|\u2014)\s|(?<=\d)-(?=\d{4}\b)")
_NOT_BEFORE = PREPOSITIONS | {",", "and", "or"}
_ENDS = frozenset(";:()\u2013")
_AND = frozenset("and but or then nor yet".split())
_OPENERS = frozenset(
    "who which where when while whereas although though because whose before after until since "
    "that as if".split()
)
_LIFE = {"(": "born", ";": "born", "\u2013": "die"}
_RELATIVE = frozenset("who which that where whose".split())
_BE = BE | {"be", "been", "being"}
_FILLERS = _BE | frozenset("not never also still currently once often been now then later".split())
_NO_PARTICIPLES = frozenset("during including being following according king string spring".split())
# "her mother" is another person; "her career" belongs to the topic
_PEOPLE = frozenset(
    "parent child marry sibling family friend colleague partner uncle aunt cousin nephew niece "
    "grandfather grandmother grandparent ancestor teach coach mentor rival fan predecessor "
    "successor brother".split()
)
_MONTHS = frozenset(map(meaning, MONTHS))


@dataclass(slots=True)
class Clause:
    subject: str  # TOPIC or OTHER
    who: list[str]  # words of the subject; in a clause without a verb []
    verb: str  # "" without a verb; "be" for a copula
    said: list[str]  # the verb and the words after it, with "," between parts
    passive: bool = False
    capital: set[str] = field(default_factory=set)  # the words that are capitalised


def is_date(word: str) -> bool:
    """Whether a word is a year, a day of a month or a month."""
    return word[0].isdigit() or word in _MONTHS or (word[0] == "d" and word[1:2].isdigit())


def is_year(word: str) -> bool:
    """Whether a word is a year from 1000 to 2099."""
    return len(word) == 4 and word.isdigit() and "1000" <= word < "2100"


def split_words(text: str) -> list[str]:
    """Words, numbers and marks of a sentence, in order."""
    words = _WORD.findall(_DASH.sub(" \u2013 ", plain(text)))
    if "," in text:  # thousands
        words = [w if w == "," else w.replace(",", "") for w in words]
    return words


def read(
    words: list[str], name: Set[str], lead: bool = False, first: bool = False,
    means: list[str] | None = None,
) -> list[Clause]:  # fmt: skip
    """The clauses of a sentence, given `split_words` of it. `name`: the topic's words. `lead`: it
    opens the topic's article, so dates in brackets are those of the topic's life; `first`: its
    subject is the topic, under any name. `means`: the meanings of the words, if they are known."""
    low = [w.lower() for w in words]
    means = meanings(words) if means is None else means
    out: list[Clause] = []
    host: Clause | None = None  # the clause that a bracket interrupts
    main: Clause | None = None  # the last clause that no relative pronoun opened
    for kind, start, end in _segments(words, low, means, name):
        last = main if kind in {",", "and"} else out[-1] if out else None
        clause = _clause(words, low, means, start, end, kind, name, last, first and not out)
        if clause.verb and kind not in _RELATIVE or main is None:
            main = clause
        if lead and main and (kind == ")" or kind == "(" and clause.verb == "born"):
            clause.subject = main.subject
        if lead and not clause.verb and kind in _LIFE and any(map(is_year, clause.said)):
            clause.verb = _LIFE[kind]  # "Ada Vane (Lyon, 3 May 1870 - 1934) was"
            clause.subject = main.subject if main else TOPIC
            clause.said.insert(0, clause.verb)
        elif clause.verb == "" and kind in {"(", ")"} and host:
            host.said += [",", *clause.said]  # "Arabic (official), French"
            host.capital |= clause.capital
            continue
        if kind != "(":
            host = clause if clause.verb else None
        out.append(clause)
    return out


def _segments(
    words: list[str], low: list[str], means: list[str], name: Set[str]
) -> list[tuple[str, int, int]]:
    """(word or mark that opens the clause, its first index, its end)."""
    out: list[tuple[str, int, int]] = []
    kind, start, n = "", 0, len(words)
    for i in range(n):
        word = low[i]
        if i < start:
            continue
        if word in _ENDS:
            opens = word
        elif word in _AND:
            joined = i > 0 and is_past(low[i - 1])  # "was born and raised in Lyon"
            inside = 0 < i < n - 1 and {means[i - 1], means[i + 1]} <= name
            if (
                joined
                or inside
                or not _opens_clause(words, low, i + 1, i > 0 and low[i - 1] == ",")
            ):
                continue
            opens = "and"
        elif word == ",":
            if i + 1 >= n or not _opens_phrase(low, words, i + 1):
                continue
            opens = ","
        elif word in _OPENERS and i > start and _opens_relative(low, i):
            opens = word
        else:
            continue
        if i > start:
            out.append((kind, start, i))
        kind, start = opens, i + 1
    if start < n:
        out.append((kind, start, n))
    return out


def _opens_clause(words: list[str], low: list[str], at: int, comma: bool) -> bool:
    """Whether the words after "and" are a clause: a verb, or a subject and its verb."""
    if at >= len(words):
        return False
    word, after = low[at], words[at + 1] if at + 1 < len(words) else ""
    if word in PRONOUNS or word in AUXILIARIES:
        return True
    if word.endswith("ly") or word in {"also", "then", "later"}:
        return is_finite(after)
    if words[at].islower():
        closed = after in DETERMINERS or after in PREPOSITIONS
        if is_past(word):
            return closed or not after.islower()
        if word[-1] == "s" and base(word) in KNOWN:
            return after in DETERMINERS or after == "as" or bool(after) and not after.islower()
    for j in range(at + 1, min(at + 5, len(words))):  # a short subject and its verb
        if words[j] == "," or low[j] in PREPOSITIONS:
            return False
        if words[j].islower() and is_finite(words[j]) and low[j - 1] not in DETERMINERS:
            return words[j] in AUXILIARIES or comma or word in DETERMINERS
    return False


def _opens_phrase(low: list[str], words: list[str], at: int) -> bool:
    """Whether the words after a comma are a participle, or a clause with a pronoun."""
    word = words[at]
    if word in PRONOUNS or word in AUXILIARIES:
        return True
    if not word.islower() or word in _NO_PARTICIPLES or len(word) < 4:
        return False
    after = low[at + 1] if at + 1 < len(low) else ""
    if word[-1] == "s" and base(word) in KNOWN:  # "who won a prize, lives in Lyon"
        return after in DETERMINERS or after in PREPOSITIONS
    return word.endswith("ing") or is_past(word)


def _opens_relative(low: list[str], at: int) -> bool:
    word, after = low[at], low[at + 1] if at + 1 < len(low) else ""
    if word in {"before", "after", "until", "since", "that", "as", "if"}:
        return after in PRONOUNS or (word == "that" and is_finite(after))
    return True


def _clause(
    words: list[str], low: list[str], means: list[str], start: int, end: int, kind: str,
    name: Set[str], last: Clause | None, first: bool,
) -> Clause:  # fmt: skip
    at = _verb(words, low, start, end, kind)
    own = None
    if at is not None or kind != "(":
        own = subject_of(words[start : end if at is None else at], name, at is not None)
    if first:
        subject = TOPIC
    elif kind == "(":
        subject = own or _before_bracket(words, start - 2, name, last)
    elif at is None:
        other = own == OTHER and not _PEOPLE.isdisjoint(means[start:end])  # "her sister, a lawyer"
        subject = OTHER if other else TOPIC if own == TOPIC or not last else last.subject
    elif own is not None:
        subject = own
    elif kind in _RELATIVE and last:
        same = last.subject == TOPIC and last.verb in {"", "be"} and kind != "where"
        subject = TOPIC if same else OTHER
    else:
        subject = last.subject if last else TOPIC
    cut = start if at is None else at
    who, said = means[start:cut], means[cut:end]
    capital = {
        m
        for m, w in zip(means[start:end], words[start:end], strict=True)
        if w[0] >= "A" and w[0].isupper()
    }
    verb, passive = ("", False) if at is None else _main_verb(words[at : min(end, at + 6)])
    if kind in {",", "("} and at == start and is_past(low[at]) and low[at] not in AUXILIARIES:
        passive = True
    return Clause(subject, who, verb, said, passive, capital)


def _verb(words: list[str], low: list[str], start: int, end: int, kind: str) -> int | None:
    """The index of the clause's first finite verb, or of a participle that opens the clause."""
    if kind in {",", "("} and words[start].islower():
        if low[start].endswith("ing") or is_past(low[start]):
            return start
    if (
        words[start] == "Born"
        and low[start + 1 : start + 2]
        and (low[start + 1] in {"in", "on", "to", "as"} or end < len(low) and low[end] == ",")
    ):
        return start  # "Born in Lyon, she moved"
    for i in range(start, end):
        word = words[i]
        if low[i] in AUXILIARIES and (word.islower() or i == start and low[i] in BE):
            return i
        if not word.islower() or not is_finite(word):
            continue
        before = low[i - 1] if i > start else ""
        if before in DETERMINERS or before in PREPOSITIONS:
            continue
        later = set(low[i + 1 : min(end, i + 5)])
        if i == start and kind == "" or (before and words[i - 1].islower()):
            # "former" as in "the retired player is": an adjective before the verb
            if not later.isdisjoint(AUXILIARIES) and before not in PRONOUNS:
                continue
        if is_past(word) or i + 1 >= end or low[i + 1] not in {"of", ","}:
            return i
    for i in range(start + 1, end - 1):  # "the languages include"
        before = low[i - 1]
        if words[i] in KNOWN and before not in DETERMINERS and before not in _NOT_BEFORE:
            if low[i + 1] in DETERMINERS or low[i + 1] in PREPOSITIONS or words[i + 1][0].isupper():
                return i
    return None


def _main_verb(words: Sequence[str]) -> tuple[str, bool]:
    """(meaning of the main verb after its auxiliaries, whether it is passive)."""
    low = [w.lower() for w in words]
    i = 0
    while i + 1 < len(low) and (
        low[i] in AUXILIARIES or low[i] in _FILLERS or low[i].endswith("ly")
    ):
        i += 1
    be, word = any(w in _BE for w in low[:i]), low[i]
    participle = words[i].islower() and (is_past(word) or word.endswith("ing"))
    if (be and not participle) or (not i and word in _BE):
        return "be", False
    if i and word in DETERMINERS | PREPOSITIONS:
        return ("be", False) if be else (meaning(low[0]), False)
    return meaning(word), be and is_past(word)


def subject_of(who: list[str], name: Set[str], verb: bool = True) -> str | None:
    """Whether the words before a verb, or all words of a clause without a verb, mean the topic;
    None if they hold no subject."""
    if who and "," in who and (not verb or who[-1] == ","):  # "Ada Vane, a writer, lives"
        who = who[: who.index(",")]
    elif "," in who:  # "In 2013, she"
        who = who[len(who) - who[::-1].index(",") :]
    low = [w.lower() for w in who]
    if not who:
        return None
    if not PRONOUNS.isdisjoint(low):
        return TOPIC
    nouns = [meaning(w) for w in low]
    people = not _PEOPLE.isdisjoint(nouns)
    own = [i for i, w in enumerate(nouns) if w in name and not who[i].islower()]
    if own:
        at = own[-1]
        after = who[at + 1] if at + 1 < len(who) else ""
        person = len(name) > 1 and nouns[0] in name and all(w[0].isupper() for w in who)
        if after[:1].isupper() and low[0] not in PREPOSITIONS and not person:
            return OTHER  # "Mali Empire"
        owned = after == "'s" or (at > 0 and low[at - 1] in {"of", "the"} and "of" in low[:at])
        return OTHER if owned and people else TOPIC
    if not OWNERS.isdisjoint(low):
        return OTHER if people else TOPIC
    return OTHER if _without_lead(who, low) else None


def _without_lead(who: list[str], low: list[str]) -> list[str]:
    """The words after an introductory phrase: "In 1967 war" -> ["war"], "In Lyon" -> []."""
    i = 0
    while i < len(low) and (low[i] in _FILLERS or low[i].endswith("ly")):
        i += 1
    if i < len(low) and low[i] in PREPOSITIONS:
        i += 1
        if i < len(low) and low[i] in DETERMINERS:
            return []
        while i < len(low) and (not who[i].islower() or low[i] in PREPOSITIONS or low[i][0] == "d"):
            i += 1
    return who[i:]


def _before_bracket(words: list[str], at: int, name: Set[str], last: Clause | None) -> str:
    """The subject of a bracket: the name right before it, else that of its clause."""
    run: list[str] = []
    while at >= 0 and words[at][0].isupper():
        run.append(meaning(words[at].lower()))
        at -= 1
    if run:
        return TOPIC if not name.isdisjoint(run) else OTHER
    return last.subject if last else TOPIC
