"""verdicts, answers -> rewards: one row a response, every reward a column.

in   facts     {"fact_id": "c07e", "response_id": "51ab", "repeated": False, ...}
     verdicts  {"fact_id": "c07e", "supported": True, ...}                   (optional input)
     answers   {"question_id": "77d0", "classes": [0, 0, 1, ...], ...}       (optional input)
out  rewards   {"response_id": "51ab", "facts": 3, "repeated": 0, "factscore": 0.667,
                "max_conf": 0.55, ...}

A fact without a verdict, or a question without answers, is left out of its mean; a mean over
nothing is null. `rewards.distinct_facts` counts a repeated fact once.
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.scoring.confidence import CONFIDENCES, confidence, mean
from facttune_ray.scoring.factscore import factscore
from facttune_ray.stages.context import Context

VERSION = 1


def recipe(cfg: Config) -> dict:
    return {
        "rewards.distinct_facts": cfg.rewards.distinct_facts,
        "rewards.gamma": cfg.rewards.gamma,
    }


async def run(context: Context, shard: int) -> list[dict]:
    cfg = context.cfg.rewards
    facts: dict[str, list[dict]] = {}
    for f in context.rows("facts", shard):
        if f["fact"]:
            facts.setdefault(f["response_id"], []).append(f)
    supported = {v["fact_id"]: v["supported"] for v in context.rows("verdicts", shard)}
    answered = {a["question_id"]: confidence(a["classes"]) for a in context.rows("answers", shard)}
    asked = {q["fact_id"]: q["question_id"] for q in context.rows("questions", shard)}
    out = []
    for r in context.rows("responses", shard):
        units = facts.get(r["response_id"], [])
        counted = [f for f in units if not (cfg.distinct_facts and f["repeated"])]
        verdicts = [supported.get(f["fact_id"]) for f in counted]
        sure = [answered.get(asked.get(f["fact_id"])) for f in counted]
        score, penalised = factscore(verdicts, cfg.gamma)
        out.append(
            {
                **{k: r[k] for k in ("response_id", "prompt_id", "topic", "split", "model")},
                "facts": len(counted),
                "repeated": sum(bool(f["repeated"]) for f in units),
                "factscore": score,
                "factscore_lp": penalised,
                **{name: mean(c[name] for c in sure if c) for name in CONFIDENCES},
                "error": r["error"],
            }
        )
    return out
