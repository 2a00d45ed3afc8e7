"""A causal LM that runs a group's responses side by side and its prompt once.

    model = GroupModel(lm, longest=512)
    model(passed)          log p(token) of the M response tokens of a pass

All tokens of a pass lie behind one another in one row, without padding: linear layers see real
tokens alone, and a response attends to its prompt and itself (`training/attention.py`). So the
prompt's states are computed once a group, and value and gradient are those of the sequences run
one by one: nothing in a prompt depends on what follows it.

Only the states that predict a response token meet the output layer, and where the vocabulary is
long, so many at a time that their logits take LOGITS bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_layers import GradientCheckpointingLayer

from facttune_ray.training.attention import NAME, what_is_seen
from facttune_ray.training.losses import token_logps
from facttune_ray.training.passes import Pass, lay_out

LOGITS = {"cpu": 1 << 28, "cuda": 1 << 30}  # 256 MiB, 1 GiB
ANY_LENGTH = 1 << 40


class GroupModel(nn.Module):
    """`lm` for passes. A model whose attention cannot be replaced runs whole, padded sequences.

    `longest`: tokens of a sequence at most; a model whose layers see no further than a window can
    still share when no sequence is longer.
    """

    def __init__(self, lm: Any, longest: int = ANY_LENGTH) -> None:
        super().__init__()
        self.lm, self.plain_head = lm, has_plain_head(lm)
        self.shares = self.plain_head and can_share(lm, longest)
        row = lm.config.get_text_config(decoder=True).vocab_size * lm.dtype.itemsize
        self.chunk = max(256, LOGITS.get(lm.device.type, LOGITS["cpu"]) // row)
        if self.shares:
            lm.set_attn_implementation(NAME)

    def forward(self, passed: Pass) -> torch.Tensor:
        """Log p(token) of the response tokens, [M], in the order of `passed.token_M`."""
        if self.shares:
            return shared_logps(self.lm, passed, self.chunk)
        return plain_logps(self.lm, passed, self.chunk if self.plain_head else None)


def shared_logps(lm: Any, passed: Pass, chunk: int) -> torch.Tensor:
    states_NC = lm.base_model(
        input_ids=passed.ids_N[None],
        position_ids=passed.position_N[None],
        use_cache=False,
        groups=passed,
        seen=what_is_seen(passed, lm.dtype),
    ).last_hidden_state[0]
    head = lm.get_output_embeddings()
    return token_logps(states_NC.index_select(0, passed.at_M), head, passed.token_M, chunk)


def plain_logps(lm: Any, passed: Pass, chunk: int | None) -> torch.Tensor:
    """As any trainer: padded rows, the prompt in each. `chunk`: as in `token_logps`; None: the
    model makes all logits itself, and does more to them than its output layer."""
    device = passed.ids_N.device
    rows = [torch.tensor(s) for s in passed.sequences]
    ids_BT = pad_sequence(rows, batch_first=True).to(device)
    mask_BT = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True).to(device)
    run = lm if chunk is None else lm.base_model
    found = run(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    wide_BTX = found.logits if chunk is None else found.last_hidden_state
    ends = zip(wide_BTX, rows, passed.prompts, strict=True)
    wide_MX = torch.cat([wide[prompt - 1 : len(row) - 1] for wide, row, prompt in ends])
    head = nn.Identity() if chunk is None else lm.get_output_embeddings()
    return token_logps(wide_MX, head, passed.token_M, chunk or 0)


def compile_layers(lm: Any, **how: Any) -> None:
    """Run the layers as fused kernels, which torch makes at the first pass for all sizes. In place.
    `how`: of torch.compile."""
    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = torch.compile(layer.forward, dynamic=True, **how)


def positions(lm: Any) -> int | None:
    """Most tokens of a sequence where their places are learned; None where they are computed."""
    most = getattr(lm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tokens = lm.get_input_embeddings()
    tables = (m for m in lm.modules() if isinstance(m, nn.Embedding) and m is not tokens)
    # some have two rows before the first place
    return most if any(t.num_embeddings in (most, most + 2) for t in tables if most) else None


@torch.no_grad()
def has_plain_head(lm: Any) -> bool:
    """Whether the logits are the output layer's product with the last states, without a softcap, a
    scale or anything else. Asked of the model: both are computed alike, so they are equal."""
    if lm.config._attn_implementation == NAME:  # it was asked before, and shares
        return True
    vocab = lm.config.get_text_config(decoder=True).vocab_size
    ids_1T = torch.tensor([[i % vocab for i in range(3, 15)]], device=lm.device)
    training = lm.training
    lm.eval()
    try:
        logits_TV = lm(input_ids=ids_1T, use_cache=False).logits[0]
        states_TC = lm.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
        made_TV = lm.get_output_embeddings()(states_TC)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False
    finally:
        lm.train(training)
    near = 2 * torch.finfo(lm.dtype).eps if lm.device.type == "cuda" else 0.0
    return torch.allclose(made_TV, logits_TV, rtol=near, atol=0.0)


@torch.no_grad()
def can_share(lm: Any, longest: int = ANY_LENGTH) -> bool:
    """Whether the model gives the same log-probabilities so, for sequences of up to `longest`
    tokens. Asked of it: its flags do not tell all that its layers do. Half precision hides small
    differences, so a response's dependence on another is asked of its gradient, which is then 0."""
    if lm.config._attn_implementation == NAME:  # it was asked before
        return True
    if not getattr(lm, "_supports_attention_backend", False):
        return False
    vocab = lm.config.get_text_config(decoder=True).vocab_size
    ids = [i % vocab for i in range(3, 15)]
    device = next(lm.parameters()).device
    passed = lay_out([(ids[:4], [ids[4:9], ids[7:12]])], share_prefix=True).to(device)
    passed = replace(passed, longest=longest)
    before, training = lm.config._attn_implementation, lm.training
    lm.eval()
    try:
        plain_M = plain_logps(lm, passed, None)
        lm.set_attn_implementation(NAME)
        shared_M = shared_logps(lm, passed, 0)
        leaks = _second_depends_on_first(lm, passed, 4, 5)
    except (TypeError, ValueError, AttributeError, IndexError):
        return False
    finally:
        lm.set_attn_implementation(before)
        lm.train(training)
    near = torch.finfo(lm.dtype).eps * 64 * max(1.0, float(plain_M.abs().max()))
    return not leaks and bool((plain_M - shared_M).abs().max() <= near)


@torch.enable_grad()
def _second_depends_on_first(lm: Any, passed: Pass, prompt: int, first: int) -> bool:
    """Whether the log-probabilities of the second response behind a prompt change with the first's
    tokens: with what a convolution or a recurrent layer carries over. `prompt`, `first`: tokens."""
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, states: torch.Tensor) -> torch.Tensor:
        seen.append(states.detach().requires_grad_())
        return seen[0]

    hook = lm.get_input_embeddings().register_forward_hook(keep)
    try:
        second = shared_logps(lm, passed, 0)[first:].sum()
        (slope_1NC,) = torch.autograd.grad(second, seen)
    finally:
        hook.remove()
    return bool(slope_1NC[0, prompt : prompt + first].any())
