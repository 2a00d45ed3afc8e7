"""Logits and uniform numbers -> one token a row, by inverse CDF.

    pick(logits_RV, u_R, v_R, temperature=1.0, top_p=0.9)  ->  token ids [R]

A row's token depends only on its own logits and numbers. A token is first drawn from the whole
distribution and kept if the nucleus holds it. The other rows (about 1 - top_p of them) find their
nucleus and draw again, inside it. The distribution is that of nucleus sampling, and the vocabulary
is sorted only for those rows.
"""

from __future__ import annotations

import numpy as np
import torch

PICK_ELEMENTS = 1 << 24  # probabilities in memory at a time: 64 MiB of float32
CHUNK = 64  # tokens a chunk: the CDF is searched by chunk, then within it
NUCLEUS_TOKENS = 128  # most probable tokens that are searched before all are sorted


def uniforms(seed: int, n: int, max_tokens: int) -> np.ndarray:
    """[2, n, max_tokens] in [0, 1): `u` and `v` of `pick` at each step of n samples.

    Row k does not depend on n, so the first samples stay the same when n grows.
    """
    streams = (np.random.PCG64(s) for s in (seed, [seed, 1]))
    return np.stack([np.random.Generator(s).random((n, max_tokens)) for s in streams])


def pick(
    logits_RV: torch.Tensor,
    u_R: torch.Tensor,
    v_R: torch.Tensor,
    temperature: float,
    top_p: float,
    elements: int = PICK_ELEMENTS,
) -> torch.Tensor:
    """Token ids [R] of logits [R, V]; u and v [R] float64, uniform in [0, 1).

    u draws from all tokens, in the order of their ids: the first token whose cumulated probability
    exceeds u. With top_p < 1 the nucleus is the smallest set of most probable tokens whose mass
    reaches top_p, with all tokens that are as probable as its last one (Holtzman et al. 2020,
    arXiv 1904.09751). If the token is outside of it, v draws inside it, most probable first.
    Temperature 0: argmax.
    """
    if temperature == 0:
        return logits_RV.argmax(dim=-1)
    rows = max(1, elements // logits_RV.shape[1])
    parts = [
        _pick(logits, u, v, temperature, top_p)
        for logits, u, v in zip(*(x.split(rows) for x in (logits_RV, u_R, v_R)), strict=True)
    ]
    return torch.cat(parts)


def _pick(
    logits_RV: torch.Tensor, u_R: torch.Tensor, v_R: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    rows, vocab = logits_RV.shape
    chunks = -(-vocab // CHUNK)
    mass_RV = logits_RV.new_empty(rows, chunks * CHUNK, dtype=torch.float32)
    mass_RV[:, vocab:] = 0.0
    mass = mass_RV[:, :vocab]
    torch.sub(logits_RV, logits_RV.amax(dim=-1, keepdim=True), out=mass)
    if temperature != 1:
        mass.div_(temperature)
    mass.exp_()
    # The sum over chunks is float64: in float32 a long cumulated sum would lose rare tokens.
    mass_RCK = mass_RV.view(rows, chunks, CHUNK)
    cdf_RC = mass_RCK.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total_R = cdf_RC[:, -1]
    picked_R = _look_up(mass_RCK, cdf_RC, u_R * total_R)
    if top_p < 1:
        picked_mass_R1 = mass_RV.gather(1, picked_R[:, None])
        above_RV = (mass_RV > picked_mass_R1).to(mass_RV.dtype).mul_(mass_RV)
        above_R = above_RV.view(rows, chunks, CHUNK).sum(dim=-1).sum(dim=-1, dtype=torch.float64)
        outside = (above_R >= top_p * total_R).nonzero()[:, 0]
        if len(outside):
            nucleus_R = total_R[outside] * top_p
            picked_R[outside] = _in_nucleus(mass[outside], nucleus_R, v_R[outside])
    return picked_R


def _look_up(mass_RCK: torch.Tensor, cdf_RC: torch.Tensor, target_R: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulated mass exceeds the target: find its chunk, then the token."""
    chunk_R = _first_above(cdf_RC, target_R)
    row_R = torch.arange(len(chunk_R), device=chunk_R.device)
    before_R = torch.where(chunk_R > 0, cdf_RC[row_R, (chunk_R - 1).clamp(min=0)], 0.0)
    return chunk_R * CHUNK + _invert(mass_RCK[row_R, chunk_R], target_R - before_R)


def _invert(mass_RK: torch.Tensor, target_R: torch.Tensor) -> torch.Tensor:
    return _first_above(mass_RK.cumsum(dim=-1, dtype=torch.float64), target_R)


def _first_above(cdf_RK: torch.Tensor, target_R: torch.Tensor) -> torch.Tensor:
    index_R = torch.searchsorted(cdf_RK, target_R[:, None], right=True)[:, 0]
    # u close to 1 can round up to the whole mass: return the last entry that has any mass.
    last_R = torch.searchsorted(cdf_RK, cdf_RK[:, -1:].contiguous())[:, 0]
    return torch.minimum(index_R, last_R)


def _in_nucleus(mass_RV: torch.Tensor, nucleus_R: torch.Tensor, v_R: torch.Tensor) -> torch.Tensor:
    """Token ids of a draw by v in each row's nucleus, whose mass is `nucleus_R`."""
    # The most probable tokens nearly always hold the nucleus; sort all tokens only if not.
    size = min(NUCLEUS_TOKENS, mass_RV.shape[1])
    picked_R, open_R = _draw_sorted(*mass_RV.topk(size, dim=-1), nucleus_R, v_R)
    wide = open_R.nonzero()[:, 0]
    if size < mass_RV.shape[1] and len(wide):
        ordered = mass_RV[wide].sort(dim=-1, descending=True, stable=True)
        picked_R[wide] = _draw_sorted(*ordered, nucleus_R[wide], v_R[wide])[0]
    return picked_R


def _draw_sorted(
    sorted_RK: torch.Tensor, order_RK: torch.Tensor, nucleus_R: torch.Tensor, v_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, whether tokens beyond the given K may belong to the nucleus)."""
    before_RK = sorted_RK.cumsum(dim=-1, dtype=torch.float64) - sorted_RK
    inside_RK = before_RK < nucleus_R[:, None]
    last_R1 = (inside_RK.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    kept_RK = torch.where(sorted_RK >= sorted_RK.gather(1, last_R1), sorted_RK, 0.0)
    target_R = v_R * kept_RK.sum(dim=-1, dtype=torch.float64)
    picked_R = order_RK.gather(1, _invert(kept_RK, target_R)[:, None])[:, 0]
    return picked_R, kept_RK[:, -1] > 0
