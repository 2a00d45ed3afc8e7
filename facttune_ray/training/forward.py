"""Log-probabilities of the response tokens of a pass, with shared prompts or as padded rows.

    head = head_of(lm)
    shared_logps(lm, passed, head)     [M], all tokens in one row, each prompt once
    plain_logps(lm, passed, head)      [M], padded rows, as other trainers do

The output layer runs only on states that predict a response token. If the vocabulary is large, it
runs in chunks whose logits take LOGITS bytes. A model that does more than apply its output layer (a
softcap, a scale) gets the chunks through its own forward, behind states that are already computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from facttune_ray.sampling.probe import evaluating, ids_of, line, positions
from facttune_ray.training.attention import plain_attention, what_is_seen
from facttune_ray.training.losses import token_logps
from facttune_ray.training.passes import Pass

LOGITS = {"cpu": 1 << 28, "cuda": 1 << 30}  # 256 MiB, 1 GiB
COPIES = 4  # of a chunk's logits that a model's own forward may keep: before and behind each scale


class Head(NamedTuple):
    """How states become logits."""

    logits: Callable[[torch.Tensor], torch.Tensor] | None  # [N, C] -> [N, V]; None: only whole
    chunk: int  # the number of states whose logits are in memory at a time
    why: str = ""  # the error, if there was one, for which logits are computed whole


def shared_logps(lm: Any, passed: Pass, head: Head) -> torch.Tensor:
    states_NC = lm.base_model(
        input_ids=passed.ids_N[None],
        position_ids=passed.position_N[None],
        use_cache=False,
        groups=passed,
        seen=what_is_seen(passed, lm.dtype),
    ).last_hidden_state[0]
    return token_logps(
        states_NC.index_select(0, passed.at_M), head.logits, passed.token_M, head.chunk
    )


def plain_logps(lm: Any, passed: Pass, head: Head) -> torch.Tensor:
    """Padded rows, each with its prompt; rows of one length have no padding and no mask."""
    device = passed.ids_N.device
    rows = [torch.tensor(s) for s in passed.sequences]
    ids_BT = pad_sequence(rows, batch_first=True).to(device)
    arguments: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
    if len({len(row) for row in rows}) > 1:
        mask_BT = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        arguments["attention_mask"] = mask_BT.to(device)
    if head.logits is None:
        wide_BTX = lm(**arguments).logits[:, -ids_BT.shape[1] :]
    else:
        wide_BTX = lm.base_model(**arguments).last_hidden_state
    ends = zip(wide_BTX, rows, passed.prompts, strict=True)
    wide_MX = torch.cat([wide[prompt - 1 : len(row) - 1] for wide, row, prompt in ends])
    if head.logits is None:
        return token_logps(wide_MX, nn.Identity(), passed.token_M)
    return token_logps(wide_MX, head.logits, passed.token_M, head.chunk)


@torch.no_grad()
def head_of(lm: Any) -> Head:
    """The fastest head that gives the model's own logits, tested on a few tokens."""
    vocab = lm.config.get_text_config(decoder=True).vocab_size
    row = vocab * lm.dtype.itemsize
    chunk = max(256, LOGITS.get(lm.device.type, LOGITS["cpu"]) // row)
    if lm.base_model is lm:
        return Head(None, chunk)
    ids_1T = torch.tensor([ids_of(lm, min(12, positions(lm) or 12))], device=lm.device)
    try:
        with evaluating(lm, plain_attention(lm)):
            logits_TV = lm(input_ids=ids_1T, use_cache=False).logits[0]
            out = lm.base_model(input_ids=ids_1T, use_cache=False)
            states_TC = out.last_hidden_state[0]
            for head in (
                Head(_output_layer(lm), chunk),
                Head(_own_head(lm, type(out)), max(64, chunk // COPIES)),
            ):
                if head.logits and _equal(head.logits(states_TC), logits_TV):
                    return head
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # the model's forward takes or returns something else
        return Head(None, chunk, line(e))
    return Head(None, chunk)


def _equal(found_TV: torch.Tensor, logits_TV: torch.Tensor) -> bool:
    tolerance = 2 * torch.finfo(logits_TV.dtype).eps if logits_TV.is_cuda else 0.0
    return found_TV.shape == logits_TV.shape and torch.allclose(
        found_TV, logits_TV, rtol=tolerance, atol=0.0
    )


def _output_layer(lm: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The output layer alone. A module that exports or quantises may be replaced: look it up."""
    if lm.get_output_embeddings() is None:
        return None
    return lambda states_NC: lm.get_output_embeddings()(states_NC)


def _own_head(lm: Any, kind: type) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the model's forward makes of states. `kind`: the class of its base model's output."""

    def logits(states_NC: torch.Tensor) -> torch.Tensor:
        ids_1N = torch.zeros(1, len(states_NC), dtype=torch.long, device=states_NC.device)
        with _returning(lm.base_model, kind(last_hidden_state=states_NC[None])):
            return lm(input_ids=ids_1N, use_cache=False).logits[0]

    return logits


@contextmanager
def _returning(module: Any, out: Any) -> Iterator[None]:
    """The module's forward returns `out` inside this context."""
    before = vars(module).get("forward")
    module.forward = lambda *_, **__: out
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
