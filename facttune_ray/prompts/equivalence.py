"""Ask an LLM whether two answers to one question mean the same.

render("Where was Ada born?", "London", "in London")  ->  chat messages
parse("Yes")                                          ->  True
"""

from __future__ import annotations

import re

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

TEMPLATE = "equivalence"


def render(question: str, first: str, second: str) -> list[dict[str, str]]:
    slots = {"question": question, "first": first, "second": second}
    return template.messages(TEMPLATE, **{k: fenced(v) for k, v in slots.items()})


def parse(answer: str) -> bool:
    """Whether the answer says yes. Raise RowError for neither yes nor no, and for both."""
    words = set(re.findall(r"[a-z]+", answer.lower()))
    if ("yes" in words) == ("no" in words):
        raise RowError(f"neither Yes nor No in the answer {answer[:80]!r}")
    return "yes" in words
