"""A causal LM that runs the responses of a group in one pass and their prompt once.

    model = GroupModel(lm, longest=512)
    model(passed)          log p(token) of the M response tokens of a pass
    model.way              Way("fast"), or a slower way and why

All tokens of a pass form one row without padding, so linear layers compute real tokens only. A
response attends to its prompt and to itself (`training/attention.py`). The states of a prompt are
computed once a group. Value and gradient equal those of the sequences run one by one, because
nothing in a prompt depends on the tokens behind it. `training/probe.py` tests whether a model gives
these values, and chooses another way if not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from facttune_ray.sampling.probe import ANY_LENGTH, restart
from facttune_ray.training.attention import NAME
from facttune_ray.training.forward import head_of, plain_logps, shared_logps
from facttune_ray.training.passes import Pass
from facttune_ray.training.probe import choose


class GroupModel(nn.Module):
    """`lm` for passes.

    `longest`: the largest number of tokens of a sequence. A model with an attention window can
    share prompts if no sequence is longer than the window. RuntimeError for partitioned weights,
    UserError for a model that cannot be trained.
    """

    def __init__(self, lm: Any, longest: int = ANY_LENGTH) -> None:
        super().__init__()
        if any(hasattr(p, "ds_id") for p in lm.parameters()):
            # The tests below would take the errors of empty weights for the model's own.
            raise RuntimeError("DeepSpeed has partitioned the weights: make the GroupModel before")
        self.lm, self.head = lm, head_of(lm)
        self.way = choose(lm, self.head, longest)
        if self.shares:
            lm.set_attn_implementation(NAME)

    @property
    def shares(self) -> bool:
        """Whether the responses of a prompt share its states."""
        return self.way.path == "fast"

    @property
    def one_length(self) -> bool:
        """Whether the sequences of a pass must have one length."""
        return self.way.path == "one length"

    def forward(self, passed: Pass) -> torch.Tensor:
        """Log p(token) of the response tokens, [M], in the order of `passed.token_M`."""
        if self.shares:
            return shared_logps(self.lm, passed, self.head)
        if self.one_length:
            restart(self.lm)
        return plain_logps(self.lm, passed, self.head)


def compile_layers(lm: Any, **settings: Any) -> None:
    """Compile the layers in place, into kernels for all sizes. The first pass compiles. `settings`:
    of torch.compile."""
    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = torch.compile(layer.forward, dynamic=True, **settings)
