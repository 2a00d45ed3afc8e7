"""What is true of a model, tested on its weights: no list of model names decides.

    positions(lm)            1024: learned positions; None: computed positions
    windows = Windows(lm)    what its attention masks hide
    windows.reach            4096: in a sequence of up to 4,096 tokens, every token sees all tokens
                             before it
    depends_on_length(lm, 8192)     whether a sequence changes with the longest one beside it

`sampling/paths.py` and `training/probe.py` compare whole paths of the code with plain forward
passes on a few tokens. The tests here cover what a few tokens cannot show: attention windows of
thousands of tokens, and rotary embeddings that change with the length. They look at long positions,
and run few tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from facttune_ray.errors import one_line

NAME = "facttune_masks"
MOST = 1 << 17  # tokens: masks and positions are tested up to here
FEW = 6  # tokens of a sequence in the tests
ANY_LENGTH = 1 << 40


class Way(NamedTuple):
    """The path of the code that a model takes."""

    path: str  # "fast", or a name of the slower path
    why: str = ""  # why it is not the fast path

    def __str__(self) -> str:
        return f"{self.path} ({self.why})" if self.why else self.path


def positions(lm: Any) -> int | None:
    """The largest length of a sequence if positions are learned; None if they are computed."""
    limit = getattr(lm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tokens = lm.get_input_embeddings()
    tables = (m for m in lm.modules() if isinstance(m, nn.Embedding) and m is not tokens)
    # Some tables have two rows before the first position, some count from behind the padding.
    ends = [t.padding_idx + 1 if t.padding_idx else 0 for t in tables if limit and _holds(t, limit)]
    return limit - max(ends) if limit and ends else None


def _holds(table: nn.Embedding, limit: int) -> bool:
    return table.num_embeddings in (limit, limit + 2)


def ids_of(lm: Any, count: int, first: int = 3) -> list[int]:
    """Token ids for a test, with the padding token: some models count positions without it."""
    text = lm.config.get_text_config(decoder=True)
    ids = [(first + 7 * i) % text.vocab_size for i in range(count)]
    pad = getattr(text, "pad_token_id", None)
    if pad is not None and 0 <= pad < text.vocab_size:
        ids[2:3] = [pad] * len(ids[2:3])
    return ids


@torch.no_grad()
def restart(lm: Any) -> None:
    """Run one token: rotary embeddings that grow with the length start anew."""
    lm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=lm.device), use_cache=False)


def alone(lm: Any, sequences: Iterable[Sequence[int]]) -> dict[tuple[int, ...], torch.Tensor]:
    """Logits [T, V] of each sequence by itself, the shorter sequences first."""
    restart(lm)
    out = {}
    for ids in sorted(set(map(tuple, sequences)), key=len):
        ids_1T = torch.tensor([ids], device=lm.device)
        out[ids] = lm(input_ids=ids_1T, use_cache=False).logits[0, -len(ids) :]
    return out


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:100]}"


def why_not(test: Callable[[], str | None]) -> str | None:
    """What the test returns: how a path is wrong, None if it is right. An error counts as wrong."""
    try:
        return test()
    except torch.OutOfMemoryError:
        raise
    except Exception as e:
        return line(e)


@contextmanager
def evaluating(lm: Any, attention: str | None = None) -> Iterator[None]:
    """The model in evaluation mode, with another attention function."""
    before, training = lm.config._attn_implementation, lm.training
    lm.eval()
    if attention:
        lm.set_attn_implementation(attention)
    try:
        yield
    finally:
        if attention:
            lm.set_attn_implementation(before)
        lm.train(training)


# -- attention masks -----------------------------------------------------------------------------

_seen: list[Callable[..., Any]] = []
_windows: list[int] = []


def _record(*_: Any, mask_function: Callable[..., Any], **__: Any) -> None:
    _seen.append(mask_function)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None:
        raise ValueError("it makes attention masks of its own")
    if sliding_window is not None:
        _windows.append(sliding_window)
    rows, heads, tokens, _dim = query.shape
    return value.new_zeros(rows, tokens, heads, value.shape[-1]), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _record)


class Windows:
    """`reach`: the largest length, up to MOST, at which each token of a sequence sees all tokens
    before it, in all layers. 0: masks are unknown, and `why` says why. The model builds its masks,
    for a few tokens; they are functions of positions, which are read at other positions."""

    def __init__(self, lm: Any) -> None:
        self.why = ""
        if not getattr(lm, "_supports_attention_backend", False):
            self.reach, self.why = 0, "its attention function cannot be replaced"
            return
        self.reach = 0
        self.why = why_not(lambda: self._look(lm)) or ""
        if not self.why and self.reach < MOST:
            self.why = f"its attention window has {self.reach:,} tokens"
            self.why = self.why if self.reach else "its attention masks are not causal"

    def _look(self, lm: Any) -> None:
        _seen.clear()
        _windows.clear()
        with evaluating(lm, NAME), torch.no_grad():
            ids = torch.tensor([ids_of(lm, 4)], device=lm.device)
            lm(input_ids=ids, use_cache=False)
        self.reach = self._reach()

    def _reach(self) -> int:
        masks, most = list(_seen), min([*_windows, MOST])
        if all(_sees_all(mask, most) for mask in masks):
            return most
        low, high = 0, most  # sees all at `low`, not at `high`
        while high - low > 1:
            middle = (low + high) // 2
            if all(_sees_all(mask, middle) for mask in masks):
                low = middle
            else:
                high = middle
        return low


def _sees_all(mask: Callable[..., Any], length: int) -> bool:
    """Whether the last of `length` tokens sees all tokens before it, and no token behind it."""
    zero, last = torch.tensor(0), torch.tensor(length - 1)
    seen = torch.as_tensor(mask(zero, zero, last, torch.arange(length + 1)))
    seen = seen.expand(length + 1)
    return bool(seen[:-1].all()) and not bool(seen[-1])


# -- positions -----------------------------------------------------------------------------------


@torch.no_grad()
def depends_on_length(lm: Any, longest: int) -> bool:
    """Whether the logits of a short sequence change if another sequence of the same forward pass
    reaches position `longest` - 1, as with rotary embeddings that are scaled by the length. False
    for a model that takes no positions; True for one that has fewer positions."""
    last = min(longest, positions(lm) or MOST, MOST)
    ids = torch.tensor([ids_of(lm, FEW)] * 2, device=lm.device)
    near = torch.arange(FEW, device=lm.device)
    far = (near + last - FEW).clamp(min=0)
    takes = inspect.signature(lm.forward).parameters
    if "position_ids" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return False
    try:
        with evaluating(lm):
            near_TV, beside_TV = (
                lm(input_ids=ids, position_ids=positions_2T, use_cache=False).logits[0]
                for positions_2T in (torch.stack([near, near]), torch.stack([near, far]))
            )
            changed = differs(near_TV, beside_TV) is not None
            if changed:
                restart(lm)
    except TypeError:  # a part of the model takes no positions
        return False
    except IndexError:  # it has no such positions: sequences that long are not comparable
        return True
    return changed


def differs(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """None if equal within the rounding of the type; else by how much they differ."""
    eps = torch.finfo(expected.dtype).eps
    most = (found.double() - expected.double()).abs().max().item()
    if most <= eps * 64 * max(1.0, expected.abs().max().item()):
        return None
    return f"{most:.2g}"
