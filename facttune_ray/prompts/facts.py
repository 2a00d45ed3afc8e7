"""Ask an LLM for the atomic facts of a sentence. One request per sentence.

render("Ada Lovelace", "She was English.")                   ->  chat messages
render("Ada Lovelace", "He met her there.", decontextualize=True,
       context="In London she knew Charles Babbage.")        ->  asks for names of "He", "there"
parse("- Ada Lovelace was English.")                         ->  ["Ada Lovelace was English."]
parse('{"facts": ["Ada Lovelace was English."]}')            ->  the same
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced

DOMAINS = {"general": "facts_general", "bio": "facts_bio", "medicine": "facts_medicine"}
CONTEXT = "facts_context"  # for every domain
TEMPLATES = (*DOMAINS.values(), CONTEXT)
CONTEXT_CHARS = 1500  # shown of the response before the sentence
MAX_FACTS = 50  # per sentence; a longer list is usually endless
MAX_CHARS = 600  # per fact


def template_name(domain: str = "general", decontextualize: bool = False) -> str:
    """The name of the template that `render` fills. Its hash is part of the recipe."""
    return CONTEXT if decontextualize else DOMAINS[domain]


def render(
    topic: str,
    sentence: str,
    domain: str = "general",
    context: str = "",
    decontextualize: bool = False,
) -> list[dict[str, str]]:
    """Chat messages. `context`: the response before the sentence. Only `decontextualize` shows it,
    its last CONTEXT_CHARS characters."""
    name = template_name(domain, decontextualize)
    slots = {"topic": " ".join(topic.split()), "sentence": fenced(sentence)}
    if decontextualize:
        slots["context"] = fenced(context, CONTEXT_CHARS, last=True)
    return template.messages(name, **slots)


# ---------------------------------------------------------------- answer -> facts

_ITEM = re.compile(
    r"\s*(?:[\u2022\u2023\u25e6\u25aa\u25cf]\s*+|[-*+\u2013\u2014](?:\s++|(?=[A-Z\"]))"
    r"|\(?\d{1,3}[.):]\s++|\(?[a-z][.)]\s++|\(?[A-Z]\)\s++)(.*\S)\s*$"
)
_UPPER_ITEM = re.compile(r"\s*([A-Z])\.\s+(.*\S)\s*$")
_FENCED = re.compile(r"```\w*\s*\n(.*?)(?:```|\Z)", re.S)
_ECHO = re.compile(r"(?:Topic|Sentence|Before): |### ")  # the model continues the prompt
_GAP = re.compile(r"[\s,]*+")
_NONE = re.compile(r"\W*(?:none|no facts?|no atomic facts?|null|n/?a)\W*$", re.I)
_SENTENCE = re.compile(r"[\"'\u201c(]?[^\Wa-z_].*[.!?\u2026\u3002\u0964][\"'\u201d)]*$")
_SEVERAL = re.compile(r"\w{3,}[.!?] +[A-Z]")
_TALK = re.compile(
    r"(?:I|I'm|I'll|Sorry|Unfortunately|As an|Please|Here|Sure|Note|Certainly|Of course|The "
    r"sentence|This sentence)\b"
)
_KEYS = ("facts", "atomic_facts", "atoms", "fact", "text", "atom", "questions", "question")


def parse(answer: str) -> list[str]:
    """The first MAX_FACTS distinct facts of a list with bullets, numbers, letters or in JSON; `[]`
    for "none".

    Two or more lines without marks are a list if each line is one full sentence. Raise RowError for
    prose, and for a fact of more than MAX_CHARS characters.
    """
    text = answer.strip()
    items = _listed(text)
    if items is None:
        raise RowError(f"no list of facts in the answer {answer[:80]!r}")
    facts = list(dict.fromkeys(f for item in items if (f := _plain(item))))[:MAX_FACTS]
    if (longest := max(map(len, facts), default=0)) > MAX_CHARS:
        raise RowError(f"a fact of {longest} characters: expected at most {MAX_CHARS}")
    return facts


def _plain(item: str) -> str:
    """The item without emphasis; "" for an item that states nothing."""
    item = " ".join(item.replace("**", "").split())
    return "" if not re.search(r"\w", item) or item.endswith(":") or _NONE.match(item) else item


def _listed(text: str) -> list[str] | None:
    if text.startswith(("[", "{", "```")):
        fence = _FENCED.match(text)
        if (items := _json(fence[1] if fence else text)) is not None:
            return items
    if items := _bullets(text):
        return items
    if _NONE.match(text):
        return []
    starts = (m.start() for m in re.finditer(r"\[\s*[\"{\]]|\{\s*\"", text))
    if (start := next(starts, None)) is not None:
        if (items := _json(text[start:])) is not None:
            return items
    return _lettered(text) or _lines(text)


def _bullets(text: str) -> list[str]:
    items: list[str] = []
    inside = False
    for line in text.splitlines():
        if items and _ECHO.match(line):
            break
        if match := _ITEM.match(line):
            items.append(match[1])
            inside = True
        elif inside and line.startswith("  ") and line.strip():
            items[-1] += " " + line.strip()  # the item continues
        else:
            inside = False
    return items


def _lettered(text: str) -> list[str] | None:
    """Items "A. ...", "B. ...". The letters must be in sequence: a single capital may be an
    initial."""
    items = [m for line in text.splitlines() if (m := _UPPER_ITEM.match(line))]
    letters = "".join(m[1] for m in items)
    if len(items) < 2 or not "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters):
        return None
    return [m[2] for m in items]


def _lines(text: str) -> list[str] | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    whole = all(
        _SENTENCE.match(line) and not _SEVERAL.search(line) and not _TALK.match(line)
        for line in lines
    )
    return lines if whole and len(lines) > 1 else None


def _json(text: str) -> list[str] | None:
    """Facts of the JSON at the start of the text: a list, an object with a list, or objects on
    lines; None for other text."""
    decoder, values, at = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while at < len(text) and text[at] in "[{":
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at = _GAP.search(text, at).end()  # type: ignore[union-attr]
        return [fact for value in values for fact in _facts(value)] if values else None
    except (ValueError, RecursionError):
        return None


def _facts(value: Any) -> Iterator[str]:
    """The facts of a JSON value. Raise ValueError for a value that holds no text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _facts(item)
    elif isinstance(value, dict) and (key := next((k for k in _KEYS if k in value), None)):
        yield from _facts(value[key])
    else:
        raise ValueError("no fact")
