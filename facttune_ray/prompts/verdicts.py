"""Ask an LLM whether passages support a fact. One request per distinct fact of a topic, or for
several facts.

render("Ada", "Ada was English.", ["Ada ... English"])  ->  chat messages
parse("True")                                           ->  True
parse_many("1. True\n2. False", 2)                      ->  [True, False]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from facttune_ray.errors import RowError
from facttune_ray.prompts import template
from facttune_ray.prompts.fence import fenced, numbered

TEMPLATE, MANY, CLOSED = "verdicts", "verdicts_many", "verdicts_closed"

# An answer without True or False but with one of these words does not support the statement
# (FActScore, factscorer.py).
_DOUBT = {"not", "cannot", "unknown", "information"}
_VERDICT = re.compile(r"\b(?:true|false)\b")
_EITHER = re.compile(r"\b(?:true|false)\W+(?:n?or|and)\W+(?:true|false)\b")  # repeats the question
_NOT_TRUE = re.compile(
    r"\b(?:not|never|cannot|[a-z]+n't)"
    r"(?: (?:be|an?|actually|completely|entirely|exactly|factually|fully|quite|really|strictly|"
    r"wholly))* true\b"
)
_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|[a-z]+n't|without|unable|if|whether|unknown|unclear|"
    r"doubt\w*|incorrect|inaccurate|wrong|mistaken|untrue)\b"
)
_CLAUSE = re.compile(
    r"[^\w\s'-]|\n|\b(?:so|thus|hence|therefore|but|because|since|though|although|while|which|"
    r"as(?= (?:the|it|they|there|this|no)\b))\b"
)
_LINE = re.compile(r"^\W*(\d{1,4})\W*\s*[:.)\-]?\s*\W*(true|false)\b", re.I)


def render(topic: str, fact: str, passages: Sequence[str]) -> list[dict[str, str]]:
    shown = numbered(passages, "[{}]")
    return template.messages(TEMPLATE, topic=_line(topic), passages=shown, fact=fenced(fact))


def render_many(topic: str, facts: Sequence[str], passages: Sequence[str]) -> list[dict[str, str]]:
    shown = {"passages": numbered(passages, "[{}]"), "facts": numbered(facts, "{}.")}
    return template.messages(MANY, topic=_line(topic), **shown)


def render_closed(topic: str, fact: str) -> list[dict[str, str]]:
    """Chat messages without passages: the model answers from its own knowledge."""
    return template.messages(CLOSED, topic=_line(topic), fact=fenced(fact))


def _line(text: str) -> str:
    """The text on one line: a second line could imitate another part of the prompt."""
    return " ".join(text.split())


def parse(answer: str) -> bool:
    """The verdict. A first or last word True or False decides; else the only True or False; else
    words of doubt mean False. "Not true" is False. Raise RowError when the answer says neither or
    both, or denies in another way: "It is not false", "That it is true is wrong"."""
    text = answer.lower().replace("\u2019", "'")
    text = _NOT_TRUE.sub("false", _EITHER.sub(" ", re.sub(r"[*_`\"]", "", text)))
    verdicts: list[bool | None] = []  # one per True or False; None: its clause denies it
    for clause in _CLAUSE.split(text):
        matches = _VERDICT.findall(clause)
        plain = len(matches) == 1 and not _DENIAL.search(clause)
        verdicts += [word == "true" if plain else None for word in matches]
    words = re.findall(r"[a-z]+", text)
    if not verdicts and _DOUBT.intersection(words):
        return False
    ends = {verdicts[at] for at in (0, -1) if verdicts and _VERDICT.fullmatch(words[at])} - {None}
    decisive = ends or {*verdicts}
    if len(decisive) == 1 and (verdict := decisive.pop()) is not None:
        return verdict
    raise RowError(f"neither True nor False in the answer {answer[:80]!r}")


def parse_many(answer: str, count: int) -> list[bool]:
    """The verdicts 1..count in order. Raise RowError unless each number has exactly one verdict."""
    verdicts: dict[int, bool] = {}
    for line in answer.splitlines():
        if match := _LINE.match(line):
            number, verdict = int(match[1]), match[2].lower() == "true"
            if verdicts.setdefault(number, verdict) != verdict:
                raise RowError(f"two verdicts for statement {number}")
    if sorted(verdicts) != list(range(1, count + 1)):
        raise RowError(f"{len(verdicts)} verdicts for {count} statements in {answer[:80]!r}")
    return [verdicts[i] for i in range(1, count + 1)]


def probability(top_logprobs: str | None) -> float | None:
    """P(True) / (P(True) + P(False)) from the first token's alternatives (JSON: token -> log
    probability); None when neither is an alternative."""
    if top_logprobs is None:
        return None
    mass = {"true": 0.0, "false": 0.0}
    for token, logprob in json.loads(top_logprobs).items():
        word = token.strip().lower()
        if word in mass:
            mass[word] += math.exp(logprob)
    total = sum(mass.values())
    return mass["true"] / total if total > 0 else None
