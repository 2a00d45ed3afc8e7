"""GROUPS rows -> tensors a step trains on.

One row in (schema.GROUPS):
    {"prompt": "Write a biography of Mara Veldt.", "responses": ["Mara Veldt studied physics. ...",
     "Mara Veldt keeps a parrot. ..."], "rewards": [1.0, 0.33], "pairs": 1, ...}
One batch out, several groups side by side:
    tokens_BT [B, T] ids, mask_BT [B, T] 1.0 on response tokens, pairs_P2 [P, 2] (winner, loser)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import Chat, encode_prompt, encode_response
from facttune_ray.schema import seed_from


@dataclass(frozen=True)
class TokenGroup:
    """One prompt's responses as token ids. `pairs` are (winner, loser) indices into `tokens`."""

    prompt_id: str
    tokens: list[list[int]]  # prompt and response of each response, end mark included
    prompt_tokens: list[int]  # how many leading tokens are prompt, one a response
    pairs: list[tuple[int, int]]
    cut: int  # responses that lost tokens to max_length


class Batch(NamedTuple):
    tokens_BT: torch.Tensor  # int64, padded on the right
    mask_BT: torch.Tensor  # float32, 1 on response tokens and end mark
    attention_BT: torch.Tensor  # int64, 1 on every real token
    pairs_P2: torch.Tensor  # int64 rows of this batch: (winner, loser)
    sizes_G: list[int]  # rows of each group, in order


def pairs_from_rewards(
    rewards: Sequence[float | None], threshold: float = 0.0
) -> list[tuple[int, int]]:
    """(winner, loser) for all i < j whose rewards differ by more than `threshold`.

    [0.5, 1.0, None, 0.5] -> [(1, 0), (1, 3)]: ties make no pair, an unknown reward is in none.
    """
    known = [(i, r) for i, r in enumerate(rewards) if r is not None and not math.isnan(r)]
    pairs = []
    for k, (i, a) in enumerate(known):
        for j, b in known[k + 1 :]:
            if abs(a - b) > threshold:
                pairs.append((i, j) if a > b else (j, i))
    return pairs


def tokenize_group(
    row: dict[str, Any],
    tokenizer: Any,
    *,
    max_length: int,
    threshold: float = 0.0,
    chat: Chat = "auto",
) -> TokenGroup:
    """One GROUPS row as token ids. A prompt that leaves no room for a response is a UserError.

    A longer sequence loses its end (and with it the end mark); `cut` counts those.
    """
    prompt = encode_prompt(tokenizer, row["prompt"], chat)
    if len(prompt) >= max_length:
        raise UserError(
            f"Prompt {row['prompt_id']} has {len(prompt)} tokens, max_length is {max_length}: "
            "no room for a response. Raise max_length."
        )
    full = [prompt + encode_response(tokenizer, text) for text in row["responses"]]
    return TokenGroup(
        prompt_id=row["prompt_id"],
        tokens=[ids[:max_length] for ids in full],
        prompt_tokens=[len(prompt)] * len(full),
        pairs=pairs_from_rewards(row["rewards"], threshold),
        cut=sum(len(ids) > max_length for ids in full),
    )


def collate(groups: Sequence[TokenGroup], pad_id: int) -> Batch:
    """Pads several groups into one batch; pairs are shifted to the batch's rows."""
    rows = [ids for group in groups for ids in group.tokens]
    starts = [start for group in groups for start in group.prompt_tokens]
    width = max(len(ids) for ids in rows)
    tokens_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), width)
    attention_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        tokens_BT[i, : len(ids)] = torch.tensor(ids)
        mask_BT[i, start : len(ids)] = 1.0
        attention_BT[i, : len(ids)] = 1
    pairs, offset = [], 0
    for group in groups:
        pairs += [(win + offset, lose + offset) for win, lose in group.pairs]
        offset += len(group.tokens)
    return Batch(
        tokens_BT,
        mask_BT,
        attention_BT,
        torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        [len(group.tokens) for group in groups],
    )


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count), the same on every machine for equal seed and epoch."""
    rng = np.random.Generator(np.random.PCG64(seed_from("epoch", seed, epoch)))
    return rng.permutation(count).tolist()


def batch_indices(order: Sequence[int], groups_per_batch: int) -> Iterable[list[int]]:
    """Cuts an epoch's order into batches; the last one may be smaller."""
    for start in range(0, len(order), groups_per_batch):
        yield list(order[start : start + groups_per_batch])
