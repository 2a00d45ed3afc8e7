"""DoLa: decoding by contrasting layers (Chuang et al., ICLR 2024, arXiv 2309.03883).

    dola = Dola(model, "high")
    logits_RV = dola.contrast(hidden, logits_RV)     what `pick` draws from; -inf outside its head

At each step the early layer j whose next-token distribution q_j is farthest from the last layer's
q_N is chosen for each row by itself, and a token is scored by

    log q_N(x) - log q_j(x)    where q_N(x) >= alpha max q_N,    -inf elsewhere

with q_j the vocabulary head on layer j's hidden state (section 2 there; alpha = 0.1). Far is what
its authors' code and transformers 4 measure: half of KL(m || q_N) + KL(m || q_j), m the mean of
both, where the Jensen-Shannon divergence of the paper has its arguments the other way round.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from facttune_ray.errors import UserError

ALPHA = 0.1


def layers_of(which: str, count: int, tied: bool) -> list[int]:
    """Indices of hidden states, 0 the embeddings, of a model with `count` layers.

    low, high: every second one of its lower or upper half, of the 20 lowest or uppermost above 40
    layers. Tied embeddings give the input word itself at 0, so the low ones begin at 2 there.
    """
    if which == "high":
        found = list(range(max(count // 2, count - 20), count, 2))
    elif which == "low":
        found = list(range(min(2, count // 2) if tied else 0, min(count // 2, 20), 2))
        found = found or [min(2, count // 2) if tied else 0]
    else:
        found = [int(n) for n in which.replace(" ", "").split(",")]
    if max(found) >= count:
        raise UserError(
            f"sampling.dola_layers={which}: the model has the layers 0 to {count - 1} below its "
            f"last"
        )
    return found


class Dola:
    """The early layers of one model."""

    def __init__(self, model: Any, which: str) -> None:
        config = model.config.get_text_config(decoder=True)
        tied = bool(config.tie_word_embeddings)
        self.layers = layers_of(which, config.num_hidden_layers, tied)
        self.head = model.get_output_embeddings()

    def contrast(self, hidden: list[torch.Tensor], logits_RV: torch.Tensor) -> torch.Tensor:
        """`hidden`: states [R, H] of each of `layers`, at the token that `logits_RV` are behind."""
        last_RV = logits_RV.float().log_softmax(dim=-1)
        chosen_RV, far_R = None, None
        for state_RH in hidden:
            early_RV = self.head(state_RH).float().log_softmax(dim=-1)
            distance_R = divergence(last_RV, early_RV)
            if chosen_RV is None or far_R is None:
                chosen_RV, far_R = early_RV, distance_R
                continue
            further_R = distance_R > far_R
            chosen_RV = torch.where(further_R[:, None], early_RV, chosen_RV)
            far_R = torch.maximum(far_R, distance_R)
        assert chosen_RV is not None
        least_R1 = last_RV.amax(dim=-1, keepdim=True) + math.log(ALPHA)
        return torch.where(last_RV >= least_R1, last_RV - chosen_RV, -torch.inf)


def divergence(first_RV: torch.Tensor, second_RV: torch.Tensor) -> torch.Tensor:
    """Half of KL(m || first) + KL(m || second) [R] in nats of log-probabilities; m: their mean."""
    middle_RV = torch.logaddexp(first_RV, second_RV) - math.log(2)
    return (middle_RV.exp() * (middle_RV - 0.5 * (first_RV + second_RV))).sum(dim=-1)
