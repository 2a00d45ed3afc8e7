"""facts -> questions: the question each fact answers (paper, section 3.2).

in   facts      {"fact_id": "c07e", "topic": "Mara Veldt", "fact": "Mara Veldt plays the cello."}
out  questions  {"fact_id": "c07e", "question_id": "77d0",
                 "question": "What does Mara Veldt play?", ...}

Identical facts of one topic are asked once; equal questions of a topic share their id.
"""

from __future__ import annotations

import asyncio

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.prompts import questions as prompt
from facttune_ray.prompts import template
from facttune_ray.schema import digest
from facttune_ray.scoring.decompose import normal_fact
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context

VERSION = 1


def recipe(cfg: Config) -> dict:
    return {
        **connect.recipe(cfg),
        "prompts/questions.txt": template.fingerprint(prompt.TEMPLATE),
    }


async def run(context: Context, shard: int) -> list[dict]:
    facts = [f for f in context.rows("facts", shard) if f["fact"]]
    distinct = {(f["topic"], normal_fact(f["fact"])): f["fact"] for f in reversed(facts)}

    async def one(topic: str, fact: str) -> tuple[str | None, str | None]:
        try:
            return await context.client.ask(prompt.render(topic, fact), prompt.parse), None
        except RowError as e:
            return None, str(e)

    asked = await asyncio.gather(*(one(t, fact) for (t, _), fact in distinct.items()))
    found = dict(zip(distinct, asked, strict=True))
    out = []
    for f in facts:
        question, error = found[f["topic"], normal_fact(f["fact"])]
        out.append(
            {
                "fact_id": f["fact_id"],
                "response_id": f["response_id"],
                "topic": f["topic"],
                "question_id": digest(f["topic"], question) if question else None,
                "question": question,
                "error": error,
            }
        )
    return out
