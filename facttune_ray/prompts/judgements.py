"""Prompt + two responses -> which is more fluent, which more helpful. One request an order.

render("Tell me about Ada.", "Ada sings.", "Ada ada")  ->  chat messages
parse("Fluency: A\\nHelpfulness: Tie")                  ->  {"fluency": "A", "helpfulness": "Tie"}
"""

from __future__ import annotations

import re

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

TEMPLATE = "judgements"
QUALITIES = ("fluency", "helpfulness")
MAX_CHARS = 8000  # of a response
_LINE = re.compile(r"\W*(fluency|helpfulness)\W+(?:response\s+)?(a|b|tie)\b", re.I)


def render(prompt: str, first: str, second: str) -> list[dict[str, str]]:
    return template.messages(
        TEMPLATE,
        prompt=fenced(prompt, MAX_CHARS),
        first=fenced(first, MAX_CHARS),
        second=fenced(second, MAX_CHARS),
    )


def parse(answer: str) -> dict[str, str]:
    """ "A", "B" or "Tie" for each of QUALITIES; RowError when one is missing or said twice."""
    found: dict[str, str] = {}
    for line in answer.splitlines():
        if match := _LINE.match(line):
            quality, said = match[1].lower(), match[2].title()
            if found.setdefault(quality, said) != said:
                raise RowError(f"two answers for {quality} in {answer[:80]!r}")
    if missing := [q for q in QUALITIES if q not in found]:
        raise RowError(f"no A, B or Tie for {missing[0]} in the answer {answer[:80]!r}")
    return found
