"""Write prompts about a topic: fill a sentence with the topic, or ask an LLM for questions.

filled("Ada Lovelace", "bio", "plain")         ->  "The following is a biography of Ada Lovelace."
render("Asthma", 2, "medicine")                ->  chat messages
parse("- What causes asthma?\\n- Is it rare?", "Asthma")  ->  ["What causes asthma?"]
distinct("What are the symptoms of asthma?")   ->  equals distinct("What are symptoms of asthma?")
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from facttune_ray.errors import RowError
from facttune_ray.prompts import facts, template
from facttune_ray.prompts.fence import fenced
from facttune_ray.prompts.questions import lowered
from facttune_ray.text.forms import singular

# plain: text that a plain model continues; chat: a request to a chat model
TEMPLATES = {
    "bio": {
        "plain": "The following is a biography of {topic}.",
        "chat": "Write a one-paragraph biography of {topic}.",
    },
    "medicine": {
        "plain": "The following is a summary of what is known about {topic}.",
        "chat": "Write a paragraph about {topic}: symptoms, causes, diagnosis and treatment.",
    },
    "general": {
        "plain": "The following is an encyclopedia article about {topic}.",
        "chat": "Write a paragraph about {topic}.",
    },
}
SLOT = "{topic}"
BEFORE_CHARS = 6000  # shown of the existing questions
QUESTION_CHARS = 400  # a longer question is usually endless


def template_name(domain: str) -> str:
    """The name of the template that `render` fills. Its hash is part of the recipe."""
    return f"prompts_{domain}"


def sentence(domain: str, form: str, own: str = "") -> str:
    """The sentence around the topic: `own`, or the sentence of this domain and form."""
    return own or TEMPLATES[domain][form]


def filled(topic: str, domain: str, form: str, own: str = "", lower_case: str | None = None) -> str:
    """The prompt about a topic. In medicine the condition is in lower case, as in a sentence."""
    text = sentence(domain, form, own)
    return text.replace(SLOT, _named(topic, domain, lower_case))


def render(
    topic: str,
    number: int,
    domain: str = "general",
    before: Sequence[str] = (),
    lower_case: str | None = None,
) -> list[dict[str, str]]:
    """Chat messages that ask for `number` questions other than those `before`."""
    shown = fenced(" ".join(before), BEFORE_CHARS, last=True)
    return template.messages(
        template_name(domain),
        topic=_named(topic, domain, lower_case),
        before=f"Questions that are there: <<<{shown}>>>\n" if before else "",
        number=str(number),
    )


def _named(topic: str, domain: str, lower_case: str | None) -> str:
    name = " ".join(topic.split())
    return (lower_case or lowered(name)) if domain == "medicine" else name


def parse(answer: str, topic: str, lower_case: str | None = None) -> list[str]:
    """The questions of a list, in order, that name the topic or a word of the topic. Raise RowError
    for prose, and for a list without such a question."""
    text = answer.strip()
    single = text.endswith("?") and "\n" not in text and not text.startswith(("-", "*", "1", "["))
    listed = [text] if single else facts.parse(text)
    questions = (" ".join(item.split()) for item in listed)
    words = _words(re.sub(r"\s*\([^)]*\)$", "", topic)) | _words(lower_case or "")
    kept = [
        q
        for q in questions
        if q.endswith("?") and len(q) <= QUESTION_CHARS and (not words or words & _words(q))
    ]
    if not kept:
        raise RowError(f'no question about "{topic}" in the answer {text[:80]!r}')
    return kept


_PLAIN = set(
    "a an the is are was were be been do does did can could will would may might of in on to for "
    "with by from and or some any common commonly main most usually typically generally please "
    "tell me describe explain there that this it its".split()
)


def distinct(question: str) -> frozenset[str]:
    """A question's words without common words. Two questions with equal words are duplicates."""
    return frozenset(_words(question))


def _words(text: str) -> set[str]:
    return {singular(w) for w in re.findall(r"\w+", text.casefold())} - _PLAIN
