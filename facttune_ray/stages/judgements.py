"""responses of two models -> judgements: which is more fluent, which more helpful, by an LLM.

in   responses  {"response_id": "9a01", "prompt_id": "8f2c", "sample": 0, "text": "Mara Veldt ..."}
     base       the same of the base model
out  judgements {"response_id": "9a01", "base_id": "52ee", "quality": "fluency",
                 "shown_first": "tuned", "shown_second": "tuned", "preferred": "tuned", ...}

Each pair is asked about in both orders; a judge that goes by the order alone gives a tie (Zheng et
al. 2023, section 3.4). Equal texts tie unasked, and an empty answer is less helpful than one that
says something; of its fluency there is nothing to judge. It tells whether fewer errors were bought
by odd or empty answers; of truth it says nothing.
"""

from __future__ import annotations

import asyncio

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.prompts import judgements as prompt
from facttune_ray.prompts import template
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context

VERSION = 2
_FIRST = {"A": "tuned", "B": "base", "Tie": "tie"}  # who is meant where the tuned one is A
_SECOND = {"A": "base", "B": "tuned", "Tie": "tie"}


def recipe(cfg: Config) -> dict:
    return connect.recipe(cfg) | {
        "evaluation.judge_samples": cfg.evaluation.judge_samples,
        f"prompts/{prompt.TEMPLATE}.txt": template.fingerprint(prompt.TEMPLATE),
    }


async def run(context: Context, shard: int) -> list[dict]:
    most = context.cfg.evaluation.judge_samples
    base = {(r["prompt_id"], r["sample"]): r for r in context.rows("base", shard)}
    pairs = [
        (r, base[r["prompt_id"], r["sample"]])
        for r in context.rows("responses", shard)
        if r["sample"] < most and (r["prompt_id"], r["sample"]) in base
    ]
    judged = await asyncio.gather(*(_judge(context, tuned, other) for tuned, other in pairs))
    return [
        {
            "response_id": tuned["response_id"],
            "base_id": other["response_id"],
            "topic": tuned["topic"],
            "split": tuned["split"],
            "quality": quality,
            **_preferred(quality, found),
        }
        for (tuned, other), found in zip(pairs, judged, strict=True)
        for quality in prompt.QUALITIES
    ]


Found = tuple[dict[str, str], dict[str, str]] | str | None  # both orders; an error; not judged


async def _judge(context: Context, tuned: dict, base: dict) -> Found:
    if tuned["text"] is None or base["text"] is None:  # a response that failed
        return None
    said, other = tuned["text"].strip(), base["text"].strip()
    if said == other:
        tie = dict.fromkeys(prompt.QUALITIES, "Tie")
        return tie, tie
    if not said or not other:
        first, second = ("A", "B") if said else ("B", "A")
        return {"helpfulness": first}, {"helpfulness": second}
    asked = [
        prompt.render(tuned["prompt"], tuned["text"], base["text"]),
        prompt.render(tuned["prompt"], base["text"], tuned["text"]),
    ]
    try:
        in_both = await asyncio.gather(
            *(context.client.ask(messages, prompt.parse) for messages in asked)
        )
    except RowError as e:
        return str(e)
    return in_both[0], in_both[1]


def _preferred(quality: str, found: Found) -> dict:
    """What both orders say of one quality: a win needs both."""
    nothing = {"shown_first": None, "shown_second": None, "preferred": None, "error": None}
    if found is None or isinstance(found, str):
        return nothing | {"error": found}
    if quality not in found[0]:
        return nothing
    first, second = _FIRST[found[0][quality]], _SECOND[found[1][quality]]
    preferred = first if first == second else "tie"
    return {"shown_first": first, "shown_second": second, "preferred": preferred, "error": None}
