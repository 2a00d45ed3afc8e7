"""Log-probabilities of the reference model, once a response.

Training starts from the reference model, so its first weights give them: no second model is
loaded, and the loss of the first step must be ln 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from facttune_ray.training.batches import TokenGroup, collate
from facttune_ray.training.losses import response_logps


def forward_logps(model: Any, groups: Sequence[TokenGroup], pad_id: int, device: Any) -> tuple:
    """(`logps_B`, `pairs_P2`) of several groups: each unique response runs once."""
    batch = collate(groups, pad_id)
    tokens_BT = batch.tokens_BT.to(device)
    logits_BTV = model(
        input_ids=tokens_BT, attention_mask=batch.attention_BT.to(device), use_cache=False
    ).logits
    logps_B = response_logps(logits_BTV, tokens_BT, batch.mask_BT.to(device))
    return logps_B, batch.pairs_P2.to(device)


@torch.no_grad()
def reference_logps(
    model: Any, groups: Sequence[TokenGroup], pad_id: int, device: Any, per_pass: int
) -> list[torch.Tensor]:
    """One tensor [responses] a group, on the CPU, `per_pass` groups at a time."""
    out: list[torch.Tensor] = []
    for start in range(0, len(groups), per_pass):
        some = groups[start : start + per_pass]
        logps_B, _ = forward_logps(model, some, pad_id, device)
        out += list(logps_B.float().cpu().split([len(g.tokens) for g in some]))
    return out
