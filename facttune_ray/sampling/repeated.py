"""Decoding with transformers' own cache, copied for every row: for models that cannot share.

The class has the same three methods as `SharedRun` in `sampling/shared.py`. The model itself
handles sliding windows, recurrent states and attention biases. All prompts of a pass have one
length.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from facttune_ray.sampling.dola import Dola


class RepeatedRun:
    def __init__(self, model: Any, prefix: Any, dola: Dola | None = None) -> None:
        """`prefix`: a cache that holds the prefix; None if there is no prefix."""
        self.model, self.dola, self.prefix = model, dola, prefix

    def start(self, prompts: list[list[int]], of_R: np.ndarray, capacity: int) -> torch.Tensor:
        from transformers import DynamicCache

        if self.prefix is None:
            self.cache = DynamicCache(config=self.model.config)
        else:
            self.cache = copy.deepcopy(self.prefix)
            self.cache.batch_repeat_interleave(len(prompts))
        logits_BV = self._forward(torch.tensor(prompts, device=self.model.device))
        self.cache.batch_select_indices(torch.from_numpy(of_R).to(self.model.device))
        return logits_BV

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        return self._forward(tokens_R[:, None])

    def keep(self, kept_K: torch.Tensor) -> None:
        self.cache.batch_select_indices(kept_K)

    def _forward(self, ids_RT: torch.Tensor) -> torch.Tensor:
        out = self.model(
            input_ids=ids_RT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=self.dola is not None,
        )
        logits_RV = out.logits[:, -1].float()
        if self.dola is None:
            return logits_RV
        return self.dola.contrast(
            [out.hidden_states[i][:, -1] for i in self.dola.layers], logits_RV
        )


def prefill(model: Any, ids: list[int]) -> Any:
    """A cache that holds the prefix."""
    run = RepeatedRun(model, None)
    run.start([ids], np.zeros(1, dtype=np.int64), 1)
    return run.cache
