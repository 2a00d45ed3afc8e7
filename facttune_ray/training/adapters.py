"""Low-rank adapters (LoRA, Hu et al. 2021) in a causal LM, by peft.

    tokenizer, lm = load("runs/x/model", TrainConfig(lora=LoraConfig(rank=8)), "cpu")
    ->  the same class of model, with W x + (alpha / rank) B A x in place of W x. Only A and B are
        trained. B starts at 0, so at first the model is the one without adapters

With `train.lora.quantize` the frozen weights are stored in 8 or 4 bits (QLoRA, Dettmers et al.
2023).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from facttune_ray.config import LoraConfig, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.sampling import weights

NAME = "default"  # peft's name of a single adapter


def load(path: str, train: TrainConfig, device: Any) -> tuple[Any, Any]:
    """(tokenizer, causal LM with adapters). `path`: as in `sampling.weights.load`. UserError when
    peft is missing, when no layer's name ends with an entry of `train.lora.targets`, or for the
    transposed layers of GPT-2."""
    if find_spec("peft") is None:
        raise UserError('train.lora.rank: needs peft: pip install "facttune_ray[lora]", or peft')
    import peft

    lora = train.lora
    tokenizer, lm = weights.load(
        path, train.dtype, device=str(device), quantize=lora.quantize, key="train.lora.quantize"
    )
    lm.requires_grad_(False)
    _check_targets(lora, lm, path)
    peft.inject_adapter_in_model(config(lora, path), lm, adapter_name=NAME)
    return tokenizer, lm.to(device) if lora.quantize == "none" else lm


def config(lora: LoraConfig, base: str) -> Any:
    """peft's settings; `base`: the name of the model under the adapter."""
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes any number
        target_modules=list(lora.targets) or "all-linear",  # all but the output layer
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def _check_targets(lora: LoraConfig, lm: Any, path: str) -> None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if any(isinstance(m, Conv1D) for m in lm.modules()):
        raise UserError(
            f"train.lora.rank: {path} is a {type(lm).__name__}, whose layers hold their weights "
            f"transposed, so adapters cannot be merged: set it to 0"
        )
    linear = [n for n, m in lm.named_modules() if isinstance(m, nn.Linear)]
    for target in lora.targets:
        if not any(n == target or n.endswith(f".{target}") for n in linear):
            ends = sorted({n.rsplit(".", 1)[-1] for n in linear})
            raise UserError(
                f'train.lora.targets: no linear layer ends with "{target}": choose among '
                f"{', '.join(ends)}"
            )
