"""Attention of the tokens of a pass: a response attends to its prompt and to itself.

An attention function of transformers, query [1, heads, N, D] -> [1, N, heads, D], for the N tokens
of a pass (`training/passes.py`), in one row. A root (a prompt, or prompt and response) attends
causally to itself. A branch (a response behind a root) attends to the whole root and causally to
itself.

On a GPU in half precision, one call of FlashAttention runs all segments without padding: the keys
of a branch are its root's keys and its own. Elsewhere the tokens are unpacked into padded blocks of
roots and of branches, and SDPA is called twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from facttune_ray.training.passes import Pass

NAME = "facttune_groups"


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    groups: Pass,
    seen: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`seen`: from `what_is_seen`. ValueError for a window that is shorter than a sequence, for
    softcaps, sinks and position biases, which are not supported."""
    if sliding_window is not None and sliding_window < groups.longest:
        raise ValueError(f"a window of {sliding_window}, sequences of {groups.longest}")
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise ValueError("softcaps, sinks and position biases of attention are not supported")
    if seen is None:
        return _in_segments(query, key, value, groups, scaling)[None], None
    if (
        query.is_cuda and query.shape[1] != key.shape[1]
    ):  # CUDA kernels with a mask need equal heads
        per_group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(per_group, dim=1) for x in (key, value))
    return _in_blocks(query, key, value, groups, seen, scaling), None


def what_is_seen(passed: Pass, dtype: torch.dtype) -> torch.Tensor | None:
    """[R, 1, T, L + T] bool: the tokens of its root and its branch that a branch's token attends
    to, for SDPA. None: use FlashAttention, which needs no mask."""
    half = dtype in (torch.bfloat16, torch.float16)
    if half and passed.ids_N.is_cuda and torch.cuda.get_device_capability() >= (8, 0):
        return None
    device, (branches, width) = passed.ids_N.device, passed.branch_RT.shape
    root_L = torch.arange(passed.root_AL.shape[1], device=device)
    of_root_R1TL = (root_L < passed.root_length_R[:, None])[:, None, None].expand(-1, -1, width, -1)
    own_TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return torch.cat([of_root_R1TL, own_TT.expand(branches, 1, -1, -1)], dim=-1)


def _in_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: Pass,
    scaling: float | None,
) -> torch.Tensor:
    q_NHD, k_NHD, v_NHD = (x[0].transpose(0, 1) for x in (query, key, value))
    where = (groups.look_K, groups.key_N, groups.shared_T, groups.keys_TJ)
    k_KHD, v_KHD = (Look.apply(x, *where) for x in (k_NHD, v_NHD))
    out = varlen_attn(
        q_NHD,
        k_KHD,
        v_KHD,
        groups.queries_S,
        groups.keys_S,
        groups.most_queries,
        groups.most_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=True,
    )
    assert isinstance(out, torch.Tensor)  # no auxiliary outputs were requested
    return out


class Look(torch.autograd.Function):
    """Tokens [N, H, D] -> keys or values [K, H, D] of all segments.

    The gradient of a shared token is the sum over its keys, in float32 and in a fixed order. The
    gradient of plain indexing adds in half precision, in random order.
    """

    @staticmethod
    def forward(ctx: Any, x_NHD: Any, look_K: Any, key_N: Any, shared_T: Any, keys_TJ: Any) -> Any:
        ctx.save_for_backward(key_N, shared_T, keys_TJ)
        return x_NHD.index_select(0, look_K)

    @staticmethod
    def backward(ctx: Any, grad_KHD: Any) -> Any:  # type: ignore[override]
        key_N, shared_T, keys_TJ = ctx.saved_tensors
        wide = torch.promote_types(grad_KHD.dtype, torch.float32)
        of_keys_TJHD = grad_KHD[keys_TJ.clamp(min=0)] * (keys_TJ >= 0)[..., None, None]
        sums_THD = of_keys_TJHD.sum(1, dtype=wide).to(grad_KHD.dtype)
        grad_NHD = grad_KHD.index_select(0, key_N).index_copy(0, shared_T, sums_THD)
        return grad_NHD, None, None, None, None


def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: Pass,
    seen_R1TK: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    settings: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    where = (groups.root_AL, groups.branch_RT, groups.place_N)
    (q, q2), (k, k2), (v, v2) = (
        Unpack.apply(x[0].transpose(0, 1), *where) for x in (query, key, value)
    )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # Padding is at the right of a root, where causal attention never looks.
    roots = scaled_dot_product_attention(q, k, v, is_causal=True, **settings).transpose(1, 2)
    if not len(groups.branch_RT):
        return Pack.apply(roots, None, groups.place_N)[None]
    k = torch.cat([k.index_select(0, groups.root_of_R), k2.transpose(1, 2)], dim=2)
    v = torch.cat([v.index_select(0, groups.root_of_R), v2.transpose(1, 2)], dim=2)
    branches = scaled_dot_product_attention(
        q2.transpose(1, 2), k, v, attn_mask=seen_R1TK, **settings
    )
    return Pack.apply(roots, branches.transpose(1, 2), groups.place_N)[None]


class Unpack(torch.autograd.Function):
    """Tokens [N, H, D] -> blocks [A, L, H, D] and [R, T, H, D].

    A token has one place in the blocks and the gradient of padding is 0, so the gradient is read
    from that place. This is many times faster than the gradient of plain indexing, which adds up.
    """

    @staticmethod
    def forward(ctx: Any, x_NHD: Any, root_AL: Any, branch_RT: Any, place_N: Any) -> Any:
        ctx.save_for_backward(place_N)
        return x_NHD[root_AL], x_NHD[branch_RT]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        (place_N,) = ctx.saved_tensors
        return torch.cat([g.flatten(0, 1) for g in grads])[place_N], None, None, None


class Pack(torch.autograd.Function):
    """Blocks -> tokens [N, H, D]; padding is left out."""

    @staticmethod
    def forward(ctx: Any, root_ALHD: Any, branch_RTHD: Any, place_N: Any) -> Any:
        blocks = [b for b in (root_ALHD, branch_RTHD) if b is not None]
        ctx.save_for_backward(place_N)
        ctx.shapes = [b.shape for b in blocks]
        return torch.cat([b.flatten(0, 1) for b in blocks])[place_N]

    @staticmethod
    def backward(ctx: Any, grad_NHD: Any) -> Any:  # type: ignore[override]
        (place_N,) = ctx.saved_tensors
        counts = [shape[0] * shape[1] for shape in ctx.shapes]
        flat = grad_NHD.new_zeros(sum(counts), *grad_NHD.shape[1:])
        flat.index_copy_(0, place_N, grad_NHD)
        grads = [x.view(s) for x, s in zip(flat.split(counts), ctx.shapes, strict=True)]
        return grads[0], grads[1] if len(grads) > 1 else None, None


AttentionInterface.register(NAME, attend)


def plain_attention(lm: Any) -> str | None:
    """An attention function that needs no pass, for a model that shares prompts; None: its own."""
    if lm.config._attn_implementation != NAME:
        return None
    return "sdpa" if lm._supports_sdpa else "eager"
