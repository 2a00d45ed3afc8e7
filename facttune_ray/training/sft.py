"""Supervised tuning before DPO: the target responses of a group, and their weights.

    targets_of({"prompt_tokens": [1, 88], "response_tokens": [[40, 2], [52, 9, 2]],
                "rewards": [0.3, 1.0], ...}, "best")  ->  TokenGroup(responses=[[52, 9, 2]], ...)

The reference trainer tunes on all responses of a prompt or on the best response. DPO starts from
the tuned model and uses it as reference model (Tian et al. 2023, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from facttune_ray.training.batches import TokenGroup


def targets_of(row: Mapping[str, Any], targets: str) -> TokenGroup:
    """The group of a row of `reference` with its targets only. "best": the first response with the
    highest reward."""
    responses, rewards = row["response_tokens"], row["rewards"]
    if targets == "best":
        responses = [responses[rewards.index(max(rewards))]]
    return TokenGroup(row["prompt_id"], row["prompt_tokens"], responses, pairs=[], weights=[])


def response_weights(groups: Sequence[TokenGroup]) -> list[list[float]]:
    """Equal weights of the responses of each group, which add up to 1 over the step."""
    count = sum(len(g.responses) for g in groups)
    return [[1 / count] * len(g.responses) for g in groups]
