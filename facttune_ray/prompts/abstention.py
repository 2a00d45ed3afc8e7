"""Prompt + response -> does the response decline to answer? One request a response.

render("Tell me about Ada.", "I'm sorry, I don't know her.")  ->  chat messages
parse("Yes")                                                  ->  True
"""

from __future__ import annotations

import re

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

TEMPLATE = "abstention"
MAX_CHARS = 4000  # of the response, and of the prompt: a refusal shows at the start


def render(prompt: str, response: str) -> list[dict[str, str]]:
    return template.messages(
        TEMPLATE,
        prompt=fenced(prompt, MAX_CHARS),
        response=fenced(response, MAX_CHARS),
    )


def parse(answer: str) -> bool:
    """True for yes, it declines; RowError when the answer says neither or both.

    A first word Yes or No decides, whatever follows it.
    """
    words = re.findall(r"[a-z]+", answer.lower())
    said = {"yes", "no"}.intersection(words[:1]) or {"yes", "no"}.intersection(words)
    if len(said) != 1:
        raise RowError(f"neither Yes nor No in the answer {answer[:80]!r}")
    return "yes" in said
