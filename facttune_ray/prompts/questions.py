"""Fact -> the question it answers, and in one form its answer. One request a distinct fact.

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

from facttune_ray.errors import RowError, UserError, did_you_mean
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

DOMAINS = ("general", "bio", "medicine")
TEMPLATES = tuple(f"questions_{d}" for d in DOMAINS)
ANSWER_TEMPLATES = tuple(f"{name}_answer" for name in TEMPLATES)
FACT_CHARS = 300  # of each fact shown before
ANSWER_CHARS = 200  # a longer one is no short answer


class Asked(NamedTuple):
    question: str
    answer: str | None  # None: not asked for


def template_name(domain: str, answer: bool) -> str:
    """The template that `render` fills: its hash belongs to the recipe."""
    if domain not in DOMAINS:
        raise UserError(f'questions.domain: no domain "{domain}".{did_you_mean(domain, DOMAINS)}')
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
    """Chat messages. `before`: facts of the response that stand before it. `pronoun` ("her"): of
    the person, in the domain bio. `lower_case`: the condition within a sentence, in medicine."""
    name = " ".join(topic.split())
    slots = {"topic": name, "fact": " ".join(fact.split()), "before": _before(before)}
    if domain == "bio":
        slots["pronoun"] = pronoun or "unknown"
    if domain == "medicine":
        slots["topic"] = lower_case or lowered(name)
    return template.messages(template_name(domain, answer), **slots)


def _before(facts: Sequence[str]) -> str:
    """A line of its own, or nothing."""
    shown = " ".join(fenced(f, FACT_CHARS) for f in facts)
    return f"Facts before it: {shown}\n" if shown else ""


# Conditions that are named after somebody, or some place, without the 's that tells it
_NAMES = set("down turner klinefelter hodgkin marfan lyme ebola zika asperger tourette".split())


def lowered(condition: str) -> str:
    """A condition as it stands within a sentence: "Type 2 diabetes" -> "type 2 diabetes".

    Acronyms and names keep their capital: "HIV", "Crohn's disease", "Down syndrome"."""
    first = condition.split(" ", 1)[0]
    named = "'" in first or "\u2019" in first or first.lower() in _NAMES
    if named or not first[1:].islower():
        return condition
    return condition[0].lower() + condition[1:]


# ---------------------------------------------------------------- answer -> question

_LABEL = re.compile(r"(?:\*\*)?(question|q|answer|a)(?:\*\*)?\s*[:.]\s*(?:\*\*)?\s*", re.I)
_ECHO = re.compile(r"(?:statement|fact|facts before it|topic|person|condition|pronoun):", re.I)
_NEXT = re.compile(r"(?<=\?)\s+(?=[A-Z])")


def parse(text: str, answer: bool = False, fact: str = "") -> Asked:
    """The first question in the text and, if wanted, the answer behind it.

    Labelled lines, one line with both, and JSON are read alike; what repeats the prompt ends it.
    RowError for a text without a question, for one that only repeats the `fact`, and for an answer
    that is missing or longer than ANSWER_CHARS.
    """
    text = text.rpartition("</think>")[2].strip()
    question, said = _from_json(text) or _from_lines(text)
    if question is None:
        raise RowError(f"no question in the answer {text[:80]!r}")
    if fact and _bare(question) == _bare(fact):
        raise RowError(f"the question only repeats the fact: {question[:80]!r}")
    if not answer:
        return Asked(question, None)
    said = (said or "").strip().rstrip(".").strip()
    if not said:
        raise RowError(f"no answer behind the question in {text[:80]!r}")
    if len(said) > ANSWER_CHARS:
        raise RowError(f"no short answer: {said[:80]!r}...")
    return Asked(question, said)


def _from_json(text: str) -> tuple[str | None, str | None] | None:
    if not text.startswith("{"):
        return None
    try:
        read: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(read, dict) or not isinstance(read.get("question"), str):
        return None
    question, said = read["question"].strip(), read.get("answer")
    return (question if question.endswith("?") else None), str(said) if said is not None else None


def _from_lines(text: str) -> tuple[str | None, str | None]:
    question: str | None = None
    said: str | None = None
    for line in (line.strip() for line in text.splitlines()):
        if not line:
            continue
        if _ECHO.match(line):
            break
        label = _LABEL.match(line)
        kind = label[1][0].lower() if label else ""
        rest = line[label.end() :] if label else line
        if question is None:
            head = _NEXT.split(rest, maxsplit=1)[0]
            if not head.endswith("?"):
                head = rest[: rest.rfind("?") + 1]
            if kind == "a" or not head:
                continue
            question, behind = head.strip(' *"\u201c\u201d'), rest[len(head) :].strip()
            said = behind if behind and "?" not in behind else None  # not one more question
        elif said is None and kind != "q":
            said = rest
            break
        else:
            break
    return question, _unlabelled(said)


def _unlabelled(said: str | None) -> str | None:
    label = _LABEL.match(said) if said else None
    return said[label.end() :] if said and label else said


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()
