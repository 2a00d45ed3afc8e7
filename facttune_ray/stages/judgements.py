"""responses of two models -> judgements: an LLM says which is more fluent and more helpful.

in   responses  {"response_id": "9a01", "prompt_id": "8f2c", "sample": 0, "text": "Mara Veldt ..."}
     base       rows of `responses` of the base model
out  judgements {"response_id": "9a01", "base_id": "52ee", "quality": "fluency",
                 "shown_first": "tuned", "shown_second": "tuned", "preferred": "tuned", ...}

The judge sees each pair in both orders, so a judge that goes by the order alone gives a tie (Zheng
et al. 2023, section 3.4). Equal texts tie without a request. An empty text is less helpful than any
other; its fluency is not judged. Judgements show whether a tuned model makes fewer errors by odd or
empty answers. They do not measure truth.
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
_FIRST = {"A": "tuned", "B": "base", "Tie": "tie"}  # the tuned model is shown as A
_SECOND = {"A": "base", "B": "tuned", "Tie": "tie"}  # the tuned model is shown as B


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
    judged = await asyncio.gather(*(_judge(context, *pair) for pair in pairs))
    return [
        {
            "response_id": tuned["response_id"],
            "base_id": untuned["response_id"],
            "topic": tuned["topic"],
            "split": tuned["split"],
            "quality": quality,
            **_preferred(quality, judgement),
        }
        for (tuned, untuned), judgement in zip(pairs, judged, strict=True)
        for quality in prompt.QUALITIES
    ]


Judgement = tuple[dict[str, str], dict[str, str]] | str | None  # both orders | error | not judged


async def _judge(context: Context, tuned: dict, base: dict) -> Judgement:
    if tuned["text"] is None or base["text"] is None:  # a response that failed
        return None
    tuned_text, base_text = tuned["text"].strip(), base["text"].strip()
    if tuned_text == base_text:
        tie = dict.fromkeys(prompt.QUALITIES, "Tie")
        return tie, tie
    if not tuned_text or not base_text:
        first, second = ("A", "B") if tuned_text else ("B", "A")
        return {"helpfulness": first}, {"helpfulness": second}
    both_orders = [
        prompt.render(tuned["prompt"], tuned["text"], base["text"]),
        prompt.render(tuned["prompt"], base["text"], tuned["text"]),
    ]
    try:
        judged = await asyncio.gather(
            *(context.client.ask(messages, prompt.parse) for messages in both_orders)
        )
    except RowError as e:
        return str(e)
    return judged[0], judged[1]


def _preferred(quality: str, judgement: Judgement) -> dict:
    """The columns of one quality. A model is preferred only if it is in both orders."""
    unknown = dict.fromkeys(("shown_first", "shown_second", "preferred", "error"))
    if judgement is None or isinstance(judgement, str):
        return unknown | {"error": judgement}
    if quality not in judgement[0]:
        return unknown
    first, second = _FIRST[judgement[0][quality]], _SECOND[judgement[1][quality]]
    preferred = first if first == second else "tie"
    return {"shown_first": first, "shown_second": second, "preferred": preferred, "error": None}
