"""Preference losses on response groups. Pure torch: no I/O, no Ray.

A group is one prompt's B responses. Other DPO trainers run each preferred pair as two sequences,
so 10 responses with 45 pairs cost 90 sequences. Here the B sequences run once and every pair reads
its two log-probabilities. Value and gradient equal those of the pairwise computation, because a
pair's loss depends only on these two.

    logps_N = token_logps(states_NC, lm_head, token_N, chunk=1024)
    policy = sum_tokens(logps_N, owner_N, ones_N, ones_N, count=3)   # [-12.1, -14.0, -13.2]
    pairs = Pairs(tensor([0, 2]), tensor([1, 1]), tensor([0.5, 0.5]))    # 0 beats 1, 2 beats 1
    preference_loss("dpo", policy, reference, pairs, beta=0.1)       # scalar

Mask: a sum holds the tokens of the response with its end mark (unless truncated), never those of
the prompt; `fact_masked` also leaves out sentences (`training/masks.py`). Denominator: the
log-probability of a response is a sum, without a denominator. In `dpo_norm`, the SFT term and `sft`
it is divided by the number of the response's tokens that count.

A loss gives one value a pair. The step's loss is their sum weighted by `Pairs.weight_P`. The
weights add up to 1 over all passes and workers of an optimizer step, so each part computes its
share of the loss without knowing the number of pairs in the other parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SOFTMAX = 1 << 19  # logits that a CPU exponentiates at a time, so that they stay in its cache


class Logps(NamedTuple):
    """Sums of log p(token), in nats, of B responses. The tokens that count when a response wins a
    pair and when it loses a pair differ for `fact_masked` only."""

    win_B: torch.Tensor  # over the tokens that count when the response wins
    lose_B: torch.Tensor  # over the tokens that count when it loses
    win_tokens_B: torch.Tensor  # the number of tokens in `win_B`
    lose_tokens_B: torch.Tensor


class Pairs(NamedTuple):
    """P preferences between B responses."""

    win_P: torch.Tensor  # index of the winner
    lose_P: torch.Tensor  # index of the loser
    weight_P: torch.Tensor  # share of the step's loss


def token_logps(
    states_NC: torch.Tensor, head: Any, token_N: torch.Tensor, chunk: int = 0
) -> torch.Tensor:
    """Log p(token) [N] of the tokens that N states predict, in nats, float32 or wider.

    `states_NC`: last hidden state of the token before; `head`: the output layer, states -> logits
    [., V]; `token_N`: int64. `chunk`: the number of states whose logits are in memory at a time;
    they are computed again for the gradient, so memory does not grow with N * V. 0: all at once.
    The softmax of half-precision logits is computed in float32, that of float64 in float64.
    """
    if not chunk or len(token_N) <= chunk:
        return _token_logps(states_NC, head, token_N)
    parts = [
        checkpoint(_token_logps, states, head, token, use_reentrant=False)
        for states, token in zip(states_NC.split(chunk), token_N.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _token_logps(states_NC: torch.Tensor, head: Any, token_N: torch.Tensor) -> torch.Tensor:
    return Pick.apply(head(states_NC), token_N)


class Pick(torch.autograd.Function):
    """log softmax(logits)[token] of N rows, [N], float32 or wider.

    The gradient overwrites the logits, in their precision, so one copy of N * V numbers is in
    memory instead of three. No other code may use the logits; a second backward raises.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
        run = _fused(_sums) if logits_NV.is_cuda else _sums
        sums_N = torch.cat([run(x) for x in logits_NV.split(_rows(logits_NV))])
        logps_N = logits_NV.gather(1, token_N[:, None])[:, 0] - sums_N
        ctx.save_for_backward(logits_NV, token_N, sums_N, logps_N)
        return logps_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor) -> Any:  # type: ignore[override]
        logits_NV, token_N, sums_N, logps_N = ctx.saved_tensors
        out_NV = logits_NV.detach()
        run = _fused(_slopes) if out_NV.is_cuda else _slopes
        parts = (x.split(_rows(out_NV)) for x in (out_NV, sums_N[:, None], grad_N[:, None]))
        for logits, sums, grad in zip(*parts, strict=True):
            run(logits, sums, grad)
        own_N = (-grad_N * logps_N.expm1()).to(out_NV.dtype)
        return out_NV.scatter_(1, token_N[:, None], own_N[:, None]), None


def _rows(logits_NV: torch.Tensor) -> int:
    count, vocab = logits_NV.shape
    return max(1, count if logits_NV.is_cuda else SOFTMAX // vocab)


def _wide(logits_NV: torch.Tensor) -> torch.Tensor:
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))


def _sums(logits_NV: torch.Tensor) -> torch.Tensor:
    return _wide(logits_NV).logsumexp(-1)


def _slopes(logits_NV: torch.Tensor, sums_N1: torch.Tensor, grad_N1: torch.Tensor) -> None:
    """Overwrite the logits with their derivatives, except that of the token itself."""
    wide_NV = _wide(logits_NV)  # the same tensor if the logits are float32 or wider
    wide_NV.sub_(sums_N1).exp_().mul_(-grad_N1)
    if wide_NV is not logits_NV:
        logits_NV.copy_(wide_NV)


@functools.cache
def _fused(run: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into one kernel: the operations are bound by the GPU's memory bandwidth."""
    return torch.compile(run, dynamic=True)


def sum_tokens(
    logps_N: torch.Tensor,
    owner_N: torch.Tensor,
    win_N: torch.Tensor,
    lose_N: torch.Tensor,
    count: int,
) -> Logps:
    """[B = count] sums over response tokens, end mark included. `owner_N`: int64, the token's
    response; `win_N`, `lose_N`: 1 if the token counts, else 0. Sums, not means: DPO's reward is
    the log-ratio of whole responses. A response without a token that counts has the sum 0."""
    zeros_B = logps_N.new_zeros(count)
    win_N, lose_N = win_N.to(logps_N.dtype), lose_N.to(logps_N.dtype)
    return Logps(
        *(zeros_B.index_add(0, owner_N, x) for x in (logps_N * win_N, logps_N * lose_N)),
        *(zeros_B.index_add(0, owner_N, x) for x in (win_N, lose_N)),
    )


def margins(policy: Logps, reference: Logps, pairs: Pairs) -> torch.Tensor:
    """[P] the winner's minus the loser's log-ratio to the reference, in nats, without beta. Each
    log-ratio is over the tokens that count in that role."""
    win_B, lose_B = policy.win_B - reference.win_B, policy.lose_B - reference.lose_B
    return win_B[pairs.win_P] - lose_B[pairs.lose_P]


def dpo(
    policy: Logps, reference: Logps, pairs: Pairs, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """-log sigmoid(beta * margin): Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. A longer
    response has more weight, because sums are compared. ln 2 if the policy is the reference."""
    return -F.logsigmoid(beta * margins(policy, reference, pairs))


def cdpo(
    policy: Logps, reference: Logps, pairs: Pairs, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """Conservative DPO: a pair's order is wrong with probability e = `label_smoothing`.

    -(1 - e) log sigmoid(z) - e log sigmoid(-z), z = beta * margin (Mitchell 2023, "A note on DPO
    with noisy preferences", eq. 3).
    """
    z_P = beta * margins(policy, reference, pairs)
    return -(1 - label_smoothing) * F.logsigmoid(z_P) - label_smoothing * F.logsigmoid(-z_P)


def ipo(
    policy: Logps, reference: Logps, pairs: Pairs, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """(margin - 1 / (2 beta))^2: Azar et al. 2023 (arXiv 2310.12036), eq. 17, whose tau is beta.
    On sums, as in the paper; some trainers take means over tokens, which is another loss."""
    return (margins(policy, reference, pairs) - 1 / (2 * beta)).square()


def hinge(
    policy: Logps, reference: Logps, pairs: Pairs, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """max(0, 1 - beta * margin): Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), on
    log-ratios as in Liu et al. 2023 (RSO, arXiv 2309.06657)."""
    return torch.relu(1 - beta * margins(policy, reference, pairs))


def reference_free(
    policy: Logps, reference: Logps, pairs: Pairs, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """`dpo` with a reference for which all responses are equally likely: the margin is the policy's
    sum of the winner minus that of the loser."""
    zero_B = torch.zeros_like(reference.win_B)
    even = reference._replace(win_B=zero_B, lose_B=zero_B)
    return dpo(policy, even, pairs, beta=beta, label_smoothing=label_smoothing)


def dpo_norm(
    policy: Logps, reference: Logps, pairs: Pairs, *, beta: float, label_smoothing: float
) -> torch.Tensor:
    """`dpo` on log-probabilities a token: each sum of policy and reference is divided by the number
    of tokens of the response that count, at least 1 (Lambert et al. 2024, Tulu 3, arXiv 2411.15124,
    "length-normalized DPO")."""
    return dpo(_per_token(policy), _per_token(reference), pairs, beta=beta, label_smoothing=0.0)


def _per_token(logps: Logps) -> Logps:
    return logps._replace(
        win_B=logps.win_B / logps.win_tokens_B.clamp(min=1),
        lose_B=logps.lose_B / logps.lose_tokens_B.clamp(min=1),
    )


# fact_masked is dpo with masks that leave out sentences: see training/masks.py.
LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "dpo": dpo,
    "cdpo": cdpo,
    "ipo": ipo,
    "hinge": hinge,
    "reference_free": reference_free,
    "dpo_norm": dpo_norm,
    "fact_masked": dpo,
}


def preference_loss(
    name: str,
    policy: Logps,
    reference: Logps,
    pairs: Pairs,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> torch.Tensor:
    """Sum over pairs of weight * (loss + sft_weight * NLL a token of the winner): scalar.

    `name`: a key of LOSSES. The weights of the pairs already hold the denominator of the sum. The
    second term is divided by the winner's tokens that count, as Pang et al. 2024 (arXiv
    2404.19733) divide it by the length of the response.
    """
    loss_P = LOSSES[name](policy, reference, pairs, beta=beta, label_smoothing=label_smoothing)
    if sft_weight:
        loss_P = loss_P - sft_weight * _per_token(policy).win_B[pairs.win_P]
    return (pairs.weight_P * loss_P).sum()


def sft(policy: Logps, weight_B: torch.Tensor) -> torch.Tensor:
    """Loss of supervised tuning: sum over responses of weight * NLL a token (of the tokens that
    count in a winner). `weight_B` adds up to 1 over the step, so with equal weights this is the
    mean over responses of their means over tokens, not the mean over all tokens."""
    return -(weight_B * _per_token(policy).win_B).sum()
