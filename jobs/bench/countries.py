"""How well a verifier judges plain statements about countries, true and false.

The first passage of each article states capital, region, languages, currency and neighbours in
plain sentences. True statements repeat a value, in other words too; false statements take the value
of another country, the topic's own name, or a name that stands elsewhere in the article.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from facttune_ray.verifiers import lexical

FORMS = {
    "capital": (
        "The capital of {x} is {v}.",
        "{x}'s capital is {v}.",
        "{v} is the capital of {x}.",
    ),
    "region": ("{x} lies in {v}.", "{x} is located in {v}.", "{x} is a country in {v}."),
    "currency": ("The currency of {x} is the {v}.", "{x}'s currency is the {v}."),
    "languages": ("The language of {x} is {v}.", "The languages of {x} include {v}."),
    "neighbours": ("{x} borders {v}.", "{x} shares a border with {v}.", "{v} borders {x}."),
}
_PATTERNS = {
    "capital": r"The capital of .+? is ([^.;,(]+)",
    "region": r"\. .+? lies in ([^.;,(]+)\.",
    "currency": r"The currency of .+? is the ([^.;,(]+)",
    "languages": r"The languages of .+? (?:are|include) ([^.]+)\.",
    "neighbours": r"\. [^.]+? borders ([^.]+)\.",
}
_NAME = re.compile(r"(?<=[a-z] )[A-Z][a-z]{3,}\b")


def values(passage: str) -> dict[str, list[str]]:
    """The values of each relation that a first passage states."""
    out = {}
    for relation, pattern in _PATTERNS.items():
        found = re.search(pattern, passage)
        text = found[1] if found else ""
        for _ in range(2):  # brackets may hold brackets
            text = re.sub(r"\([^()]*\)", "", text)
        text = re.sub(r"\s[\d.<-]+%", "", text)
        listed = re.split(r", | and ", text) if relation in {"languages", "neighbours"} else [text]
        items = [item.strip() for item in listed if item.strip()]
        out[relation] = [i for i in items if len(i.split()) <= 4 and not i.startswith("no ")]
    return out


def statements(articles: list[dict], seed: int = 0) -> Iterator[tuple[str, str, str, bool]]:
    """(topic, relation, statement, whether it is true)."""
    rng = random.Random(seed)
    known = {a["title"]: values(a["text"][0]) for a in articles}
    every = {r: sorted({v for k in known.values() for v in k[r]}) for r in FORMS}
    for article in articles:
        title, rest = article["title"], " ".join(article["text"][1:])
        for relation, own in known[title].items():
            if not own:
                continue
            names = sorted(set(_NAME.findall(rest)))
            wrong = {rng.choice(every[relation]), title, *rng.sample(names, min(2, len(names)))}
            right = " ".join([article["text"][0].split(" is officially ")[0], *own]).lower()
            for value in rng.sample(own, min(2, len(own))):
                form = rng.choice(FORMS[relation])
                yield title, relation, form.format(x=title, v=value), True
            for value in sorted(wrong):
                # a value that the passage gives in any relation may be right in other words
                if value == title and value.lower() in " ".join(own).lower():
                    continue
                if value == title or value.lower() not in right:
                    form = rng.choice(FORMS[relation])
                    yield title, relation, form.format(x=title, v=value), False


def agreement(
    articles: list[dict], judge: Callable[[str, str, list[str]], bool | None]
) -> dict[str, tuple[int, int]]:
    """Relation -> (statements judged right, statements). An unknown verdict is wrong on a true
    statement only. `judge`: (statement, topic, passages) -> verdict."""
    out = {relation: (0, 0) for relation in FORMS}
    passages = {a["title"]: a["text"] for a in articles}
    for title, relation, statement, true in statements(articles):
        verdict = judge(statement, title, passages[title])
        right, count = out[relation]
        out[relation] = (right + (verdict is True if true else not verdict), count + 1)
    return out


def lexical_figures(file: Path) -> dict[str, dict[str, float]]:
    """Relation -> share of the statements that `lexical` judges right, and their number."""
    articles = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ready = {a["title"]: lexical.prepare(a["title"], a["text"]) for a in articles}

    def judge(statement: str, topic: str, passages: list[str]) -> bool | None:
        score = lexical.support_prepared(statement, ready[topic]).score
        return None if score is None else score >= lexical.THRESHOLD

    found = agreement(articles, judge)
    right, count = (sum(column) for column in zip(*found.values(), strict=True))
    found["all"] = (right, count)
    return {r: {"right": round(a / n, 4), "statements": n} for r, (a, n) in found.items()}
