"""rewards -> mixes: weighted sums of z-scored rewards. Each mix is a reward, too.

in   rewards  {"response_id": "51ab", "factscore": 0.667, "max_conf": 0.55, ...}
out  mixes    {"response_id": "51ab", "name": "both", "value": 0.81, ...}

value = sum of weight * (reward - mean) / sd, with mean and standard deviation over the whole
table's train responses (`Work.moments`), so that rewards of different units weigh alike. A mix is
null when one of its rewards is. A reward with standard deviation 0 adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from facttune_ray.config import Config
from facttune_ray.stages.context import Context

VERSION = 2
Moments = Mapping[str, tuple[float, float]]  # reward -> (mean, standard deviation)


def recipe(cfg: Config) -> dict:
    return {}  # the runtime adds `Work.mix`


async def run(context: Context, shard: int) -> list[dict]:
    return [
        {
            **{k: r[k] for k in ("response_id", "prompt_id", "topic", "split")},
            "name": name,
            "value": mixed(r, weights, context.work.moments),
            "error": None,
        }
        for r in context.rows("rewards", shard)
        for name, weights in context.work.mix.items()
    ]


def mixed(row: Mapping, weights: Mapping[str, float], moments: Moments) -> float | None:
    """Sum of weight * z-score of the row's rewards; None when one of them is unknown."""
    total = 0.0
    for name, weight in weights.items():
        if row[name] is None:
            return None
        mean, sd = moments[name]
        total += weight * (row[name] - mean) / sd if sd > 0 else 0.0
    return round(total, 12)  # sums that differ only by rounding are a tie
