"""Fact + passages -> True or False. One request a distinct fact of a topic, or one for several.

render("Ada", "Ada was English.", ["Ada ... English"])  ->  chat messages
parse("True")                                           ->  True
parse_many("1. True\n2. False", 2)                      ->  [True, False]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from facttune_ray.errors import RowError
from facttune_ray.prompts import template

TEMPLATE, MANY, CLOSED = "verdicts", "verdicts_many", "verdicts_closed"

# An answer without True or False that says one of these does not support the statement
# (FActScore, factscorer.py).
_DOUBT = {"not", "cannot", "unknown", "information"}
_LINE = re.compile(r"^\W*(\d{1,4})\W*\s*[:.)\-]?\s*\W*(true|false)\b", re.I)


def render(topic: str, fact: str, passages: Sequence[str]) -> list[dict[str, str]]:
    return template.messages(
        TEMPLATE, topic=_line(topic), passages=_listed(passages), fact=_line(fact)
    )


def render_many(topic: str, facts: Sequence[str], passages: Sequence[str]) -> list[dict[str, str]]:
    lines = "\n".join(f"{i}. {_line(f)}" for i, f in enumerate(facts, 1))
    return template.messages(MANY, topic=_line(topic), passages=_listed(passages), facts=lines)


def render_closed(topic: str, fact: str) -> list[dict[str, str]]:
    """Without passages: from what the model knows."""
    return template.messages(CLOSED, topic=_line(topic), fact=_line(fact))


def _line(text: str) -> str:
    """On one line: a text that spans several could pass for other parts of the prompt."""
    return " ".join(text.split())


def _listed(passages: Sequence[str]) -> str:
    return "\n".join(f"[{i}] {_line(p)}" for i, p in enumerate(passages, 1))


def parse(answer: str) -> bool:
    """The verdict. A first or last word True or False decides, else the only one of the two, else
    words of doubt mean False; RowError when the answer says neither or both."""
    words = re.findall(r"[a-z]+", answer.lower())
    said = {"true", "false"}.intersection(words)
    for deciding in (said.intersection(words[:1] + words[-1:]), said):
        if len(deciding) == 1:
            return "true" in deciding
    if not said and _DOUBT.intersection(words):
        return False
    raise RowError(f"neither True nor False in the answer {answer[:80]!r}")


def parse_many(answer: str, count: int) -> list[bool]:
    """One verdict a number, in order; RowError unless each of 1..count has exactly one."""
    found: dict[int, bool] = {}
    for line in answer.splitlines():
        if match := _LINE.match(line):
            number, verdict = int(match[1]), match[2].lower() == "true"
            if found.setdefault(number, verdict) != verdict:
                raise RowError(f"two verdicts for statement {number}")
    if sorted(found) != list(range(1, count + 1)):
        raise RowError(f"{len(found)} verdicts for {count} statements in {answer[:80]!r}")
    return [found[i] for i in range(1, count + 1)]


def probability(top_logprobs: str | None) -> float | None:
    """P(True) against False from the first token's alternatives; None when neither is there."""
    if top_logprobs is None:
        return None
    mass = {"true": 0.0, "false": 0.0}
    for token, logprob in json.loads(top_logprobs).items():
        word = token.strip().lower()
        if word in mass:
            mass[word] += math.exp(logprob)
    total = sum(mass.values())
    return mass["true"] / total if total > 0 else None
