"""How many rows of a pass a GPU's memory holds.

    rows_that_fit(free_bytes(device), 0.85, row_bytes(config, 2, ...), 512)  ->  384

An estimate: where it is too high, the pass runs out of memory and is halved.
"""

from __future__ import annotations

from typing import Any

import torch

from facttune_ray.errors import UserError


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that nobody holds, or that torch holds unused."""
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def rows_that_fit(free: int, share: float, need: int, most: int) -> int:
    """Rows of `need` bytes in a share of the free ones: 1 at least, `most` at most."""
    return max(1, min(most, int(free * share / need)))


def row_bytes(
    config: Any, itemsize: int, *, prefix: int, prompt: int, new: int, n: int, shares: bool
) -> int:
    """GPU memory that one more row of a pass takes, at most.

    Keys and values: 2 * layers * key-value heads * head size * positions * itemsize. Its
    positions are its `new` tokens and its part of the `prompt`, which its n rows share; without
    sharing all of them, the prefix's too. Beside them: logits and probabilities (float32), one
    layer's activations, and the attention scores of one layer.
    """
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    position = 2 * text.num_hidden_layers * groups * dim * itemsize
    seen = prefix + prompt + new
    held = new + -(-prompt // n) if shares else seen
    beside = text.vocab_size * (itemsize + 12) + (8 * text.hidden_size + 3 * inner) * itemsize
    return position * held + beside + 8 * heads * seen


def too_large(tokens: int, more: int) -> UserError:
    return UserError(
        f"Out of memory with one sequence of {tokens} tokens and {more} to come: use a smaller "
        f"model, sampling.quantize, or a GPU with more memory (less sampling.max_rows is no help)"
    )
