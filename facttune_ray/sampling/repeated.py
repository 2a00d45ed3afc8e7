"""Decoding with transformers' own cache, copied for every row: for models that cannot share.

The class has the same three methods as `SharedRun` in `sampling/shared.py`. The model itself
handles sliding windows, recurrent states and attention biases. All prompts of a pass have one
length.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache

from facttune_ray.sampling.shared import cache_argument

if TYPE_CHECKING:
    from facttune_ray.sampling.dola import Dola


class RepeatedRun:
    def __init__(self, model: Any, prefix: Any, dola: Dola | None = None) -> None:
        """`prefix`: a cache that holds the prefix, or its token ids, which then run with each
        prompt; None if there is no prefix. ValueError for a model that takes no cache."""
        self.model, self.dola, self.prefix = model, dola, prefix
        self.name = cache_argument(model)

    def start(self, prompts: list[list[int]], of_R: np.ndarray, capacity: int) -> torch.Tensor:
        device = self.model.device
        if isinstance(self.prefix, list):
            prompts = [[*self.prefix, *p] for p in prompts]
        if self.prefix is None or isinstance(self.prefix, list):
            self.cache: Any = DynamicCache(config=self.model.config)
        else:
            self.cache = copy.deepcopy(self.prefix)
            self.cache.reorder_cache(torch.zeros(len(prompts), dtype=torch.long, device=device))
        logits_BV = self._forward(torch.tensor(prompts, device=device))
        self.cache.reorder_cache(torch.from_numpy(of_R).to(device))
        return logits_BV

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        return self._forward(tokens_R[:, None])

    def keep(self, kept_K: torch.Tensor) -> None:
        self.cache.reorder_cache(kept_K)

    def _forward(self, ids_RT: torch.Tensor) -> torch.Tensor:
        cache = {self.name: self.cache, "use_cache": True}
        return last_logits(self.model, self.dola, input_ids=ids_RT, **cache)


def last_logits(model: Any, dola: Dola | None, **arguments: Any) -> torch.Tensor:
    """Logits [R, V] float32 behind the last token of each row."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = 1
    out = model(**arguments, output_hidden_states=dola is not None)
    logits_RV = out.logits[:, -1].float()
    if dola is None:
        return logits_RV
    return dola.contrast([out.hidden_states[i][:, -1] for i in dola.layers], logits_RV)


def prefill(model: Any, ids: list[int]) -> Any:
    """A cache that holds the prefix."""
    run = RepeatedRun(model, None)
    run.start([ids], np.zeros(1, dtype=np.int64), 1)
    return run.cache


def ids_only(model: Any, ids: list[int]) -> list[int]:
    """The prefix as its token ids: for caches that take several tokens only while empty."""
    return ids
