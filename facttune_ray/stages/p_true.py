"""facts -> p_true: the probability of a fact by the model that wrote it (Kadavath et al. 2022).

in   facts   {"fact_id": "c07e", "topic": "Mara Veldt", "fact": "Mara Veldt plays the cello."}
out  p_true  {"fact_id": "c07e", "p_true": 0.83, ...}

p_true is the probability of "True" against "False" after the statement, without any passage. Equal
facts of a topic are judged once.
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.stages.context import Context
from facttune_ray.text.decompose import normal_fact

VERSION = 1


def recipe(cfg: Config) -> dict:
    settings: dict = {"model.dtype": cfg.model.dtype}
    if cfg.sampling.quantize != "none":
        settings["sampling.quantize"] = cfg.sampling.quantize
    return settings


async def run(context: Context, shard: int) -> list[dict]:
    facts = [f for f in context.rows("facts", shard) if f["fact"]]
    by_topic: dict[str, dict[str, str]] = {}  # topic -> normal form -> first wording
    for f in facts:
        by_topic.setdefault(f["topic"], {}).setdefault(normal_fact(f["fact"]), f["fact"])
    p_true: dict[tuple[str, str], float | None] = {}
    for topic, distinct in by_topic.items():
        judged = context.self_judge.judge(topic, list(distinct.values()), [[]] * len(distinct))
        p_true |= {(topic, normal): p for normal, p in zip(distinct, judged, strict=True)}
    return [
        {
            **{k: f[k] for k in ("fact_id", "response_id", "topic")},
            "p_true": p_true[f["topic"], normal_fact(f["fact"])],
            "error": None,
        }
        for f in facts
    ]
