"""Fact -> the question it answers, and the answer, by a table of forms of English statements.

    ask("Mara Veldt", "Mara Veldt works as a baker.")  ->  Asked("What does ...?", "a baker")
    ask("Mara Veldt", "She was born on May 3, 1950.").question  ->  "When was Mara Veldt born?"

A clause is read as subject + operator + verb + rest. The operator is "was", "has", or a "did" that
is added while the verb loses its ending. It changes places with the subject. FORMS says which words
of the rest are the answer, which words the question keeps, and with which word it begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
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


class Asked(NamedTuple):
    question: str
    answer: str  # words of the fact, never empty


class _Clause(NamedTuple):
    """ "Ada has also won a prize": subject "Ada", operator "has", verb "also won", lemma "win"."""

    subject: str
    operator: str  # is, was, has, would, do, does, did
    verb: str  # adverbs and verb in the order of the clause; "" for a bare "is"
    lemma: str  # infinitive of the last verb
    rest: str


# operator that is added -> the verb as in the fact
_ADDED: dict[str, Callable[[str], str]] = {"do": str, "does": third, "did": past}


def _any(*words: str) -> str:
    """A pattern of any of these whole words."""
    return rf"(?:{'|'.join(sorted(' '.join(words).split()))})(?!\S)"


_ADVERB = rf"(?:{_any(*ADVERBS)}|[a-z]+ly(?!\S))"
_ADVERBS = re.compile(rf"^(?:{_ADVERB} )+(?=.)")
_PREPOSITION, _ARTICLE = _any(*PREPOSITIONS), _any(*ARTICLES)
_AFTER_NOUN = _any(*PREPOSITIONS - {"of", "like", "including"})  # "of" belongs to its noun
_COUNT = rf"(?:\d[\d,.]*(?!\S)|{_any(*COUNTS - {'some', 'various'})})"
_DATED = rf"(?:(?:\d{{3,4}}s?|{'|'.join(MONTHS).title()}|[Cc]entury|age),?(?!\S))"
_AT_TIME = _any("in on at since until by from during around before after between")
_WITH_DATE = _any(
    *COUNTS,
    "in on at since until by from during around before after between the a of and or to early late",
    "mid spring summer autumn fall winter about same year years end beginning start BC AD",
)
_TIME = rf"{_AT_TIME} (?=.*{_DATED})(?:(?:{_DATED}|{_WITH_DATE}|\d\d?(?:st|nd|rd|th)?,?(?!\S)) ?)+"
_PLACE = "(?:in|at|on|near)"
_PARTICLES = "up out away back off down"
_PARTICLE, _NO_OBJECT = rf"(?:{_any(_PARTICLES)} )?", {"", *_PARTICLES.split()}
_PLACED = _any("bear live die grow reside study work raise bury base locate educate settle situate "
               "train teach stay hold")  # fmt: skip
_CATENATIVES = set("begin start continue enjoy stop finish keep go try want seek help".split())
_VERB = _any(*KNOWN)

# (verbs, perhaps after an end of the subject; the rest of the clause; first words of the question;
# its last words). The groups `kept` and `aside` stay in the question, `answer` is the answer (else
# the whole rest is). The first form that fits counts; where it has no words, no form does.
# A place answers "Where" after some verbs: "studied in Rome", not "appeared in Rome, Open City".
FORMS = tuple(
    (re.compile(rf"(?:.* )?(?:{verbs})"), re.compile(rest), word, last)
    for verbs, rest, word, last in (
        (".*", rf"(?P<kept>.*?) ?(?<!\S){_AT_TIME} (?:the )?age (?:of )?(?P<answer>.+)",
         "At what age", ""),
        (".*", rf"(?P<kept>.*?) ?(?<!\S)(?P<answer>{_TIME})", "When", ""),
        (".*", rf"to {_VERB}.*", "What", "to do"),
        ("go", rf"(?P<kept>on )(?P<answer>to {_VERB}.*)", "What", "to do"),
        ("be", rf"(?:{_ARTICLE} )?(?P<answer>(?:[A-Z]\S* )?[A-Z]\w*"
         r"(?:ese|ish|ean|[^aeou]an|ch|aeli|aqi|eek|wiss))", "What nationality", ""),
        (r"\S*(?:degree|doctorate|major|expertise|career|research|books?) be",
         rf"(?P<last>{_PLACE}) (?:.* )?{CAP}", "What", "{last}"),
        ("be", rf"{_PLACE} (?:.* )?{CAP}", "Where", ""),
        ("be", r"from .+", "Where", "from"),
        ("be", r".+ years old", "How old", ""),
        ("be", rf"(?P<kept>{_any(*ARTICLES, *POSSESSIVES)}(?: \S+){{1,3}}? of )(?P<answer>.+)",
         "What", ""),
        ("be", rf"{_any(*ARTICLES, *POSSESSIVES, 'one both')} .+", "What", ""),
        ("be", rf"(?P<kept>(?!{_PREPOSITION})\S.*? {_PREPOSITION} )(?P<answer>.+)", "{who}", ""),
        ("(?:wife|husband|father|mother|son|daughter|brother|sister|partner|teacher|mentor|spouse|"
         "coach) be", rf"{CAP}.*", "Who", ""),
        ("be", rf"{CAP}.*", "What", ""),
        ("be", r"[a-z]\S*(?: \S+){0,2}", "What", "like"),
        (".*", rf"(?P<answer>(?:(?:over|about|nearly|more than|at least) )?{_COUNT}) "
         rf"(?P<noun>(?!{_PREPOSITION})\S+(?: (?!{_AFTER_NOUN})\S+)*)(?P<kept>.*)",
         "How many {noun}", ""),
        ("move|emigrate|immigrate|relocate|return", r"(?P<last>to|from) .+", "Where", "{last}"),
        ("grow", r"(?P<kept>up )(?P<answer>.+ .*|.+)", "Where", ""),
        ("bear|live|die|reside|stay", rf"{_PLACE} (?!.* {_PLACE} ).+", "Where", ""),
        (_PLACED, rf"(?P<kept>(?!{_PREPOSITION}).* |)(?P<answer>{_PLACE} (?!.* {_PLACE} )"
         rf"(?:.* )?{CAP}.*)", "Where", ""),
        ("bear", rf"{CAP}.*", "What name", "with"),
        ("bear", ".*", "", ""),
        ("play|pitch|sign|debut", rf"(?P<kept>{_PARTICLE}for )(?P<answer>.+)", "Which team", ""),
        (".*", rf"(?P<kept>{_PARTICLE}{_PREPOSITION} )(?P<answer>.+)", "{who}", ""),
        # not a title: "House of the Rising Sun"
        (".*", rf"(?P<kept>{_PARTICLE})(?!(?:(?:{CAP},?|{_ARTICLE}|{_PREPOSITION}|and)(?: |$))+$)"
         rf"(?P<answer>{CAP}(?: (?!(?!of ){_PREPOSITION})\S+)*)(?P<aside> (?!of ){_PREPOSITION}.*)",
         "{who}", ""),
        ("become", ".+", "What", ""),
        (".*", rf"(?P<kept>{_PARTICLE})(?P<answer>(?:the|one) .+|{CAP}.*|\S+(?: \S+){{0,2}})",
         "{who}", ""),
        (".*", rf"(?P<kept>.+? to )(?P<answer>{_VERB}.*)", "What", "do"),
        (".*", rf"(?P<kept>.*?\S (?<!such ){_AFTER_NOUN} )(?P<answer>.+)", "{who}", ""),
        (".*", rf"(?P<kept>{_PARTICLE})(?P<answer>.+)", "{who}", ""),
    )
)  # fmt: skip


def ask(topic: str, fact: str) -> Asked:
    """A question on one line that names the topic, and the fact's answer to it, which the question
    does not contain. Where no form fits, the answer is the whole fact."""
    name = re.sub(r"\s*\([^)]*\)$", "", topic).strip() or topic
    text = " ".join(fact.split()).rstrip(" .!;:")
    masked: list[str] = []
    marked = mask(text, masked, name)
    for number, part in enumerate(masked):  # the words of a date are read below
        if re.fullmatch(r"[A-Z][a-z]+ \d{1,2}, \d{3,4}", part):
            marked = marked.replace(f"{MARK}{number}{MARK}", part)
    clause = _clause(marked.split(), name)
    asked = _asked(clause, name) if clause else None
    if asked is None:
        return Asked(f"What is true of {name}?", text or name)
    question, answer = (unmask(part, masked) for part in asked)
    words = answer.strip(" ,;:").split()
    while len(words) > 1 and words[0].lower() in LEADING:  # the question word replaces it
        words = words[1:]
    question = " ".join(question.split()).rstrip(" ,") + "?"
    return Asked(question[0].upper() + question[1:], " ".join(words) or text)


def _clause(words: list[str], name: str) -> _Clause | None:
    """The parsed clause, with its pronoun replaced by the name; None if no verb is found."""
    at = verb_at(words, name)
    if at is None or not words:
        return None
    start = at
    while start > 1 and re.fullmatch(_ADVERB, words[start - 1]):
        start -= 1
    subject, adverbs, rest = words[:start], words[start:at], words[at + 1 :]
    length, they = name_length(subject, name), words[0].lower() == "they"
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
    if they:
        word = {"were": "was", "are": "is", "have": "has", "do": "does"}.get(word, word)

    def clause(operator: str, verb: list[str], lemma: str, rest: list[str]) -> _Clause:
        if lemma in _CATENATIVES and len(rest) > 1 and rest[0].endswith("ing"):
            verb, lemma, rest = [*verb, rest[0]], base(rest[0]), rest[1:]
        said = " ".join(rest)
        said = _ADVERBS.sub("", said) if lemma == "be" else said
        return _Clause(who, operator, " ".join([*adverbs, *verb]), lemma, said)

    if word in AUXILIARIES:
        follow = next((i for i, w in enumerate(rest) if not re.fullmatch(_ADVERB, w)), len(rest))
        if rest[follow : follow + 1] == ["been"] and is_past((rest[follow + 1 :] or [""])[0]):
            follow += 1
        main = (rest[follow:] or [""])[0]
        joined = is_past(main) or main == "been" or (word in BE and main.endswith("ing"))
        if joined or (word not in BE | {"has", "have", "had"} and main):
            return clause(word, rest[: follow + 1], base(main), rest[follow + 1 :])
        if word in BE:
            return clause(word, [], "be", rest)
    if word in {"has", "have", "had"}:
        return clause({"has": "does", "have": "do", "had": "did"}[word], ["have"], "have", rest)
    plain = base(word)
    present = not is_past(word) or (is_present(word) and word not in KNOWN)
    do = ("do" if word == plain and not they else "does") if present else "did"
    return clause(do, [plain], plain, rest)


def _asked(clause: _Clause, name: str) -> Asked | None:
    """Question without its mark, and answer, still masked."""
    subject, operator, verb, lemma, rest = clause
    predicate = f"{operator} {verb}"
    if operator in _ADDED:  # the operator was added: the verb as in the fact
        predicate = verb = verb.removesuffix(lemma) + _ADDED[operator](lemma)
    if name.lower() not in subject.lower() and name in rest:  # ask for the other subject
        word = "Who" if re.fullmatch(rf"{CAP} {CAP}", subject) else "What"
        return Asked(f"{word} {predicate} {rest}", subject)
    for verbs, pattern, word, last in FORMS if rest not in _NO_OBJECT else ():
        if verbs.fullmatch(f"{subject} {lemma}") and (match := pattern.fullmatch(rest)):
            said = {"kept": "", "answer": rest, "aside": ""} | match.groupdict()
            kept, answer = said["kept"], said["answer"]
            word = word.format(**said, who=_who(lemma, kept.split(), answer))
            parts = (word, operator, subject, clause.verb, kept, said["aside"], last.format(**said))
            answer = answer if kept else _ADVERBS.sub("", answer)
            return Asked(" ".join(parts), answer) if word else None
    if operator in {"is", "are"}:
        return Asked(f"What {operator} {subject} like", f"{verb} {rest}")
    if operator in BE:
        return Asked(f"What happened to {subject}", f"{predicate} {rest}")
    done = "done" if operator in {"has", "have", "had"} else "do"
    return Asked(f"What {operator} {subject} {done}", f"{verb} {rest}")


def _who(lemma: str, kept: list[str], answer: str) -> str:
    """ "Who" if the answer looks like a person's name and the verb takes a person, else "What"."""
    name = re.fullmatch(rf"[A-Z][^\W\d]*(?: [A-Z][^\W\d]*){{0,2}}(?: {_PREPOSITION}.*)?", answer)
    takes = {"marry", "meet", "succeed", "replace", "defeat", "beat", "divorce", "date", "befriend",
             "mentor"}  # fmt: skip
    after = kept[-1] if kept else ""
    personal = after in {"by", "with"} or (after == "to" and lemma == "marry")
    return "Who" if name and (personal if after in PREPOSITIONS else lemma in takes) else "What"
