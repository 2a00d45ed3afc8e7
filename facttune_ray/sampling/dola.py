"""DoLa: decoding by contrasting layers (Chuang et al., ICLR 2024, arXiv 2309.03883).

    dola = Dola(model, "high")
    logits_RV = dola.contrast(hidden, logits_RV)     the logits that `pick` draws from

At each step, each row chooses the early layer j whose next-token distribution q_j is farthest from
the last layer's q_N. The score of a token is

    log q_N(x) - log q_j(x)    where q_N(x) >= alpha max q_N,    -inf elsewhere

with q_j the output layer applied to layer j's hidden state (section 2 of the paper; alpha = 0.1).
The distance is the one of the authors' code and of transformers 4: half of KL(m || q_N) +
KL(m || q_j), with m the mean of both. The paper's Jensen-Shannon divergence swaps the arguments.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from facttune_ray.errors import UserError

ALPHA = 0.1


def layers_of(which: str, count: int, tied: bool) -> list[int]:
    """Indices of the early layers' hidden states; 0 is the embeddings. The model has `count`
    layers.

    low, high: every second layer of the lower or upper half, at most 20 layers deep. With tied
    embeddings, state 0 predicts the input word itself, so the low layers begin at 2.
    """
    if which == "high":
        layers = list(range(max(count // 2, count - 20), count, 2))
    elif which == "low":
        first = min(2, count // 2) if tied else 0
        layers = list(range(first, min(count // 2, 20), 2)) or [first]
    else:
        layers = [int(n) for n in which.replace(" ", "").split(",")]
    if max(layers) >= count:
        raise UserError(
            f"sampling.dola_layers={which}: the model has the layers 0 to {count - 1} below its "
            f"last: choose among them"
        )
    return layers


class Dola:
    """The early layers of one model."""

    def __init__(self, model: Any, which: str) -> None:
        config = model.config.get_text_config(decoder=True)
        tied = bool(config.tie_word_embeddings)
        self.layers = layers_of(which, config.num_hidden_layers, tied)
        self.head = model.get_output_embeddings()

    def contrast(self, hidden: list[torch.Tensor], logits_RV: torch.Tensor) -> torch.Tensor:
        """Contrasted logits [R, V]. `hidden`: states [R, H] of each of `layers`, at the token
        whose next token `logits_RV` predict."""
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
        threshold_R1 = last_RV.amax(dim=-1, keepdim=True) + math.log(ALPHA)
        return torch.where(last_RV >= threshold_R1, last_RV - chosen_RV, -torch.inf)


def divergence(first_RV: torch.Tensor, second_RV: torch.Tensor) -> torch.Tensor:
    """Half of KL(m || first) + KL(m || second), [R] in nats; m is their mean. Takes
    log-probabilities."""
    middle_RV = torch.logaddexp(first_RV, second_RV) - math.log(2)
    return (middle_RV.exp() * (middle_RV - 0.5 * (first_RV + second_RV))).sum(dim=-1)
