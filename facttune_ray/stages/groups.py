"""rewards -> groups: one row a prompt, its unique responses and their rewards (paper, section 3.3).

in   rewards    {"response_id": "51ab", "prompt_id": "8f2c", "factscore": 0.667, ...}
     responses  {"response_id": "51ab", "prompt": "Write a ...", "text": "Mara Veldt was ..."}
out  groups     {"prompt_id": "8f2c", "responses": ["Mara ...", "She ..."],
                 "rewards": [0.667, 1.0], "pairs": 1, ...}

Every pair of responses of one prompt whose rewards differ by more than `groups.threshold` is a
preference; training forms the pairs from the group. Prompts without a pair are left out.
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.stages.context import Context

VERSION = 1


def recipe(cfg: Config) -> dict:
    return {"groups.threshold": cfg.groups.threshold}


async def run(context: Context, shard: int) -> list[dict]:
    rewards = {r["response_id"]: r[context.work.reward] for r in context.rows("rewards", shard)}
    prompts: dict[str, list[dict]] = {}
    for r in context.rows("responses", shard):
        prompts.setdefault(r["prompt_id"], []).append(r)
    out = []
    for responses in prompts.values():
        unique: dict[str, dict] = {}  # equal texts are one sequence to train on
        for r in responses:
            if rewards[r["response_id"]] is not None and r["text"]:
                unique.setdefault(r["text"], r)
        kept = list(unique.values())
        values = [rewards[r["response_id"]] for r in kept]
        pairs = count_pairs(values, context.cfg.groups.threshold)
        if pairs:
            out.append(
                {
                    **{k: kept[0][k] for k in ("prompt_id", "topic", "split", "prompt")},
                    "response_ids": [r["response_id"] for r in kept],
                    "responses": [r["text"] for r in kept],
                    "rewards": values,
                    "pairs": pairs,
                }
            )
    return out


def count_pairs(rewards: list[float], threshold: float) -> int:
    """Pairs i < j whose rewards differ by more than `threshold`; ties never count."""
    return sum(abs(a - b) > threshold for i, a in enumerate(rewards) for b in rewards[i + 1 :])
