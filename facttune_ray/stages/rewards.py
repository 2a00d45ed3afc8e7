"""verdicts, classes, p_true -> rewards: one row per response, one column per reward.

in   facts     {"fact_id": "c07e", "response_id": "51ab", "repeated": False, ...}
     verdicts  {"fact_id": "c07e", "supported": True, ...}                   (optional input)
     questions {"fact_id": "c07e", "question_id": "77d0", "answer": "the cello", ...}   (optional)
     classes   {"unit_id": "77d0", "classes": [0, 0, 1, ...], "shares": [0.85], ...}    (optional)
     entities  {"entity_id": "b1d0", "response_id": "51ab", ...}             (optional)
     p_true    {"fact_id": "c07e", "p_true": 0.83, ...}                      (optional)
out  rewards   {"response_id": "51ab", "facts": 3, "repeated": 0, "factscore": 0.667,
                "max_conf": 0.55, "words": 21, ...}

A mean leaves out facts without a verdict and questions without answers. An empty mean is null.
`rewards.distinct_facts` counts a repeated fact once. `answered` and `entities` are null outside of
train and for a response that failed, because nothing was asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from facttune_ray.config import Config
from facttune_ray.scoring.confidence import mean
from facttune_ray.scoring.factscore import factscore
from facttune_ray.scoring.units import UNIT_COLUMNS, Unit, by_id, of_original, of_question
from facttune_ray.stages.context import Context

VERSION = 3
READ = {  # input -> the column that refers to a unit in `classes`
    "facts": "",
    "verdicts": "",
    "questions": "question_id",
    "entities": "entity_id",
    "p_true": "",
}


def recipe(cfg: Config) -> dict:
    return {
        "rewards.distinct_facts": cfg.rewards.distinct_facts,
        "rewards.gamma": cfg.rewards.gamma,
    }


async def run(context: Context, shard: int) -> list[dict]:
    cfg = context.cfg.rewards
    errors: Counter[str] = Counter()  # by response
    read = {role: context.rows(role, shard) for role in READ}
    units = by_id(context.rows("classes", shard))
    facts: dict[str, list[dict]] = defaultdict(list)
    for f in read["facts"]:
        facts[f["response_id"]].append(f)
    entities: dict[str, list[Unit]] = defaultdict(list)
    for e in read["entities"]:
        entities[e["response_id"]].append(of_original(units.get(e["entity_id"]), e["text"]))
    verdicts = {v["fact_id"]: v["supported"] for v in read["verdicts"]}
    p_true = {p["fact_id"]: p["p_true"] for p in read["p_true"]}
    asked = {q["fact_id"]: q for q in read["questions"]}
    failed = {unit_id for unit_id, unit in units.items() if unit["error"]}
    for role, key in READ.items():
        errors.update(r["response_id"] for r in read[role] if r["error"] or r.get(key) in failed)
    out = []
    for r in context.rows("responses", shard):
        rid = r["response_id"]
        stated = [f for f in facts[rid] if f["fact"]]
        counted = [f for f in stated if not (cfg.distinct_facts and f["repeated"])]
        ids = [f["fact_id"] for f in counted]
        questions = [of_question(asked.get(i), units) for i in ids]
        judged = [verdicts.get(i) for i in ids]
        score, penalised = factscore(judged, cfg.gamma)
        sampled = context.work.inputs if r["split"] == "train" and not r["error"] else ()
        out.append(
            {
                **{k: r[k] for k in ("response_id", "prompt_id", "topic", "split", "model")},
                "facts": len(counted),
                "repeated": sum(bool(f["repeated"]) for f in stated),
                "judged": sum(v is not None for v in judged),
                "answered": _count(questions) if "questions" in sampled else None,
                "entities": _count(entities[rid]) if "entities" in sampled else None,
                "words": len(r["text"].split()) if r["text"] is not None else None,
                "abstained": bool(r["abstained"]) or any(f["abstained"] for f in facts[rid]),
                "factscore": score,
                "factscore_lp": penalised,
                **_means(questions, ""),
                **_means(entities[rid], "ne_"),
                "p_true": mean(p for i in ids if (p := p_true.get(i)) is not None),
                "errors": errors[rid] + (r["error"] is not None),
                "error": r["error"],
            }
        )
    return out


def _means(units: list[Unit], prefix: str) -> dict[str, float | None]:
    return {
        f"{prefix}{name}": mean(v for u in units if (v := u.get(name)) is not None)
        for name in UNIT_COLUMNS
    }


def _count(units: list[Unit]) -> int:
    return sum(u.get("max_conf") is not None for u in units)
