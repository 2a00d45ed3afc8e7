"""Log-probabilities of the reference model, once a response.

    token_logps_of(model, [Tokens(...), ...], pass_tokens=8192)
    ->  [[[-0.3, -2.1, -0.01], [-0.3, -4.0]], ...]       by group, by response, by token

Training starts from the reference model, so it needs no second model in memory, and the loss of
its first step must be ln 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from facttune_ray.training.passes import Size, lay_out, plan


@torch.no_grad()
def token_logps_of(
    model: Any, groups: Sequence[Any], pass_tokens: int, share_prefix: bool = True
) -> list[list[list[float]]]:
    """Log p of every response token of groups with `prompt` and `responses`. `model`: a
    `training.model.GroupModel`."""
    device = next(model.parameters()).device
    sizes = [Size(len(g.prompt), tuple(map(len, g.responses))) for g in groups]
    found: list[dict[int, list[float]]] = [{} for _ in groups]
    for parts in plan(sizes, pass_tokens, share_prefix):
        some = [(groups[p.group].prompt, [groups[p.group].responses[r] for r in p.responses])
                for p in parts]  # fmt: skip
        logps_M = model(lay_out(some, share_prefix).to(device)).cpu()
        members = [(p.group, r) for p in parts for r in p.responses]
        lengths = [sizes[g].responses[r] for g, r in members]
        for (g, r), logps in zip(members, logps_M.split(lengths), strict=True):
            found[g][r] = logps.tolist()
    return [[rows[r] for r in range(len(rows))] for rows in found]
