"""A causal LM that runs the responses of a group in one pass and their prompt once.

    model = GroupModel(lm, longest=512)
    model(passed)          log p(token) of the M response tokens of a pass

All tokens of a pass form one row without padding, so linear layers compute real tokens only. A
response attends to its prompt and to itself (`training/attention.py`). The states of a prompt are
computed once a group. Value and gradient equal those of the sequences run one by one, because
nothing in a prompt depends on the tokens behind it.

The output layer runs only on states that predict a response token. If the vocabulary is large, it
runs in chunks whose logits take LOGITS bytes.
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

    `longest`: the largest number of tokens of a sequence. A model with an attention window can
    share prompts if no sequence is longer than the window. RuntimeError for partitioned weights.
    """

    def __init__(self, lm: Any, longest: int = ANY_LENGTH) -> None:
        super().__init__()
        if any(hasattr(p, "ds_id") for p in lm.parameters()):
            # The tests below would take the errors of empty weights for the model's own.
            raise RuntimeError("DeepSpeed has partitioned the weights: make the GroupModel before")
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
    """As other trainers do: padded rows, each with its prompt. `chunk`: as in `token_logps`; None:
    take the model's own logits, because the model does not only apply its output layer."""
    device = passed.ids_N.device
    rows = [torch.tensor(s) for s in passed.sequences]
    ids_BT = pad_sequence(rows, batch_first=True).to(device)
    mask_BT = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True).to(device)
    run = lm if chunk is None else lm.base_model
    out = run(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    wide_BTX = out.logits if chunk is None else out.last_hidden_state
    ends = zip(wide_BTX, rows, passed.prompts, strict=True)
    wide_MX = torch.cat([wide[prompt - 1 : len(row) - 1] for wide, row, prompt in ends])
    head = nn.Identity() if chunk is None else lm.get_output_embeddings()
    return token_logps(wide_MX, head, passed.token_M, chunk or 0)


def compile_layers(lm: Any, **settings: Any) -> None:
    """Compile the layers in place, into kernels for all sizes. The first pass compiles. `settings`:
    of torch.compile."""
    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = torch.compile(layer.forward, dynamic=True, **settings)


def positions(lm: Any) -> int | None:
    """The largest length of a sequence if positions are learned; None if they are computed."""
    limit = getattr(lm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tokens = lm.get_input_embeddings()
    tables = (m for m in lm.modules() if isinstance(m, nn.Embedding) and m is not tokens)
    # Some tables have two rows before the first position.
    return limit if any(t.num_embeddings in (limit, limit + 2) for t in tables if limit) else None


@torch.no_grad()
def has_plain_head(lm: Any) -> bool:
    """Whether the logits are the output layer's product with the last states, without a softcap, a
    scale or anything else. Tested by computing both: they must be equal."""
    if lm.config._attn_implementation == NAME:  # tested before: such a model shares
        return True
    vocab = lm.config.get_text_config(decoder=True).vocab_size
    ids_1T = torch.tensor([[i % vocab for i in range(3, 15)]], device=lm.device)
    training = lm.training
    lm.eval()
    try:
        logits_TV = lm(input_ids=ids_1T, use_cache=False).logits[0]
        states_TC = lm.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
        product_TV = lm.get_output_embeddings()(states_TC)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False
    finally:
        lm.train(training)
    tolerance = 2 * torch.finfo(lm.dtype).eps if lm.device.type == "cuda" else 0.0
    return torch.allclose(product_TV, logits_TV, rtol=tolerance, atol=0.0)


@torch.no_grad()
def can_share(lm: Any, longest: int = ANY_LENGTH) -> bool:
    """Whether the model gives the same log-probabilities with shared prompts, for sequences of up
    to `longest` tokens. Tested by running both: the model's flags do not describe everything that
    its layers do. Half precision hides small differences, so the gradient is tested, too: it is 0
    if no response depends on another."""
    if lm.config._attn_implementation == NAME:  # tested before
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
    tolerance = torch.finfo(lm.dtype).eps * 64 * max(1.0, float(plain_M.abs().max()))
    return not leaks and bool((plain_M - shared_M).abs().max() <= tolerance)


@torch.enable_grad()
def _second_depends_on_first(lm: Any, passed: Pass, prompt: int, first: int) -> bool:
    """Whether the log-probabilities of a prompt's second response depend on the tokens of the first
    response, as through a convolution or a recurrent layer. `prompt`, `first`: tokens."""
    inputs: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, states: torch.Tensor) -> torch.Tensor:
        inputs.append(states.detach().requires_grad_())
        return inputs[0]

    hook = lm.get_input_embeddings().register_forward_hook(keep)
    try:
        second = shared_logps(lm, passed, 0)[first:].sum()
        (grad_1NC,) = torch.autograd.grad(second, inputs)
    finally:
        hook.remove()
    return bool(grad_1NC[0, prompt : prompt + first].any())
