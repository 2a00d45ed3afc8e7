"""Preference losses on response groups. Pure torch: no I/O, no Ray, no model.

A group is one prompt's B responses. Every known DPO trainer runs each preferred pair as two
sequences, so 10 responses with 45 pairs cost 90 passes; here the B sequences run once and
every pair reads its two log-probabilities from `logps_B`. The value and the gradient are those
of the pairwise computation, because a pair's loss depends on nothing else.

    logps_B = response_logps(logits_BTV, tokens_BT, mask_BT)      # [-12.1, -14.0, -13.2]
    pairs_P2 = tensor([[0, 1], [2, 1]])                           # response 0 beats 1, 2 beats 1
    LOSSES["dpo"](logps_B, ref_logps_B, pairs_P2, beta=0.1)       # scalar

Every loss has the signature of `dpo` and returns a scalar; a batch may hold several groups,
pairs then index into all of the batch's rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


def response_logps(
    logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """Sum of log p(token) over the response's tokens, [B], float32 or wider.

    `logits_BTV[:, t]` predicts `tokens_BT[:, t + 1]`. `mask_BT` is 1 on response tokens, end
    mark included, and 0 on prompt and padding. A sum, not a mean: DPO's reward is the
    log-ratio of whole responses.
    """
    logits = logits_BTV[:, :-1]
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    # cross_entropy never stores a [B, T, V] tensor of log-probabilities that outlives it.
    nll_BT = F.cross_entropy(logits.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
    return -(nll_BT * mask_BT[:, 1:]).sum(dim=1)


def margins(
    logps_B: torch.Tensor, ref_logps_B: torch.Tensor, pairs_P2: torch.Tensor
) -> torch.Tensor:
    """[P] winner's minus loser's log-ratio to the reference, without beta."""
    ratio_B = logps_B - ref_logps_B
    return ratio_B[pairs_P2[:, 0]] - ratio_B[pairs_P2[:, 1]]


def dpo(
    logps_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    pairs_P2: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean over pairs of -log sigmoid(beta * margin).

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. `label_smoothing` is not used here: see `cdpo`.
    """
    return -F.logsigmoid(beta * margins(logps_B, ref_logps_B, pairs_P2)).mean()


def cdpo(
    logps_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    pairs_P2: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Conservative DPO: a pair's order is wrong with probability `label_smoothing`.

    Mean over pairs of -(1 - e) log sigmoid(z) - e log sigmoid(-z), z = beta * margin
    (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).
    """
    z_P = beta * margins(logps_B, ref_logps_B, pairs_P2)
    kept, flipped = F.logsigmoid(z_P), F.logsigmoid(-z_P)
    return -((1 - label_smoothing) * kept + label_smoothing * flipped).mean()


def ipo(
    logps_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    pairs_P2: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean over pairs of (margin - 1 / (2 beta))^2: Azar et al. 2023 (arXiv 2310.12036), eq. 17."""
    return (margins(logps_B, ref_logps_B, pairs_P2) - 1 / (2 * beta)).square().mean()


def sft(
    logps_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    pairs_P2: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean over responses of -log p(response): supervised tuning. Pairs and reference unused."""
    return -logps_B.mean()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"dpo": dpo, "cdpo": cdpo, "ipo": ipo, "sft": sft}
