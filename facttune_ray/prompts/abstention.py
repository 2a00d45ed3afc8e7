"""Ask an LLM whether a response declines to answer. One request per response.

render("Tell me about Ada.", "I'm sorry, I don't know her.")  ->  chat messages
parse("Yes")                                                  ->  True
"""

from __future__ import annotations

import re

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

TEMPLATE = "abstention"
MAX_CHARS = 4000  # shown of the response and of the prompt: a refusal is at the start


def render(prompt: str, response: str) -> list[dict[str, str]]:
    return template.messages(
        TEMPLATE,
        prompt=fenced(prompt, MAX_CHARS),
        response=fenced(response, MAX_CHARS),
    )


def parse(answer: str) -> bool:
    """Whether the answer says yes, the response declines. Raise RowError for neither and for both.

    A first word Yes or No decides, whatever follows it.
    """
    words = re.findall(r"[a-z]+", answer.lower())
    decisions = {"yes", "no"}.intersection(words[:1]) or {"yes", "no"}.intersection(words)
    if len(decisions) != 1:
        raise RowError(f"neither Yes nor No in the answer {answer[:80]!r}")
    return "yes" in decisions
