"""Passes: the tokens that one forward of the model runs, within a budget.

    plan([Size(7, (40, 52)), Size(6, (31, 30, 33))], budget=120, share_prefix=True)
    ->  [[Part(1, (0, 1, 2))], [Part(0, (0, 1))]]
    lay_out([(prompt, [response, response])], share_prefix=True)  ->  Pass

A group that fits into a pass stays whole. A larger group is cut into parts of whole responses, and
its loss is computed in two rounds (`training/step.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from facttune_ray.errors import UserError

Ids = Sequence[int]
ROUND = 128  # lengths passed to kernels are multiples of this, so that few kernels are compiled


class Size(NamedTuple):
    """Numbers of tokens of one group."""

    prompt: int
    responses: tuple[int, ...]


class Part(NamedTuple):
    """Responses of one group that run in one pass."""

    group: int
    responses: tuple[int, ...]


def plan(
    sizes: Sequence[Size], budget: int, share_prefix: bool, one_length: bool = False
) -> list[list[Part]]:
    """Passes of at most `budget` tokens. Groups of similar length share a pass, so that attention
    blocks have little padding. `one_length`: the sequences of a pass, each a prompt with a
    response, have one length. UserError when one response with its prompt exceeds the budget."""
    if one_length:
        return _plan_by_length(sizes, budget)
    order = sorted(range(len(sizes)), key=lambda g: (max(sizes[g].responses), sizes[g].prompt, g))
    passes: list[list[Part]] = []
    left = 0
    for g in order:
        whole = Part(g, tuple(range(len(sizes[g].responses))))
        parts = [whole]
        if tokens(sizes[g], whole.responses, share_prefix) > budget:
            parts = _cut(g, sizes[g], budget, share_prefix)
        for part in parts:
            count = tokens(sizes[g], part.responses, share_prefix)
            if not passes or count > left or len(parts) > 1:
                passes.append([])
                left = budget
            passes[-1].append(part)
            left -= count
    return passes


def _plan_by_length(sizes: Sequence[Size], budget: int) -> list[list[Part]]:
    by_length: dict[int, list[tuple[int, int]]] = {}  # (group, response)
    for g, size in enumerate(sizes):
        for r, response in enumerate(size.responses):
            by_length.setdefault(size.prompt + response, []).append((g, r))
    passes: list[list[Part]] = []
    for length, members in sorted(by_length.items()):
        if length > budget:
            raise _too_long(sizes[members[0][0]], members[0][1], budget)
        count = budget // length
        for first in range(0, len(members), count):
            parts: dict[int, list[int]] = {}
            for g, r in members[first : first + count]:
                parts.setdefault(g, []).append(r)
            passes.append([Part(g, tuple(rs)) for g, rs in parts.items()])
    return passes


def _too_long(size: Size, response: int, budget: int) -> UserError:
    return UserError(
        f"train.pass_tokens={budget}: a response of {size.responses[response]} tokens and its "
        f"prompt of {size.prompt} do not fit: raise it, or lower train.max_length"
    )


def tokens(size: Size, responses: Sequence[int], share_prefix: bool) -> int:
    """Tokens that the model runs for these responses of a group."""
    prompts = 1 if share_prefix else len(responses)
    return prompts * size.prompt + sum(size.responses[r] for r in responses)


def _cut(group: int, size: Size, budget: int, share_prefix: bool) -> list[Part]:
    parts: list[list[int]] = []
    for r in sorted(range(len(size.responses)), key=lambda r: size.responses[r]):
        if tokens(size, [r], share_prefix) > budget:
            raise _too_long(size, r, budget)
        if not parts or tokens(size, [*parts[-1], r], share_prefix) > budget:
            parts.append([])
        parts[-1].append(r)
    return [Part(group, tuple(part)) for part in parts]


@dataclass(frozen=True)
class Pass:
    """N tokens in one row: A roots (a prompt, or prompt and response), R branches (a response
    behind a root), M response tokens to predict. Blocks hold indices of tokens, padded with 0."""

    ids_N: torch.Tensor
    position_N: torch.Tensor  # within the token's sequence
    root_AL: torch.Tensor  # block: the tokens of each root
    branch_RT: torch.Tensor  # block: the tokens of each branch
    root_of_R: torch.Tensor  # the root of each branch
    root_length_R: torch.Tensor  # tokens of that root
    # S segments: roots and branches, in the order of their tokens; K keys in one row
    queries_S: torch.Tensor  # [S + 1] int32: first token of each segment, then N
    keys_S: torch.Tensor  # [S + 1] int32: first key of each segment, then K
    look_K: torch.Tensor  # the token of each key; a branch has the keys of its root, then its own
    key_N: torch.Tensor  # one key of each token
    shared_T: torch.Tensor  # the tokens with several keys: tokens of roots with branches
    keys_TJ: torch.Tensor  # all keys of these tokens; padding is -1
    place_N: torch.Tensor  # index of each token's output among the A * L + R * T cells of blocks
    at_M: torch.Tensor  # the token whose state predicts
    token_M: torch.Tensor  # the token id to predict
    owner_M: torch.Tensor  # response of the pass, 0, 1, ... in the order given
    sequences: tuple[tuple[int, ...], ...] = ()  # prompt and response of each response
    prompts: tuple[int, ...] = ()  # tokens of the prompt of each response
    longest: int = 0  # tokens of the longest sequence
    most_queries: int = 0  # tokens of the longest segment, rounded up
    most_keys: int = 0  # keys of the longest segment, rounded up

    def to(self, device: Any) -> Pass:
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)


def lay_out(groups: Sequence[tuple[Ids, Sequence[Ids]]], share_prefix: bool) -> Pass:
    """(prompt, responses) of each group -> one pass. A prompt with several responses is a root and
    its responses are branches. Without `share_prefix`, and for a single response, prompt and
    response together are a root."""
    ids: list[int] = []
    positions: list[np.ndarray] = []
    roots: list[tuple[int, int]] = []  # first token, length
    branches: list[tuple[int, int, int]] = []  # first token, length, root
    at: list[np.ndarray] = []
    token: list[int] = []
    lengths: list[int] = []
    sequences: list[tuple[int, ...]] = []
    prompts: list[int] = []
    looks: list[np.ndarray] = []  # keys of each segment
    lengths_S: list[int] = []

    def put(segment: Ids, position: int) -> int:
        """Append a segment; return its first token. One that starts behind a root sees the root."""
        first = len(ids)
        ids.extend(segment)
        positions.append(np.arange(position, position + len(segment)))
        own = np.arange(first, first + len(segment))
        before = np.arange(roots[-1][0], roots[-1][0] + roots[-1][1]) if position else own[:0]
        looks.append(np.concatenate([before, own]))
        lengths_S.append(len(segment))
        return first

    for prompt, responses in groups:
        shared = share_prefix and len(responses) > 1
        if shared:
            roots.append((put(prompt, 0), len(prompt)))
            end = len(ids) - 1
        for response in responses:
            if shared:
                first = put(response, len(prompt))
                branches.append((first, len(response), len(roots) - 1))
                at.append(np.concatenate([[end], np.arange(first, first + len(response) - 1)]))
            else:
                first = put([*prompt, *response], 0)
                roots.append((first, len(prompt) + len(response)))
                start = first + len(prompt) - 1
                at.append(np.arange(start, start + len(response)))
            token.extend(response)
            lengths.append(len(response))
            sequences.append((*prompt, *response))
            prompts.append(len(prompt))

    place_N = np.zeros(len(ids), np.int64)
    root_AL = _block([r[:2] for r in roots], place_N, 0)
    branch_RT = _block([b[:2] for b in branches], place_N, root_AL.size)
    root_of_R = np.array([root for *_, root in branches], np.int64)
    root_length_R = np.array([roots[root][1] for root in root_of_R], np.int64)
    keys_S = [len(look) for look in looks]
    look_K = np.concatenate(looks)
    key_N, shared_T, keys_TJ = _keys(look_K)
    return Pass(
        ids_N=torch.from_numpy(np.array(ids)),  # faster than torch.tensor
        position_N=torch.from_numpy(np.concatenate(positions)),
        root_AL=torch.from_numpy(root_AL),
        branch_RT=torch.from_numpy(branch_RT),
        root_of_R=torch.from_numpy(root_of_R),
        root_length_R=torch.from_numpy(root_length_R),
        queries_S=torch.tensor([0, *accumulate(lengths_S)], dtype=torch.int32),
        keys_S=torch.tensor([0, *accumulate(keys_S)], dtype=torch.int32),
        look_K=torch.from_numpy(look_K),
        key_N=torch.from_numpy(key_N),
        shared_T=torch.from_numpy(shared_T),
        keys_TJ=torch.from_numpy(keys_TJ),
        place_N=torch.from_numpy(place_N),
        at_M=torch.from_numpy(np.concatenate(at)),
        token_M=torch.from_numpy(np.array(token)),
        owner_M=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        sequences=tuple(sequences),
        prompts=tuple(prompts),
        longest=max(map(len, sequences)),
        most_queries=-(-max(lengths_S) // ROUND) * ROUND,
        most_keys=-(-max(keys_S) // ROUND) * ROUND,
    )


def pass_of(groups: Sequence[Any], parts: Sequence[Part], share_prefix: bool) -> Pass:
    """The parts of groups, which have `prompt` and `responses`, as one pass."""
    chosen = [(groups[p.group], p.responses) for p in parts]
    return lay_out([(g.prompt, [g.responses[r] for r in rs]) for g, rs in chosen], share_prefix)


def _block(segments: Sequence[tuple[int, int]], place_N: np.ndarray, offset: int) -> np.ndarray:
    """[segments, longest] indices of their tokens, padded with 0; sets `place_N`."""
    first_S = np.array([first for first, _ in segments], np.int64)
    length_S = np.array([length for _, length in segments], np.int64)
    width = int(length_S.max(initial=0))
    inside_SW = np.arange(width) < length_S[:, None]
    block_SW = np.where(inside_SW, first_S[:, None] + np.arange(width), 0)
    cells_SW = offset + np.arange(block_SW.size).reshape(block_SW.shape)
    place_N[block_SW[inside_SW]] = cells_SW[inside_SW]
    return block_SW


def _keys(look_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """key_N, shared_T and keys_TJ of a Pass."""
    by_token_K = np.argsort(look_K, kind="stable")
    count_N = np.bincount(look_K)
    first_N = np.cumsum(count_N) - count_N
    shared_T = np.flatnonzero(count_N > 1)
    nth_J = np.arange(count_N.max())
    inside_TJ = nth_J < count_N[shared_T, None]
    at_TJ = np.where(inside_TJ, first_N[shared_T, None] + nth_J, 0)
    return by_token_K[first_N], shared_T, np.where(inside_TJ, by_token_K[at_TJ], -1)
