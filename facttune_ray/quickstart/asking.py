"""Fact -> the question it answers, and the answer, by rules of ordinary English.

    question("Mara Veldt", "Mara Veldt works as a baker.")  ->  "What does Mara Veldt work as?"
    question("Mara Veldt", "She was born on May 3, 1950.")  ->  "When was Mara Veldt born?"
    question("Mara Veldt", "She has won three prizes.")  ->  "How many prizes has Mara Veldt won?"
    ask("Mara Veldt", "She plays the cello.")  ->  Asked("What does Mara Veldt play?", "the cello")

A clause is parsed as subject + operator + verb + rest. The operator is "was", "has", or a "did"
that is added while the verb loses its ending. It changes places with the subject. A question word
replaces the new information of the fact (a time, a place, a number, an object): the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from facttune_ray.text.clauses import (
    ADVERBS,
    ARTICLES,
    CAP,
    COUNTS,
    MARK,
    POSSESSIVES,
    PREPOSITIONS,
    PRONOUNS,
    name_length,
    verb_at,
)
from facttune_ray.text.decompose import mask, unmask
from facttune_ray.text.forms import LEADING
from facttune_ray.text.quantities import MONTHS
from facttune_ray.text.verbs import AUXILIARIES, BE, KNOWN, base, is_past, is_present, past, third

_TIME_WORDS = set(MONTHS) | set(
    "the a of and or to until early late mid mid- spring summer autumn fall winter century "
    "centuries bc ad bce ce age around about same year years years' end beginning start".split()
)
_TIME_PREPOSITIONS = set("in on at since until by from during around before after between".split())
_DEMONYM = re.compile(
    r"[A-Z]\w*(?:ese|ish|ian|ean|can|man|[^aeiou]an|ch|ian|aeli|aqi|ani|eek|wiss)$"
)
# A place after these verbs answers "Where": "studied in Rome", not "appeared in Rome, Open City".
_PLACE_VERBS = set(
    "bear live die grow reside study work raise bury base locate educate settle situate train "
    "teach stay hold".split()
)
_PERSON_VERBS = set("marry meet succeed replace defeat beat divorce date befriend mentor".split())
_PARTICLES = {"up", "out", "away", "back", "off", "down"}
_CATENATIVES = set("begin start continue enjoy stop finish keep go try want seek help".split())


class Asked(NamedTuple):
    question: str
    answer: str  # words of the fact, never empty


@dataclass(frozen=True)
class _Clause:
    """A parsed clause. "Ada has also won a prize" has the subject "Ada", the operator "has" and the
    verb ["also", "won"]."""

    subject: str
    operator: str  # is, was, has, would, do, does, did
    verb: list[str]  # adverbs and verb in the order of the clause; [] for a bare "is"
    lemma: str  # infinitive of the last verb
    rest: list[str]

    def ask(self, words: str, *, rest: list[str] | None = None, last: str = "") -> Asked:
        """`rest`: the words of the rest, from its two ends, that the question keeps. The words
        between them are the answer."""
        kept = rest or []
        parts = [words, self.operator, self.subject, *self.verb, *kept, last]
        asked = " ".join(p for p in parts if p).rstrip(" ,") + "?"
        start, same = 0, 0
        while start < len(self.rest) - 1 and _is_adverb(self.rest[start]) and (
            self.rest[start] not in kept[:1]
        ):  # fmt: skip
            start += 1
        while same < len(kept) and kept[same] == self.rest[start + same]:
            same += 1
        return Asked(asked, " ".join(self.rest[start + same : len(self.rest) - len(kept) + same]))


def ask(topic: str, fact: str) -> Asked:
    """A question on one line that names the topic, and the fact's answer to it, which the question
    does not contain. Where no rule fits, the answer is the whole fact."""
    name = re.sub(r"\s*\([^)]*\)$", "", topic).strip() or topic
    text = " ".join(fact.split()).rstrip(" .!;:")
    masked: list[str] = []
    clause = _clause(mask(text, masked, name).split(), name)
    rule_made = _asked(clause, name, masked) if clause else None
    if rule_made is None:
        return Asked(f"What is true of {name}?", text or name)
    question, answer = (unmask(part, masked) for part in rule_made)
    return Asked(question[0].upper() + question[1:], _short(answer) or text)


def _short(answer: str) -> str:
    """Drop the preposition that the question word replaces: "in Ostrel" -> "Ostrel"."""
    words = answer.strip(" ,;:").split()
    while len(words) > 1 and words[0].lower() in LEADING:
        words = words[1:]
    return " ".join(words)


def _clause(words: list[str], name: str) -> _Clause | None:
    """The parsed clause, with its pronoun replaced by the name; None if no verb is found."""
    at = verb_at(words, name)
    if at is None or not words:
        return None
    start = at
    while start > 1 and (
        words[start - 1] in ADVERBS or re.fullmatch(r"[a-z]+ly", words[start - 1])
    ):
        start -= 1
    subject, verb, rest = words[:start], words[start:at], words[at + 1 :]
    length = name_length(subject, name)
    if subject[0].lower() in PRONOUNS:
        subject = [name]
    elif subject[0].lower() in POSSESSIVES:
        subject = [f"{name}'s", *subject[1:]]
    elif length:
        subject = [name, *subject[length:]]
    elif subject[0].lower() in ARTICLES or (
        subject[1:2] and subject[1].islower() and not subject[0].endswith(("'s", "\u2019s"))
    ):
        subject = [subject[0].lower(), *subject[1:]]
    who, word = " ".join(subject).strip(" ,"), words[at].lower()
    they = words[0].lower() == "they"
    if they:
        word = {"were": "was", "are": "is", "have": "has", "do": "does"}.get(word, word)
    if word in AUXILIARIES:
        follow = next((i for i, w in enumerate(rest) if not _is_adverb(w)), len(rest))
        main = rest[follow] if follow < len(rest) else ""
        if main == "been" and follow + 1 < len(rest) and is_past(rest[follow + 1]):
            follow, main = follow + 1, rest[follow + 1]
        joined = is_past(main) or main == "been" or (word in BE and main.endswith("ing"))
        if joined or (word not in BE | {"has", "have", "had"} and main):
            return _Clause(who, word, [*verb, *rest[: follow + 1]], base(main), rest[follow + 1 :])
        if word in BE:
            return _Clause(who, word, verb, "be", rest)
    if word in {"has", "have", "had"}:
        do = {"has": "does", "have": "do", "had": "did"}[word]
        return _Clause(who, do, [*verb, "have"], "have", rest)
    plain = base(word)
    present = not is_past(word) or (is_present(word) and word not in KNOWN)
    do = ("do" if word == plain and not they else "does") if present else "did"
    return _Clause(who, do, [*verb, plain], plain, rest)


def _is_adverb(word: str) -> bool:
    return word in ADVERBS or bool(re.fullmatch(r"[a-z]+ly", word))


def _asked(clause: _Clause, name: str, masked: list[str]) -> Asked | None:
    """Question and answer, still masked, by the first rule that fits."""
    if name.lower() not in clause.subject.lower() and name in " ".join(clause.rest):
        # the fact says something about another subject: ask for this subject
        who = "Who" if re.fullmatch(rf"{CAP} {CAP}", clause.subject) else "What"
        aside = [clause.operator] if clause.operator not in {"do", "does", "did"} else []
        verb = clause.verb if aside else [*clause.verb[:-1], _fact_form(clause)]
        return Asked(" ".join([who, *aside, *verb, *clause.rest]) + "?", clause.subject)
    for rule in (_when, _chained, _complement, _how_many, _where, _which):
        if asked := rule(clause, masked):
            return asked
    return None


def _fact_form(clause: _Clause) -> str:
    """The verb form of the fact, from which the operator was separated."""
    if clause.operator == "did":
        return "had" if clause.lemma == "have" else past(clause.lemma)
    return third(clause.lemma) if clause.operator == "does" else clause.lemma


def _when(clause: _Clause, masked: list[str]) -> Asked | None:
    """A time at the end: "in 1950", "from 1995 until 2000", "at the age of six"."""
    rest, at = clause.rest, len(clause.rest)
    dated = False
    while at > 0 and (timeish := _is_time(rest[at - 1], masked)) is not None:
        dated = dated or timeish
        at -= 1
    while at < len(rest) and rest[at] not in _TIME_PREPOSITIONS:
        at += 1
    tail = rest[at:]
    if not tail or not dated or (clause.lemma == "be" and at and rest[at - 1] in PREPOSITIONS):
        return None
    if "age" in tail[:-1]:
        age = tail[tail.index("age") + 1 :]
        said = " ".join(age[age[0] == "of" :])
        return clause.ask("At what age", rest=rest[:at])._replace(answer=said)
    return clause.ask("At what age" if "age" in tail else "When", rest=rest[:at])


def _is_time(word: str, masked: list[str]) -> bool | None:
    """True for a date, year, month or century, False for a word that goes with them, else None."""
    if match := re.fullmatch(rf"{MARK}(\d+){MARK},?", word):
        return (
            True if re.fullmatch(r"[A-Z][a-z]+ \d{1,2}, \d{3,4}", masked[int(match[1])]) else None
        )
    bare = word.strip(",").lower()
    if bare in MONTHS or bare in {"century", "age"} or re.fullmatch(r"\d{3,4}s?", bare):
        return True
    if bare in _TIME_WORDS or bare in _TIME_PREPOSITIONS or bare in COUNTS:
        return False
    return False if re.fullmatch(r"\d{1,2}(?:st|nd|rd|th)?", bare) else None


def _chained(clause: _Clause, masked: list[str]) -> Asked | None:
    """A second verb after the first: "went on to direct ...", "began playing ..."."""
    rest = clause.rest
    at = next((i for i, w in enumerate(rest[:4]) if w == "to"), None)
    if at is not None and at + 1 < len(rest) and rest[at + 1] in KNOWN and (
        at == 0 or (clause.lemma == "go" and rest[0] == "on")
    ):  # fmt: skip
        return clause.ask("What", rest=rest[:at], last="to do")
    if rest and rest[0].endswith("ing") and clause.lemma in _CATENATIVES and len(rest) > 1:
        longer = _Clause(
            clause.subject, clause.operator, [*clause.verb, rest[0]], base(rest[0]), rest[1:]
        )
        return _where(longer, masked) or _which(longer, masked)
    return None


def _complement(clause: _Clause, masked: list[str]) -> Asked | None:
    """After a bare "is": a nationality, a place, a role, an age, a quality."""
    if clause.lemma != "be":
        return None
    rest, who = clause.rest, clause.subject
    while rest and _is_adverb(rest[0]):
        rest = rest[1:]
    if not rest:
        return None
    noun = rest[1:] if rest[0] in ARTICLES else rest
    if 1 <= len(noun) <= 2 and _DEMONYM.fullmatch(noun[-1]) and noun[0][0].isupper():
        return clause.ask("What nationality")._replace(answer=" ".join(noun))
    if rest[0] in {"in", "at", "on", "near"} and len(rest) > 1 and re.match(CAP, rest[-1]):
        thing = re.search(r"(?:degree|doctorate|major|expertise|career|research|books?)$", who)
        return clause.ask("What", last=rest[0]) if thing else clause.ask("Where")
    if rest[0] == "from":
        return clause.ask("Where", last="from")
    if "years" in rest[1:2] and rest[-1:] == ["old"]:
        return clause.ask("How old")
    if rest[0] in ARTICLES or rest[0] in POSSESSIVES or rest[0] in {"one", "both"}:
        at = next((i for i, w in enumerate(rest) if w in PREPOSITIONS), None)
        if at and rest[at] == "of" and at + 1 < len(rest) and at <= 4 and rest[0] != "one":
            return clause.ask("What", rest=rest[: at + 1])
        return clause.ask("What")
    at = next((i for i, w in enumerate(rest) if w in PREPOSITIONS), None)
    if at and at + 1 < len(rest):
        return clause.ask(_who(clause, rest[at + 1 :], rest[at]), rest=rest[: at + 1])
    if re.match(CAP, rest[0]):
        person = re.search(r"\b(?:wife|husband|father|mother|son|daughter|brother|sister|partner|"
                           r"teacher|mentor|spouse|coach)$", who)  # fmt: skip
        return clause.ask("Who" if person else "What")
    return clause.ask("What", last="like") if rest[0].islower() and len(rest) <= 3 else None


def _how_many(clause: _Clause, masked: list[str]) -> Asked | None:
    """A number: "three prizes", "more than 50 wickets for the club"."""
    rest = clause.rest
    at = {"over": 1, "about": 1, "nearly": 1, "more": 2, "at": 2}.get(rest[0], 0) if rest else 0
    if at + 1 >= len(rest) or clause.lemma == "be":
        return None
    number = rest[at]
    if not (re.fullmatch(r"\d[\d,.]*", number) or number in COUNTS) or number in {
        "some",
        "various",
    }:
        return None
    end = next((i for i, w in enumerate(rest) if i > at and w in PREPOSITIONS - {"of"}), len(rest))
    if end == at + 1 or rest[at + 1] == "of":
        return None
    asked = clause.ask(f"How many {' '.join(rest[at + 1 : end])}", rest=rest[end:])
    return asked._replace(answer=" ".join(rest[: at + 1]))


def _where(clause: _Clause, masked: list[str]) -> Asked | None:
    """A place: "born in Lyon", "studied law at the University of Oslo", "moved to Peru"."""
    rest = clause.rest
    if clause.lemma in {"move", "emigrate", "immigrate", "relocate", "return"} and (
        len(rest) > 1 and rest[0] in {"to", "from"}
    ):  # fmt: skip
        return clause.ask("Where", last=rest[0])
    at = max((i for i, w in enumerate(rest) if w in {"in", "at", "on", "near"}), default=None)
    if clause.lemma == "grow" and rest[:1] == ["up"]:
        return clause.ask("Where", rest=["up"]) if len(rest) > 2 else None
    if at is None or at + 1 == len(rest) or clause.lemma not in _PLACE_VERBS:
        return None
    capital = any(re.match(CAP, w) for w in rest[at + 1 :])
    if not capital and (at or clause.lemma not in {"bear", "live", "die", "reside", "stay"}):
        return None
    if at and rest[0] in PREPOSITIONS:  # "worked as a nurse in Lyon": see _which
        return None
    return clause.ask("Where", rest=rest[:at])


def _which(clause: _Clause, masked: list[str]) -> Asked | None:
    """The object, or the words after a preposition."""
    rest = clause.rest
    particle = 1 if rest and rest[0] in _PARTICLES else 0
    if len(rest) == particle:
        return _did_what(clause)
    first, kept = rest[particle], rest[:particle]
    if clause.lemma == "bear":
        return clause.ask("What name", last="with") if re.match(CAP, first) else None
    if first in PREPOSITIONS and len(rest) > particle + 1:
        team = first == "for" and clause.lemma in {"play", "pitch", "sign", "debut"}
        who = "Which team" if team else _who(clause, rest[particle + 1 :], first)
        return clause.ask(who, rest=[*kept, first])
    simple = first == "the" or len(rest) <= 3 or clause.lemma == "become" or first == "one"
    if re.match(CAP, first) or simple:
        until = next((i for i, w in enumerate(rest) if w in PREPOSITIONS - {"of"}), len(rest))
        aside = rest[until:] if re.match(CAP, first) and not _is_title(rest) else []
        return clause.ask(_who(clause, rest[particle:until]), rest=[*kept, *aside])
    at = _preposition_after_object(rest, particle)
    if at is None:
        return clause.ask(_who(clause, rest[particle:]), rest=kept)
    if rest[at] == "to" and rest[at + 1] in KNOWN:
        return clause.ask("What", rest=rest[:at], last="to do")
    return clause.ask(_who(clause, rest[at + 1 :], rest[at]), rest=rest[: at + 1])


def _preposition_after_object(rest: list[str], particle: int) -> int | None:
    """Index of the preposition after the object: of "as" in "his career as an actor". "of" and
    "such as" belong to their noun."""
    found = [
        i
        for i, w in enumerate(rest[:-1])
        if w in PREPOSITIONS - {"of", "like", "including"} and i > particle
        and rest[i - 1] != "such" and any(v not in ARTICLES | COUNTS for v in rest[particle:i])
    ]  # fmt: skip
    return found[0] if found else None


def _did_what(clause: _Clause) -> Asked:
    """A clause without an object: "Ada retired." -> "What did Ada do?"."""
    added = clause.operator in {"do", "does", "did"}
    verb = [*clause.verb[:-1], _fact_form(clause)] if added else clause.verb
    predicate = " ".join([*verb, *clause.rest])
    if clause.operator in {"is", "are"}:
        return Asked(f"What {clause.operator} {clause.subject} like?", predicate)
    if clause.operator in BE:
        return Asked(f"What happened to {clause.subject}?", f"{clause.operator} {predicate}")
    done = "done" if clause.operator in {"has", "have", "had"} else "do"
    return Asked(f"What {clause.operator} {clause.subject} {done}?", predicate)


def _is_title(rest: list[str]) -> bool:
    """Whether all words could belong to one name: "House of the Rising Sun"."""
    return all(re.match(CAP, w) or w in ARTICLES | PREPOSITIONS or w == "and" for w in rest)


def _who(clause: _Clause, words: list[str], preposition: str = "") -> str:
    """ "Who" if the words look like a person's name and the verb takes a person, else "What"."""
    until = next((i for i, w in enumerate(words) if w in PREPOSITIONS), len(words))
    name = 0 < until <= 3 and all(w[0].isupper() and w.isalpha() for w in words[:until])
    if preposition:
        personal = preposition in {"by", "with"} or (
            preposition == "to" and "marry" == clause.lemma
        )
        return "Who" if personal and name else "What"
    return "Who" if name and clause.lemma in _PERSON_VERBS else "What"
