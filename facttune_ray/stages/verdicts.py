"""facts -> verdicts: is each fact supported by the topic's article? (paper, section 3.1)

in   facts     {"fact_id": "c07e", "topic": "Mara Veldt", "fact": "Mara Veldt plays the cello."}
out  verdicts  {"fact_id": "c07e", "supported": True, "score": 1.0,
                "evidence": "Mara Veldt plays the cello and ...", "estimator": "chat", ...}

A topic without an article gets null verdicts with the reason "no article". Identical facts of
one topic are judged once.
"""

from __future__ import annotations

import asyncio

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.knowledge.retrieval import BM25
from facttune_ray.prompts import template
from facttune_ray.prompts import verdicts as prompt
from facttune_ray.scoring import verify_lexical
from facttune_ray.scoring.decompose import normal_fact
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context

VERSION = 1
_UNKNOWN = {"supported": None, "score": None, "evidence": None, "reason": None, "error": None}


def recipe(cfg: Config) -> dict:
    if cfg.verdicts.estimator == "lexical":
        threshold = cfg.verdicts.threshold
        return {
            "verdicts.estimator": "lexical",
            "verdicts.threshold": verify_lexical.THRESHOLD if threshold is None else threshold,
        }
    return {
        "verdicts.estimator": "chat",
        "verdicts.passages": cfg.verdicts.passages,
        **connect.recipe(cfg),
        "prompts/verdicts.txt": template.fingerprint(prompt.TEMPLATE),
    }


async def run(context: Context, shard: int) -> list[dict]:
    facts = context.rows("facts", shard)
    by_topic: dict[str, dict[str, str]] = {}  # topic -> normal form -> first wording
    for f in facts:
        if f["fact"]:
            by_topic.setdefault(f["topic"], {}).setdefault(normal_fact(f["fact"]), f["fact"])
    judge = ESTIMATORS[context.cfg.verdicts.estimator]
    judged = await asyncio.gather(
        *(judge(context, topic, list(found.values())) for topic, found in by_topic.items())
    )
    verdict = {
        (topic, normal): v
        for (topic, found), values in zip(by_topic.items(), judged, strict=True)
        for normal, v in zip(found, values, strict=True)
    }
    return [_row(f, context.cfg, verdict) for f in facts]


def _row(fact: dict, cfg: Config, verdict: dict[tuple[str, str], dict]) -> dict:
    if fact["fact"]:
        value = verdict[fact["topic"], normal_fact(fact["fact"])]
    else:
        value = _UNKNOWN | {"reason": "no fact"}
    return {
        "fact_id": fact["fact_id"],
        "response_id": fact["response_id"],
        "topic": fact["topic"],
        "estimator": cfg.verdicts.estimator,
        **value,
    }


async def _lexical(context: Context, topic: str, facts: list[str]) -> list[dict]:
    passages = context.articles.passages(topic)
    if not passages:
        return [_UNKNOWN | {"reason": "no article"}] * len(facts)
    threshold = context.cfg.verdicts.threshold
    if threshold is None:
        threshold = verify_lexical.THRESHOLD
    prepared = verify_lexical.prepare(topic, passages, context.articles.rarity)
    out = []
    for fact in facts:
        score, evidence = verify_lexical.support_prepared(fact, prepared)
        out.append(
            _UNKNOWN
            | {
                "score": score,
                "supported": None if score is None else score >= threshold,
                "evidence": None if evidence is None else passages[evidence],
                "reason": "nothing to check" if score is None else None,
            }
        )
    return out


async def _chat(context: Context, topic: str, facts: list[str]) -> list[dict]:
    passages = context.articles.passages(topic)
    if not passages:
        return [_UNKNOWN | {"reason": "no article"}] * len(facts)
    index = BM25(passages)

    async def one(fact: str) -> dict:
        best = [passages[i] for i in index.top(f"{topic} {fact}", context.cfg.verdicts.passages)]
        try:
            messages = prompt.render(topic, fact, best)
            supported = await context.client.ask(messages, prompt.parse)
        except RowError as e:
            return _UNKNOWN | {"error": str(e)}
        return _UNKNOWN | {
            "supported": supported,
            "score": float(supported),
            "evidence": best[0],
        }

    return list(await asyncio.gather(*map(one, facts)))


ESTIMATORS = {"lexical": _lexical, "chat": _chat}
