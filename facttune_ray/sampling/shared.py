"""Decoding of many rows that share a prefix and their prompts.

The keys and values of a row have three parts. Only the last part belongs to the row alone:

    prefix [H, P, D]       worked questions: one copy for all rows
    prompt [B, H, S, D]    a question: one copy for its n samples
    own    [R, H, T, D]    the tokens that the row has generated

Each part is attended to once for all rows that share it, as one matrix product. The parts are
merged by their sums of exponentials (as FlashAttention merges blocks, Dao et al. 2022, arXiv
2205.14135; for prefixes: Hydragen, Juravsky et al. 2024, arXiv 2402.05099). No part is copied n
times, and prompts of unequal length run in one pass.

    run = SharedRun(model, prefix)
    logits_BV = run.start(prompts, of_R, capacity=15)     logits of the token after each prompt
    logits_RV = run.step(tokens_R)                        logits of the token after each row
    run.keep(alive_K)                                     drop all other rows
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from facttune_ray.sampling.dola import Dola

NAME = "facttune_shared"
# The names of a model's argument for its cache, the newest first.
CACHES = ("cache", "past_key_values", "cache_params")
PREFILL_TOKENS = 8192  # of prompts in one forward pass
PREFILL_SCORES = 1 << 26  # attention scores in memory at a time, for prompts behind a prefix
Part = tuple[torch.Tensor, torch.Tensor]  # keys, values of one layer
Prefix = list[Part]  # [H, P, D] a layer; [] without a prefix


class SharedCache(Cache):
    """Keys and values of one pass, by layer. The model passes this cache on to `attend`."""

    def __init__(self, prefix: Prefix, prompts: int, length: int) -> None:
        super().__init__(layers=[])
        self.prefix = prefix
        self.shape = (prompts, length)  # B, S
        self.first = 0  # index of the first prompt of the next forward pass
        self.prompt: list[Part] = []
        self.own: list[Part] = []
        self.bias_B1S: torch.Tensor | None = None  # -inf on padding; None: no padding
        self.of_R = self.slot_R = torch.empty(0, dtype=torch.long)  # row -> prompt, index there
        self.slots = 1  # the largest number of rows of a prompt
        self.capacity = 0  # T
        self.steps = 0  # generated tokens that are stored

    @property
    def prefilling(self) -> bool:
        return self.capacity == 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> Part:
        """Store the keys and values [rows, H, tokens, D] of new tokens."""
        rows, heads, tokens, _dim = key_states.shape
        parts = self.prompt if self.prefilling else self.own
        if layer_idx == len(parts):
            batch, length = self.shape if self.prefilling else (rows, self.capacity)
            key_dim, value_dim = key_states.shape[-1], value_states.shape[-1]
            keys = key_states.new_empty(batch, heads, length, key_dim)
            parts.append((keys, key_states.new_empty(batch, heads, length, value_dim)))
        row, token = (self.first, 0) if self.prefilling else (0, self.steps)
        for store, new in zip(parts[layer_idx], (key_states, value_states), strict=True):
            store[row : row + rows, :, token : token + tokens] = new
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # the caller gives positions, and no mask is built

    def keep(self, kept_K: torch.Tensor) -> None:
        """Drop all other rows (`kept_K` ascending), and prompts without rows if that saves 30%."""
        self.own = [tuple(_take(x, kept_K, self.steps) for x in part) for part in self.own]  # type: ignore[misc]
        self.place(self.of_R[kept_K])
        prompts, of_R = self.of_R.unique(return_inverse=True)
        if len(prompts) < 0.7 * self.shape[0]:
            self.prompt = [(k[prompts], v[prompts]) for k, v in self.prompt]
            if self.bias_B1S is not None:
                self.bias_B1S = self.bias_B1S[prompts]
            self.shape = (len(prompts), self.shape[1])
            self.of_R = of_R

    def place(self, of_R: torch.Tensor) -> None:
        """Set the prompt of each row: `of_R`, ascending."""
        row_R = torch.arange(len(of_R), device=of_R.device)
        self.of_R = of_R
        self.slot_R = row_R - torch.searchsorted(of_R, of_R)
        self.slots = int(self.slot_R.max()) + 1


def _take(store: torch.Tensor, kept_K: torch.Tensor, steps: int) -> torch.Tensor:
    rows, heads, capacity, dim = store.shape
    out = store.new_empty(len(kept_K), heads, capacity, dim)
    out[:, :, :steps] = store[kept_K, :, :steps]
    return out


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared: SharedCache,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers. query [rows, heads, tokens, D] -> [rows, tokens,
    heads, D]; key and value hold the new tokens, which `shared` has stored already. ValueError
    for softcaps, sinks and position biases, which are not supported."""
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise ValueError("softcaps, sinks and position biases of attention are not supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not shared.prefilling:
        return _attend_step(query * scale, shared, module.layer_idx), None
    if not shared.prefix:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    rows, heads, tokens, _dim = query.shape
    groups = key.shape[1]
    # Padding is at the right of a prompt, where causal attention never looks.
    causal_TT = query.new_full((tokens, tokens), -torch.inf, dtype=torch.float32).triu(1)
    bias_GTT = causal_TT.repeat(heads // groups, 1)
    q_RGMD = (query * scale).reshape(rows, groups, -1, query.shape[-1])
    merged = _merge(
        [_to_prefix(q_RGMD, shared, module.layer_idx), _attention(q_RGMD, key, value, bias_GTT)]
    )
    out = merged.reshape(rows, heads, tokens, -1).transpose(1, 2)
    return out.to(query.dtype).contiguous(), None


Partial = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # weighted values, sum, maximum


def _attend_step(query: torch.Tensor, shared: SharedCache, layer: int) -> torch.Tensor:
    """One new token a row: query [R, heads, 1, D], scaled -> [R, 1, heads, D]."""
    rows, heads, _one, dim = query.shape
    k_prompt, v_prompt = shared.prompt[layer]
    prompts, groups = k_prompt.shape[:2]
    per_group = heads // groups  # query heads that share one key-value head
    q_RGMD = query.reshape(rows, groups, per_group, dim)
    partials = [_to_prefix(q_RGMD, shared, layer)] if shared.prefix else []

    at = (shared.of_R, shared.slot_R)
    q_BNGMD = query.new_zeros(prompts, shared.slots, groups, per_group, dim)
    q_BNGMD[at] = q_RGMD
    q_BGXD = q_BNGMD.transpose(1, 2).reshape(prompts, groups, shared.slots * per_group, dim)
    bias = None if shared.bias_B1S is None else shared.bias_B1S[:, None]
    partials.append(
        tuple(  # type: ignore[arg-type]
            x.view(prompts, groups, shared.slots, per_group, -1).transpose(1, 2)[at]
            for x in _attention(q_BGXD, k_prompt, v_prompt, bias)
        )
    )
    k_own, v_own = (x[:, :, : shared.steps + 1] for x in shared.own[layer])
    partials.append(_attention(q_RGMD, k_own, v_own))
    return _merge(partials).to(query.dtype).reshape(rows, 1, heads, -1)


def _to_prefix(q_RGMD: torch.Tensor, shared: SharedCache, layer: int) -> Partial:
    """Attention of all rows' queries to the one prefix."""
    rows, groups, per_group, dim = q_RGMD.shape
    flat = q_RGMD.transpose(0, 1).reshape(groups, rows * per_group, dim)
    partial = _attention(flat, *shared.prefix[layer])
    return tuple(x.view(groups, rows, per_group, -1).transpose(0, 1) for x in partial)  # type: ignore[return-value]


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> Partial:
    """Unnormalised attention of q [..., Q, D] to k, v [..., K, D]; float32 sums and maxima."""
    if q.device.type == "cpu":  # many small products of bfloat16 are slow there
        q, k, v = q.float(), k.float(), v.float()
    scores = (q @ k.transpose(-1, -2)).float()
    if bias is not None:
        scores += bias
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    return weights.to(v.dtype) @ v, weights.sum(dim=-1, keepdim=True), highest


def _merge(partials: list[Partial]) -> torch.Tensor:
    highest = partials[0][2]
    for _values, _sum, other in partials[1:]:
        highest = torch.maximum(highest, other)
    total = values = torch.zeros((), device=highest.device)
    for part_values, part_sum, part_highest in partials:
        share = (part_highest - highest).exp_()
        values, total = values + part_values * share, total + part_sum * share
    return values / total


AttentionInterface.register(NAME, attend)


class SharedRun:
    """One pass over a model: prompts, then their rows step by step."""

    def __init__(self, model: Any, prefix: Prefix | None, dola: Dola | None = None) -> None:
        self.model, self.dola = model, dola
        self.device = model.device
        self.name = cache_argument(model)
        self.prefix = prefix or []
        self.depth = self.prefix[0][0].shape[1] if self.prefix else 0  # P

    def start(self, prompts: list[list[int]], of_R: np.ndarray, capacity: int) -> torch.Tensor:
        """Run the prompts; return the logits behind each, [B, V] float32. `of_R`: the prompt of
        each row, ascending. `capacity`: tokens that a row may generate."""
        lengths_B = torch.tensor([len(p) for p in prompts])
        length = int(lengths_B.max())
        ids_BS = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, ids in enumerate(prompts):
            ids_BS[row, : len(ids)] = torch.tensor(ids)
        ids_BS, lengths_B = ids_BS.to(self.device), lengths_B.to(self.device)
        self.cache = SharedCache(self.prefix, len(prompts), length)
        positions_1S = torch.arange(self.depth, self.depth + length, device=self.device)[None]
        parts = []
        size = _prompts_a_pass(self.model.config, length, behind=bool(self.prefix))
        for first in range(0, len(prompts), size):
            self.cache.first = first
            part_BS = ids_BS[first : first + size]
            ends_B = lengths_B[first : first + size] - 1
            parts.append(self._forward(part_BS, positions_1S.expand(len(part_BS), -1), ends_B))
        inside_BS = torch.arange(length, device=self.device) < lengths_B[:, None]
        if not inside_BS.all():
            bias_BS = torch.zeros_like(inside_BS, dtype=torch.float32)
            self.cache.bias_B1S = bias_BS.masked_fill_(~inside_BS, -torch.inf)[:, None]
        self.cache.capacity = capacity
        of = torch.from_numpy(of_R).to(self.device)
        self.cache.place(of)
        self.next_R1 = (self.depth + lengths_B)[of][:, None]  # position of each row's next token
        return torch.cat(parts)

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] float32 behind one more token a row."""
        logits_RV = self._forward(tokens_R[:, None], self.next_R1, None)
        self.cache.steps += 1
        self.next_R1 = self.next_R1 + 1
        return logits_RV

    def keep(self, kept_K: torch.Tensor) -> None:
        self.cache.keep(kept_K)
        self.next_R1 = self.next_R1[kept_K]

    def _forward(
        self, ids_RT: torch.Tensor, positions_RT: torch.Tensor, ends_R: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits [R, V] behind token `ends_R` of each row; None: each row has one token."""
        kept, of_R = (1, None) if ends_R is None else ends_R.unique(return_inverse=True)
        with attending(self.model):
            out = self.model(
                input_ids=ids_RT,
                position_ids=positions_RT,
                use_cache=True,
                logits_to_keep=kept,
                shared=self.cache,
                output_hidden_states=self.dola is not None,
                **{self.name: self.cache},
            )
        row_R = torch.arange(len(ids_RT), device=self.device)
        logits_RV = out.logits[row_R, -1 if of_R is None else of_R].float()
        if self.dola is None:
            return logits_RV
        last_R = -1 if ends_R is None else ends_R
        states = [out.hidden_states[i][row_R, last_R] for i in self.dola.layers]
        return self.dola.contrast(states, logits_RV)


def prefill(model: Any, ids: list[int]) -> Prefix:
    """Keys and values [H, P, D] of a prefix, by layer."""
    run = SharedRun(model, [])
    run.start([ids], np.zeros(1, dtype=np.int64), 1)
    return [(k[0], v[0]) for k, v in run.cache.prompt]


def _prompts_a_pass(config: Any, length: int, behind: bool) -> int:
    size = PREFILL_TOKENS // length
    if behind:  # all attention scores within a prompt are in memory at once
        heads = config.get_text_config(decoder=True).num_attention_heads
        size = min(size, PREFILL_SCORES // (heads * length * length))
    return max(1, size)


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """The model uses `attend` inside this context, and its own attention outside."""
    before = model.config._attn_implementation
    if before == NAME:
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def cache_argument(model: Any) -> str:
    """The name of the model's argument for its cache. ValueError if it takes none."""
    takes = inspect.signature(model.forward).parameters
    for name in CACHES:
        if name in takes:
            return name
    raise ValueError("the model takes no cache")


def caches_all(model: Any) -> bool:
    """Whether every layer caches the keys and values of all positions: no sliding window, no
    recurrent state."""
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
