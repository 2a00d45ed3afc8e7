"""Ask an LLM for the question that a fact answers and, optionally, its answer. One request per
distinct fact.

render("Ada Lovelace", "Ada Lovelace was born in London.")  ->  chat messages
parse("Where was Ada Lovelace born?")                       ->  Asked("Where was ...?", None)
parse("Question: Where was Ada Lovelace born?\\nAnswer: London", answer=True)
                                                            ->  Asked("Where was ...?", "London")
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

DOMAINS = ("general", "bio", "medicine")
TEMPLATES = tuple(f"questions_{d}" for d in DOMAINS)
ANSWER_TEMPLATES = tuple(f"{name}_answer" for name in TEMPLATES)
FACT_CHARS = 300  # shown of each earlier fact
QUESTION_CHARS = 600  # a longer question is usually endless
ANSWER_CHARS = 200  # a longer answer is no short answer


class Asked(NamedTuple):
    question: str
    answer: str | None  # None: not requested


def template_name(domain: str, answer: bool) -> str:
    """The name of the template that `render` fills. Its hash is part of the recipe."""
    return f"questions_{domain}" + ("_answer" if answer else "")


def render(
    topic: str,
    fact: str,
    domain: str = "general",
    answer: bool = False,
    before: Sequence[str] = (),
    pronoun: str | None = None,
    lower_case: str | None = None,
) -> list[dict[str, str]]:
    """Chat messages. `before`: earlier facts of the response, FACT_CHARS of each are shown.
    `pronoun`: in bio, the person's pronoun ("her"). `lower_case`: in medicine, the condition as
    written within a sentence."""
    name = " ".join(topic.split())
    slots = {"topic": name, "fact": fenced(fact), "before": _before(before)}
    if domain == "bio":
        slots["pronoun"] = " ".join((pronoun or "").split()) or "unknown"
    if domain == "medicine":
        slots["topic"] = " ".join((lower_case or "").split()) or lowered(name)
    return template.messages(template_name(domain, answer), **slots)


def _before(facts: Sequence[str]) -> str:
    """The line with the earlier facts; "" without facts."""
    shown = " ".join(fenced(f, FACT_CHARS) for f in facts)
    return f"Facts before it: <<<{shown}>>>\n" if shown else ""


# Conditions named after a person or place, which are often written without 's
_NAMES = set(
    "addison alzheimer asperger bell crohn cushing down ebola ehlers epstein gaucher graves hansen "
    "hashimoto hirschsprung hodgkin huntington kawasaki klinefelter lyme marburg marfan noonan "
    "paget parkinson pompe prader raynaud rett reye sjogren tourette turner whipple wilson zika"
    "".split()
)


def lowered(condition: str) -> str:
    """A condition as written within a sentence: "Type 2 diabetes" -> "type 2 diabetes".

    Acronyms and names keep their capital: "HIV", "Crohn's disease", "Down syndrome"."""
    first = condition.split(" ", 1)[0]
    named = "'" in first or "\u2019" in first or first.lower() in _NAMES
    if named or not first[1:].islower():
        return condition
    return condition[0].lower() + condition[1:]


# ---------------------------------------------------------------- answer -> question

_LABEL = re.compile(r"(?:\*\*)?(question|answer|[qa])\s?\d{0,2}(?:\*\*)?\s*:\s*(?:\*\*)?\s*", re.I)
_LETTER = re.compile(r"(Q|A)\d{0,2}\.\s+")  # "Q. Where ...?"; "A. A. Milne" is also a name
_INSIDE = re.compile(
    r"\s+(?=(?:\*\*)?(?:(?i:question|answer)|Statement|Fact)(?: \d{1,2})?(?:\*\*)?:)"
)
_ECHO = re.compile(
    r"(?:\*\*)?(?:statement|facts?|facts before it|topic|person|condition|pronoun)(?:\*\*)?:|###",
    re.I,
)
_BULLET = re.compile(r"(?:[-*\u2022]|\(?\d{1,2}[.)])\s+")
_OPENING = re.compile(r"(?:Sure(?: thing)?|Certainly|Of course|Okay|Absolutely)[.!:,]\s*")
_TALK = re.compile(
    r"I(?:['\u2019]| am | cannot| can't| could| would| do | don't| need| apologi[sz]e)|"
    r"Sorry(?:,| but|, but)|Unfortunately|Please (?:provide|give|share|clarify)|"
    r"As an (?:AI|assistant)|(?:Could|Can|Would|Will|Do) you\b"
)
_NEXT = re.compile(r"(?<=\?)\s+(?=[A-Z])")
_QUOTES = {'"': '"', "\u201c": "\u201d", "*": "*"}


def parse(text: str, answer: bool = False, fact: str = "") -> Asked:
    """The first question in the text and, if `answer`, the answer after it.

    Labelled lines, one line with both, and JSON are accepted; lines that repeat the prompt are
    ignored. Raise RowError for a text without a question, a refusal, a question that only repeats
    the `fact`, and an answer that is missing or longer than ANSWER_CHARS.
    """
    text = text.strip()
    question, short_answer = _from_json(text) or _from_lines(text)
    if not question or not re.search(r"\w", question):
        raise RowError(f"no question in the answer {text[:80]!r}")
    if _TALK.match(question):
        raise RowError(f"a refusal, no question: {text[:80]!r}")
    if len(question) > QUESTION_CHARS:
        raise RowError(f"a question of {len(question)} characters: {question[:80]!r}...")
    if fact and _bare(question) == _bare(fact):
        raise RowError(f"the question only repeats the fact: {question[:80]!r}")
    if not answer:
        return Asked(question, None)
    short_answer = _unquoted(short_answer or "").rstrip(".").strip()
    if not re.search(r"\w", short_answer) or short_answer.lower() == "n/a":
        raise RowError(f"no answer behind the question in {text[:80]!r}")
    if len(short_answer) > ANSWER_CHARS:
        raise RowError(f"no short answer: {short_answer[:80]!r}...")
    return Asked(question, short_answer)


def _from_json(text: str) -> tuple[str | None, str | None] | None:
    """(question, answer) of the first JSON object in the text; None without an object. A truncated
    object has no question."""
    start = re.search(r"\{\s*(?:\"|\}|$)", text)
    if start is None:
        return None
    try:
        value: Any = json.JSONDecoder().raw_decode(text, start.start())[0]
    except (ValueError, RecursionError):
        return None, None
    question, answer = value.get("question"), value.get("answer")
    if not isinstance(question, str) or not question.strip().endswith("?"):
        return None, None
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    short_answer = str(answer) if isinstance(answer, str | int | float) else None
    return " ".join(question.split()), short_answer


def _from_lines(text: str) -> tuple[str | None, str | None]:
    question: str | None = None
    letters = False  # whether the question's label was "Q."
    for line in filter(None, (part.strip() for part in _INSIDE.sub("\n", text).splitlines())):
        if _ECHO.match(line) and question is not None:
            break
        if _ECHO.match(line) or line.startswith("```"):
            continue
        label = _LABEL.match(line)
        if label is None and (dotted := _LETTER.match(line)) and (letters or dotted[1] == "Q"):
            label, letters = dotted, True
        kind = label[1][0].lower() if label else ""
        rest = line[label.end() :] if label else _BULLET.sub("", line, count=1)
        if question is None:
            question, behind = (None, "") if kind == "a" else _split(rest, letters)
            if question and behind:
                return question, behind if "?" not in behind else None  # else another question
        elif kind == "q" or (kind != "a" and rest.endswith("?")):
            break
        elif rest.strip("* "):
            return question, rest
    return question, None


def _split(line: str, letters: bool) -> tuple[str | None, str]:
    """(the first question of a line or None, the text after it)."""
    line = _OPENING.sub("", line, count=1)
    head = _NEXT.split(line, maxsplit=1)[0]
    if not head.endswith("?"):
        head = line[: line.rfind("?") + 1]
    behind = line[len(head) :]
    closed = len(behind) - len(behind.lstrip('"\u201d*'))
    head, behind = head + behind[:closed], behind[closed:].strip(" -\u2013\u2014")
    label = _LABEL.match(behind) or (letters and _LETTER.match(behind))
    return _unquoted(head) or None, behind[label.end() :] if label else behind


def _unquoted(text: str) -> str:
    """The text without quotes, emphasis or brackets around it."""
    text = text.strip().strip("*").strip()
    if text[:1] == "(" and text.find(")") == len(text) - 1:
        text = text[1:-1]
    close = _QUOTES.get(text[:1])
    if close and len(text) > 1 and text.find(close, 1) == len(text) - 1:
        text = text[1:-1]
    return text.strip()


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()
