"""facts -> questions: the question that each fact answers (paper, section 3.2).

in   facts      {"fact_id": "c07e", "topic": "Mara Veldt", "fact": "Mara Veldt plays the cello."}
     prompts    {"topic": "Mara Veldt", "pronoun": "her", "lower_case": None, ...}
out  questions  {"fact_id": "c07e", "question_id": "77d0",
                 "question": "What does Mara Veldt play?", "answer": "the cello", ...}

Equal facts of a topic are one request; `questions.context` shows facts before them, which must be
equal, too. Equal questions of a topic share their id and their wording. `answer` is null unless
`questions.answer` is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from facttune_ray.config import Config
from facttune_ray.config.stages import QuestionsConfig
from facttune_ray.errors import RowError
from facttune_ray.prompts import questions as prompt
from facttune_ray.prompts import template
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context
from facttune_ray.storage.schema import digest
from facttune_ray.text.decompose import normal_fact

VERSION = 2
Key = tuple[str, ...]  # topic, normal forms of the fact and of the facts shown before it


def recipe(cfg: Config) -> dict:
    q = cfg.questions
    name = prompt.template_name(q.domain, q.answer)
    settings: dict = {"questions.domain": q.domain, "questions.answer": q.answer}
    settings |= {"questions.context": q.context, f"prompts/{name}.txt": template.fingerprint(name)}
    return connect.recipe(cfg) | settings


async def run(context: Context, shard: int) -> list[dict]:
    cfg = context.cfg.questions
    topics = {p["topic"]: p for p in context.rows("prompts", shard)}
    facts = list(with_context(context.rows("facts", shard), cfg.context))
    distinct = first_of(facts)

    async def ask(fact: dict, before: list[str]) -> tuple[prompt.Asked | None, str | None]:
        asked = messages(cfg, topics.get(fact["topic"], {}), fact, before)

        def parse(text: str) -> prompt.Asked:
            return prompt.parse(text, cfg.answer, fact["fact"])

        try:
            return await context.client.ask(asked, parse, reject_cut=True), None
        except RowError as e:
            return None, str(e)

    asked = await asyncio.gather(*(ask(*shown) for shown in distinct.values()))
    questions = dict(zip(distinct, asked, strict=True))
    wording: dict[str, str] = {}  # question_id -> its first wording
    return [_row(fact, *questions[key], wording) for key, fact, _ in facts]


def messages(
    cfg: QuestionsConfig, topic: dict, fact: dict, before: list[str]
) -> list[dict[str, str]]:
    """The request for the question of a fact. `topic`: its row of prompts, or {}."""
    return prompt.render(
        fact["topic"],
        fact["fact"],
        domain=cfg.domain,
        answer=cfg.answer,
        before=before,
        pronoun=topic.get("pronoun"),
        lower_case=topic.get("lower_case"),
    )


def first_of(facts: Iterable[tuple[Key, dict, list[str]]]) -> dict[Key, tuple[dict, list[str]]]:
    """The first fact of each key, with the facts before it: its question is asked."""
    distinct: dict[Key, tuple[dict, list[str]]] = {}
    for key, fact, before in facts:
        distinct.setdefault(key, (fact, before))
    return distinct


def with_context(facts: list[dict], most: int) -> Iterator[tuple[Key, dict, list[str]]]:
    """Each fact with the last `most` facts before it in its response."""
    before: dict[str, list[str]] = {}
    for fact in facts:  # in the order of their response
        if not fact["fact"]:
            continue
        seen = before.setdefault(fact["response_id"], [])
        shown = seen[max(0, len(seen) - most) :]
        yield (fact["topic"], *(normal_fact(f) for f in (fact["fact"], *shown))), fact, shown
        seen.append(fact["fact"])


def _row(
    fact: dict, asked: prompt.Asked | None, error: str | None, wording: dict[str, str]
) -> dict:
    question_id = question = None
    if asked:
        normal = " ".join(asked.question.casefold().split()).rstrip(" ?!.")
        question_id = digest(fact["topic"], normal)
        question = wording.setdefault(question_id, asked.question)
    return {
        **{k: fact[k] for k in ("fact_id", "response_id", "topic")},
        "question_id": question_id,
        "question": question,
        "answer": asked.answer if asked else None,
        "error": error,
    }
