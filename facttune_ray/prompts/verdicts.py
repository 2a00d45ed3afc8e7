"""Fact + passages -> True or False. One request a distinct fact of a topic.

render("Ada", "Ada was English.", ["Ada ... English"])  ->  chat messages
parse("True")                                           ->  True
"""

from __future__ import annotations

import re

from facttune_ray.errors import RowError
from facttune_ray.prompts import template

TEMPLATE = "verdicts"


def render(topic: str, fact: str, passages: list[str]) -> list[dict[str, str]]:
    lines = [f"[{i}] {' '.join(p.split())}" for i, p in enumerate(passages, 1)]
    return template.messages(
        TEMPLATE, topic=topic, passages="\n".join(lines), fact=" ".join(fact.split())
    )


def parse(answer: str) -> bool:
    """The verdict; RowError when the answer says neither or both."""
    words = set(re.findall(r"[a-z]+", answer.lower()))
    if ("true" in words) == ("false" in words):
        raise RowError(f"neither True nor False in the answer {answer[:80]!r}")
    return "true" in words
