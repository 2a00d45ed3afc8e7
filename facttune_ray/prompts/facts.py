"""Sentence -> atomic facts. One request a sentence.

render("Ada Lovelace", "She was English.")  ->  chat messages
parse("- Ada Lovelace was English.")        ->  ["Ada Lovelace was English."]
"""

from __future__ import annotations

import re

from facttune_ray.errors import RowError
from facttune_ray.prompts import template

TEMPLATE = "facts"
_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+(.*\S)\s*$")


def render(topic: str, sentence: str) -> list[dict[str, str]]:
    return template.messages(TEMPLATE, topic=topic, sentence=" ".join(sentence.split()))


def parse(answer: str) -> list[str]:
    """Facts of a bulleted or numbered answer; `[]` for "- none". RowError without a list."""
    items = [m[1] for line in answer.splitlines() if (m := _ITEM.match(line))]
    if not items:
        raise RowError(f"no list of facts in the answer {answer[:80]!r}")
    return [item for item in items if item.strip(".").lower() != "none"]
