"""Sentence -> atomic facts. One request a sentence.

render("Ada Lovelace", "She was English.")                   ->  chat messages
render("Ada Lovelace", "He met her there.", decontextualize=True,
       context="In London she knew Charles Babbage.")        ->  the same, names for "He", "there"
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
CONTEXT = "facts_context"  # every domain
TEMPLATES = (*DOMAINS.values(), CONTEXT)
CONTEXT_CHARS = 1500  # of the response before the sentence
MAX_FACTS = 50  # of one sentence; what comes after them is a list that does not end
MAX_CHARS = 600  # of one fact


def template_name(domain: str = "general", decontextualize: bool = False) -> str:
    """The template that `render` fills: its hash belongs to the recipe."""
    return CONTEXT if decontextualize else DOMAINS[domain]


def render(
    topic: str,
    sentence: str,
    domain: str = "general",
    context: str = "",
    decontextualize: bool = False,
) -> list[dict[str, str]]:
    """Chat messages. `context`: the response up to the sentence, used by `decontextualize` alone;
    its last CONTEXT_CHARS characters are shown."""
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
_ECHO = re.compile(r"(?:Topic|Sentence|Before): |### ")  # the model goes on with the prompt
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
    """Distinct facts of a list in order: bullets, numbers, letters or JSON; `[]` for "none".

    Without any marks two lines or more count as a list when each of them is one full sentence. The
    first MAX_FACTS are taken. RowError for prose, and for a fact of more than MAX_CHARS.
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
    """An item without emphasis; "" for one that states nothing."""
    item = " ".join(item.replace("**", "").split())
    return "" if not re.search(r"\w", item) or item.endswith(":") or _NONE.match(item) else item


def _listed(text: str) -> list[str] | None:
    if text.startswith(("[", "{", "```")):
        found = _FENCED.match(text)
        if (items := _json(found[1] if found else text)) is not None:
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
            items[-1] += " " + line.strip()  # an item that goes on
        else:
            inside = False
    return items


def _lettered(text: str) -> list[str] | None:
    """ "A. ...", "B. ...": one capital alone may be an initial, so they must be in sequence."""
    lines = [line for line in text.splitlines() if line.strip()]
    found = [m for line in lines if (m := _UPPER_ITEM.match(line))]
    letters = "".join(m[1] for m in found)
    if not found or not "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters) or len(found) < 2:
        return None
    return [m[2] for m in found]


def _lines(text: str) -> list[str] | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    whole = all(
        _SENTENCE.match(line) and not _SEVERAL.search(line) and not _TALK.match(line)
        for line in lines
    )
    return lines if whole and len(lines) > 1 else None


def _json(text: str) -> list[str] | None:
    """Facts of the JSON that the text opens with: a list, an object with one, or objects a line."""
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
    """ValueError for what is neither a text nor an object or list of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _facts(item)
    elif isinstance(value, dict) and (key := next((k for k in _KEYS if k in value), None)):
        yield from _facts(value[key])
    else:
        raise ValueError("no fact")
