"""Ask an LLM which of two responses is more fluent, and which more helpful. One request per order.

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
MAX_CHARS = 8000  # shown of each text
_LINE = re.compile(r"\W*(fluency|helpfulness)\W+(?:response\s+)?(a|b|tie)\b", re.I)


def render(prompt: str, first: str, second: str) -> list[dict[str, str]]:
    return template.messages(
        TEMPLATE,
        prompt=fenced(prompt, MAX_CHARS),
        first=fenced(first, MAX_CHARS),
        second=fenced(second, MAX_CHARS),
    )


def parse(answer: str) -> dict[str, str]:
    """ "A", "B" or "Tie" for each of QUALITIES. Raise RowError for a missing or double answer."""
    winners: dict[str, str] = {}
    for line in answer.splitlines():
        if match := _LINE.match(line):
            quality, winner = match[1].lower(), match[2].title()
            if winners.setdefault(quality, winner) != winner:
                raise RowError(f"two answers for {quality} in {answer[:80]!r}")
    if missing := [q for q in QUALITIES if q not in winners]:
        raise RowError(f"no A, B or Tie for {missing[0]} in the answer {answer[:80]!r}")
    return winners
