"""Fact -> the question it answers. One request a distinct fact of a topic.

render("Ada Lovelace", "Ada Lovelace was born in London.")  ->  chat messages
parse("Where was Ada Lovelace born?")                       ->  "Where was Ada Lovelace born?"
"""

from __future__ import annotations

from facttune_ray.errors import RowError
from facttune_ray.prompts import template

TEMPLATE = "questions"


def render(topic: str, fact: str) -> list[dict[str, str]]:
    return template.messages(TEMPLATE, topic=topic, fact=" ".join(fact.split()))


def parse(answer: str) -> str:
    """The first line that is a question; RowError when there is none."""
    for line in answer.splitlines():
        line = line.strip()
        if line.lower().startswith("question:"):
            line = line[len("question:") :].strip()
        if line.endswith("?"):
            return line
    raise RowError(f"no question in the answer {answer[:80]!r}")
