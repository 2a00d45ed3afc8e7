"""Forward passes over rows of token ids of different lengths.

for chosen, inputs in passes([[5, 6, 7], [5, 6], [8]], 6, pad=0, device=device):
    ...     [0, 1]  {"input_ids": [[5, 6, 7], [5, 6, 0]], "attention_mask": [[1, 1, 1], ...]}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


def passes(
    rows: Sequence[Sequence[int]], batch_tokens: int, pad: int | None, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """(indices of the rows, inputs [B, T]) of each forward pass, the longest rows first. A pass has
    at most `batch_tokens` tokens with its padding, or one row; always one row without a padding
    token `pad`."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    at = 0
    while at < len(order):
        n = 1 if pad is None else max(1, batch_tokens // max(1, len(rows[order[at]])))
        chosen = order[at : at + n]
        at += n
        ids_BT = padded([rows[i] for i in chosen], pad or 0, device)
        real_BT = padded([[1] * len(rows[i]) for i in chosen], 0, device)
        yield chosen, {"input_ids": ids_BT, "attention_mask": real_BT}


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """The rows as one tensor [B, T], filled on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def row_limit(tokenizer: Any, config: Any) -> int:
    """Most tokens of a row of an encoder. RoBERTa models count positions from behind the padding
    token's id."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and "roberta" in config.model_type and config.pad_token_id is not None:
        limit -= config.pad_token_id + 1
    return min(limit or 512, tokenizer.model_max_length)
