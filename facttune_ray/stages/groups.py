"""rewards -> groups: one row per prompt, its unique responses and rewards (paper, section 3.3).

in   rewards    {"response_id": "51ab", "prompt_id": "8f2c", "factscore": 0.667, ...}
     mixes      {"response_id": "51ab", "name": "both", "value": 0.81}    (instead of rewards)
     responses  {"response_id": "51ab", "prompt": "Write a ...", "text": "Mara Veldt was ..."}
out  groups     {"prompt_id": "8f2c", "responses": ["Mara ...", "She ..."],
                 "rewards": [0.667, 1.0], "pairs": 1, ...}

Every pair of responses of one prompt whose rewards differ by more than `groups.threshold` is a
preference pair. Training forms the pairs from the group. Prompts without a pair have no row.
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.stages.context import Context
from facttune_ray.storage.schema import REWARD_COLUMNS

VERSION = 1


def recipe(cfg: Config) -> dict:
    return {f"groups.{k}": getattr(cfg.groups, k) for k in ("threshold", "max_pairs")}


async def run(context: Context, shard: int) -> list[dict]:
    cfg, rewards = context.cfg.groups, _rewards(context, shard)
    by_prompt: dict[str, list[dict]] = {}
    for r in context.rows("responses", shard):
        by_prompt.setdefault(r["prompt_id"], []).append(r)
    out = []
    for responses in by_prompt.values():
        unique: dict[str, dict] = {}  # training needs each text once
        for r in responses:
            if rewards[r["response_id"]] is not None and r["text"]:
                unique.setdefault(r["text"], r)
        kept = list(unique.values())
        values = [rewards[r["response_id"]] for r in kept]
        pairs = count_pairs(values, cfg.threshold, cfg.max_pairs)
        if pairs:
            out.append(
                {
                    **{k: kept[0][k] for k in ("prompt_id", "topic", "split", "prompt")},
                    "response_ids": [r["response_id"] for r in kept],
                    "responses": [r["text"] for r in kept],
                    "rewards": values,
                    "pairs": pairs,
                    "given_pairs": None,
                }
            )
    return out


def _rewards(context: Context, shard: int) -> dict[str, float | None]:
    """The chosen reward of each response: a column of `rewards`, or a mix by its name."""
    name = context.work.reward
    if name in REWARD_COLUMNS:
        return {r["response_id"]: r[name] for r in context.rows("rewards", shard)}
    mixes = context.rows("mixes", shard)
    return {r["response_id"]: r["value"] for r in mixes if r["name"] == name}
