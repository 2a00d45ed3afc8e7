"""The cost of a training: seconds, tokens that pass a model, memory. One meter per process.

meter = Meter()
policy = meter.count(load(path)[1])
meter.mark(); step(); meter.mark(); step(); meter.mark()     the first step is not counted
meter.figures(pairs=45)
->  {"pairs_per_s": 4.1, "training_pairs_per_s": 4.1, "wall_s": 11.0, "tokens_a_pair": 833.8,
     "padded_tokens_a_pair": 876.9, "peak_mb": 324, "losses": [0.6931, 0.6916]}
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import memory

Groups = Sequence[dict[str, Any]]


class Meter:
    """Times steps, counts the tokens that a model's layers are given, and measures memory from its
    creation on. Create it after the imports and before a model is loaded."""

    def __init__(self, device: str = "cpu") -> None:
        self.real = self.padded = 0
        self.marks: list[tuple[float, int, int]] = []
        self.cpu_s: list[float] = []  # at each mark
        self.losses: list[float] = []
        try:
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        except OSError:
            pass
        self.before = memory("VmRSS")
        self.gpu = device == "cuda"
        if self.gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()

    def count(self, model: Any) -> Any:
        def add(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            mask = kwargs.get("attention_mask")
            self.padded += ids.numel()
            self.real += ids.numel() if mask is None else int(mask.sum())

        model.base_model.register_forward_pre_hook(add, with_kwargs=True)
        return model

    def now(self) -> tuple[float, int, int]:
        """Seconds, tokens, padded tokens so far."""
        if self.gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), self.real, self.padded

    def mark(self) -> None:
        """Call before the first step and after each step."""
        self.marks.append(self.now())
        self.cpu_s.append(time.process_time())

    def figures(self, pairs: int, first: Sequence[float] = (0.0, 0, 0)) -> dict[str, Any]:
        """`pairs`: pairs per step. `first`: seconds, tokens and padded tokens per step that were
        spent before training; `training_pairs_per_s` leaves them out, as in a second epoch. If
        `cpus_used` is well below the number of threads, other programs ran: measure again."""
        steps = len(self.marks) - 2
        if steps < 1:
            raise ValueError(f"{len(self.marks)} marks: one step to warm up and one to measure")
        wall_s, real, padded = (
            (end - start) / steps + more
            for start, end, more in zip(self.marks[1], self.marks[-1], first, strict=True)
        )
        took_s = self.marks[-1][0] - self.marks[1][0]
        return {
            "pairs_per_s": round(pairs / wall_s, 2),
            "training_pairs_per_s": round(pairs / (wall_s - first[0]), 2),
            "wall_s": round(wall_s, 2),
            "cpus_used": round((self.cpu_s[-1] - self.cpu_s[1]) / took_s, 2),
            "tokens_a_pair": round(real / pairs, 1),
            "padded_tokens_a_pair": round(padded / pairs, 1),
            "peak_mb": self._peak_mb(),
            "losses": [round(x, 4) for x in self.losses],
        }

    def _peak_mb(self) -> int | None:
        """All memory allocated on the GPU; on a CPU the memory beyond the imports."""
        if self.gpu:
            import torch

            return torch.cuda.max_memory_allocated() >> 20
        top = memory("VmHWM")
        return None if top is None or self.before is None else (top - self.before) >> 20


def tiny(vocab: int = 8) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )


def warm_up() -> None:
    """Run a step of a tiny model, because torch and transformers import modules at first use."""
    import torch

    model = tiny()
    rmsprop = torch.optim.RMSprop(model.parameters())
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    rmsprop.step()


def load(path: str, cfg: dict[str, Any]) -> tuple[Any, Any]:
    from facttune_ray.sampling.weights import load

    return load(path, cfg["dtype"], device=cfg["device"])


def optimizer(model: Any, cfg: dict[str, Any]) -> Any:
    import torch

    return torch.optim.RMSprop(model.parameters(), lr=cfg["learning_rate"])
