"""Decoding without a cache: the whole sequence runs for each token. For models whose own cache is
wrong or cannot be copied.

The class has the same three methods as `SharedRun` in `sampling/shared.py`. All prompts of a pass
have one length, so no row has padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from facttune_ray.sampling.probe import restart
from facttune_ray.sampling.repeated import last_logits

if TYPE_CHECKING:
    from facttune_ray.sampling.dola import Dola


class WholeRun:
    def __init__(self, model: Any, prefix: list[int] | None, dola: Dola | None = None) -> None:
        """`prefix`: token ids, from `repeated.ids_only`."""
        self.model, self.dola, self.prefix = model, dola, prefix or []

    def start(self, prompts: list[list[int]], of_R: np.ndarray, capacity: int) -> torch.Tensor:
        ids = [[*self.prefix, *p] for p in prompts]
        self.ids_RT = torch.tensor(ids, device=self.model.device)
        restart(self.model)
        logits_BV = self._forward()
        self.ids_RT = self.ids_RT[torch.from_numpy(of_R).to(self.model.device)]
        return logits_BV

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        self.ids_RT = torch.cat([self.ids_RT, tokens_R[:, None]], dim=1)
        return self._forward()

    def keep(self, kept_K: torch.Tensor) -> None:
        self.ids_RT = self.ids_RT[kept_K]

    def _forward(self) -> torch.Tensor:
        return last_logits(self.model, self.dola, input_ids=self.ids_RT, use_cache=False)
