"""Weights of a DeepSpeed engine -> a Hugging Face folder (safetensors, tokenizer, config)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def export(engine: Any, tokenizer: Any, out: str, rank: int) -> None:
    """Write the folder whole or not at all. Every rank calls it; rank 0 writes.

    Under ZeRO 3 the parameters are gathered for the time of the copy.
    """
    import deepspeed

    sharded = engine.zero_optimization_stage() == 3
    parameters = list(engine.module.parameters()) if sharded else []
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=sharded):
        if rank != 0:
            return
        weights = {k: v.detach().float().cpu() for k, v in engine.module.state_dict().items()}
        folder, target = Path(out + ".tmp"), Path(out)
        shutil.rmtree(folder, ignore_errors=True)
        engine.module.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
