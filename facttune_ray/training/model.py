"""A causal LM that runs a group's responses side by side and its prompt once.

    model = GroupModel(lm)
    model(passed)          log p(token) of the M response tokens of a pass

All tokens of a pass lie behind one another in one row, without padding: linear layers see real
tokens alone. Attention unpacks them into blocks (`training/passes.py`): a root attends to itself,
causally; a branch, a response whose prompt is a root, to the whole root and to itself. So the
prompt's states are computed once a group, and value and gradient are those of the sequences run
one by one: nothing in a prompt depends on what follows it.

Only the states that predict a response token meet the output layer, and where the vocabulary is
long, so many at a time that LOGITS numbers are in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from facttune_ray.training.losses import token_logps
from facttune_ray.training.passes import Pass, lay_out

NAME = "facttune_groups"
LOGITS = 1 << 26  # 256 MiB of float32


class GroupModel(nn.Module):
    """`lm` for passes. A model whose attention cannot be replaced runs whole, padded sequences."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm, self.shares = lm, can_share(lm)
        self.chunk = max(256, LOGITS // lm.config.get_text_config(decoder=True).vocab_size)
        if self.shares:
            lm.set_attn_implementation(NAME)

    def forward(self, passed: Pass) -> torch.Tensor:
        """Log p(token) of the response tokens, [M], in the order of `passed.token_M`."""
        if self.shares:
            return shared_logps(self.lm, passed, self.chunk)
        return plain_logps(self.lm, passed)


def shared_logps(lm: Any, passed: Pass, chunk: int) -> torch.Tensor:
    states_NC = lm.base_model(
        input_ids=passed.ids_N[None],
        position_ids=passed.position_N[None],
        use_cache=False,
        groups=passed,
    ).last_hidden_state[0]
    head = lm.get_output_embeddings()
    return token_logps(states_NC.index_select(0, passed.at_M), head, passed.token_M, chunk)


def plain_logps(lm: Any, passed: Pass) -> torch.Tensor:
    """As any trainer: padded rows, the prompt in each, logits of all tokens."""
    device = passed.ids_N.device
    rows = [torch.tensor(s) for s in passed.sequences]
    ids_BT = pad_sequence(rows, batch_first=True).to(device)
    mask_BT = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True).to(device)
    logits_BTV = lm(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    found = []
    for b, (ids, prompt) in enumerate(zip(rows, passed.prompts, strict=True)):
        logits = logits_BTV[b, prompt - 1 : len(ids) - 1]
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        wanted = ids[prompt:, None].to(device)
        found.append(logits.log_softmax(-1).gather(1, wanted)[:, 0])
    return torch.cat(found)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    groups: Pass,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: query [1, heads, N, D] -> [1, N, heads, D]."""
    where = (groups.root_AL, groups.branch_RT, groups.place_N)
    (q, q2), (k, k2), (v, v2) = (
        Unpack.apply(x[0].transpose(0, 1), *where) for x in (query, key, value)
    )
    how: dict[str, Any] = {"scale": scaling, "dropout_p": dropout}
    how["enable_gqa"] = query.shape[1] != key.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # padding stands right of a root, where causal attention never looks
    found = scaled_dot_product_attention(q, k, v, is_causal=True, **how).transpose(1, 2)
    if not len(groups.branch_RT):
        return Pack.apply(found, None, groups.place_N)[None], None
    k = torch.cat([k.index_select(0, groups.root_of_R), k2.transpose(1, 2)], dim=2)
    v = torch.cat([v.index_select(0, groups.root_of_R), v2.transpose(1, 2)], dim=2)
    branches = scaled_dot_product_attention(
        q2.transpose(1, 2), k, v, attn_mask=groups.seen_R1TK, **how
    )
    return Pack.apply(found, branches.transpose(1, 2), groups.place_N)[None], None


class Unpack(torch.autograd.Function):
    """Tokens [N, H, D] -> blocks [A, L, H, D] and [R, T, H, D].

    A token has one place in them, and padding's gradient is 0, so the gradient is read from that
    place: many times faster than indexing's own, which adds up.
    """

    @staticmethod
    def forward(ctx: Any, x_NHD: Any, root_AL: Any, branch_RT: Any, place_N: Any) -> Any:
        ctx.save_for_backward(place_N)
        return x_NHD[root_AL], x_NHD[branch_RT]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        (place_N,) = ctx.saved_tensors
        return torch.cat([g.flatten(0, 1) for g in grads])[place_N], None, None, None


class Pack(torch.autograd.Function):
    """Blocks -> tokens [N, H, D]; padding is left out."""

    @staticmethod
    def forward(ctx: Any, root_ALHD: Any, branch_RTHD: Any, place_N: Any) -> Any:
        blocks = [b for b in (root_ALHD, branch_RTHD) if b is not None]
        ctx.save_for_backward(place_N)
        ctx.shapes = [b.shape for b in blocks]
        return torch.cat([b.flatten(0, 1) for b in blocks])[place_N]

    @staticmethod
    def backward(ctx: Any, grad_NHD: Any) -> Any:  # type: ignore[override]
        (place_N,) = ctx.saved_tensors
        counts = [shape[0] * shape[1] for shape in ctx.shapes]
        flat = grad_NHD.new_zeros(sum(counts), *grad_NHD.shape[1:])
        flat.index_copy_(0, place_N, grad_NHD)
        found = [x.view(s) for x, s in zip(flat.split(counts), ctx.shapes, strict=True)]
        return found[0], found[1] if len(found) > 1 else None, None


AttentionInterface.register(NAME, attend)


@torch.no_grad()
def can_share(lm: Any) -> bool:
    """Whether the model gives the same log-probabilities so. Asked of it: windows, softcaps and
    scaled logits are not served, and its flags do not tell of all."""
    if lm.config._attn_implementation == NAME:  # it was asked before
        return True
    if not getattr(lm, "_supports_attention_backend", False):
        return False
    vocab = lm.config.get_text_config(decoder=True).vocab_size
    ids = [i % vocab for i in range(3, 15)]
    device = next(lm.parameters()).device
    passed = lay_out([(ids[:4], [ids[4:9], ids[7:12]])], share_prefix=True).to(device)
    before, training = lm.config._attn_implementation, lm.training
    lm.eval()
    try:
        plain_M = plain_logps(lm, passed)
        lm.set_attn_implementation(NAME)
        shared_M = shared_logps(lm, passed, 0)
    except (TypeError, ValueError, AttributeError, IndexError):
        return False
    finally:
        lm.set_attn_implementation(before)
        lm.train(training)
    exact = torch.finfo(lm.dtype).eps * 64 * max(1.0, float(plain_M.abs().max()))
    return bool((plain_M - shared_M).abs().max() <= exact)
