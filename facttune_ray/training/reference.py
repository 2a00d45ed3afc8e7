"""Log-probabilities of the reference model, computed once for each response.

    token_logps_of(model, [Tokens(...), ...], pass_tokens=8192)
    ->  [[[-0.3, -2.1, -0.01], [-0.3, -4.0]], ...]       by group, by response, by token

Training starts from the reference model. With the stored log-probabilities it needs no second model
in memory, and DPO's first loss must be ln 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from facttune_ray.training.passes import Part, Size, pass_of, plan


@torch.no_grad()
def token_logps_of(
    model: Any, groups: Sequence[Any], pass_tokens: int, share_prefix: bool = True
) -> list[list[list[float]]]:
    """Log p, in nats, of every response token of groups with `prompt` and `responses`. `model`: a
    `training.model.GroupModel`."""
    device = next(model.parameters()).device
    sizes = [Size(len(g.prompt), tuple(map(len, g.responses))) for g in groups]
    out: list[dict[int, list[float]]] = [{} for _ in groups]
    for parts in plan(sizes, pass_tokens, share_prefix, model.one_length):
        logps_M = model(pass_of(groups, parts, share_prefix).to(device)).cpu()
        store(out, parts, sizes, logps_M)
    return [[responses[r] for r in range(len(responses))] for responses in out]


def store(
    out: list[dict[int, list[float]]],
    parts: Sequence[Part],
    sizes: Sequence[Size],
    logps_M: torch.Tensor,
) -> None:
    """Put the log-probabilities of a pass into `out`: by group, by response, by token."""
    members = [(p.group, r) for p in parts for r in p.responses]
    lengths = [sizes[g].responses[r] for g, r in members]
    for (g, r), logps in zip(members, logps_M.split(lengths), strict=True):
        out[g][r] = logps.tolist()
