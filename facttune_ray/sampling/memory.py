"""How many rows of a pass fit into a GPU's memory.

    rows_that_fit(free_bytes(device), 0.85, row_bytes(config, 2, ...), 512)  ->  384

This is an estimate. If it is too high, the pass runs out of memory and is halved.
"""

from __future__ import annotations

from typing import Any

import torch

from facttune_ray.errors import UserError


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device, with the memory that torch has reserved but does not use."""
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def rows_that_fit(free: int, share: float, row: int, limit: int) -> int:
    """Rows of `row` bytes that fit into a share of `free` bytes: between 1 and `limit`."""
    return max(1, min(limit, int(free * share / row)))


def row_bytes(
    config: Any, itemsize: int, *, prefix: int, prompt: int, new: int, n: int, shares: bool
) -> int:
    """An upper bound of the GPU memory that one more row of a pass takes.

    Keys and values: 2 * layers * key-value heads * head size * positions * itemsize. The positions
    of a row are its `new` tokens and 1/n of the `prompt`, which n rows share. If the model does
    not share, they are all tokens, the prefix included. Added to this: logits and probabilities
    (float32), and the activations and attention scores of one layer.
    """
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    position = 2 * text.num_hidden_layers * groups * dim * itemsize
    attended = prefix + prompt + new
    cached = new + -(-prompt // n) if shares else attended
    other = text.vocab_size * (itemsize + 12) + (8 * text.hidden_size + 3 * inner) * itemsize
    return position * cached + other + 8 * heads * attended


def too_large(tokens: int, new_tokens: int) -> UserError:
    return UserError(
        f"Out of memory with one sequence of {tokens} tokens and {new_tokens} to generate: use a "
        f"smaller model, sampling.quantize, or a GPU with more memory (a lower sampling.max_rows "
        f"does not help)"
    )
