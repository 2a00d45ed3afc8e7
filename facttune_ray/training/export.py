"""Write the weights of a DeepSpeed engine as folders that transformers and peft load.

    model/    Hugging Face folder: safetensors, tokenizer, generation settings, model card
    adapter/  with LoRA: the adapter alone, for peft; in model/ it is merged

The parameters are gathered layer by layer, so the only whole copy is in the memory of the first
worker's host.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facttune_ray.config import SFTConfig, TrainConfig
from facttune_ray.training import adapters
from facttune_ray.training.card import card
from facttune_ray.training.collectives import together

A, B = f".lora_A.{adapters.NAME}.weight", f".lora_B.{adapters.NAME}.weight"


def export(
    engine: Any,
    tokenizer: Any,
    out: str,
    rank: int,
    train: TrainConfig,
    start: str,
    figures: dict[str, float],
    sft: SFTConfig | None = None,
) -> None:
    """Write the folder `out`, and `adapter` beside it, in `train.dtype`. A folder appears when it
    is complete.

    Every worker calls it; the first worker writes. `start`: the model that was tuned, as the user
    named it; `figures`: for the model card. UserError on all workers when it cannot be written.
    """
    lm = engine.module.lm
    parameters = gathered(engine, lm, rank, only_trained=bool(train.lora.rank))

    def write() -> None:
        from facttune_ray.sampling.weights import DTYPES, load

        if rank:
            return
        plain, weights = lm, {k: v.to(DTYPES[train.dtype]) for k, v in parameters.items()}
        if train.lora.rank:  # merge into the unquantised model that training began with
            plain = load(start, train.dtype)[1]
            weights = merged(plain.state_dict(), parameters, train.lora.alpha / train.lora.rank)
            with _completed(Path(out).parent / "adapter") as folder:
                _write_adapter(folder, parameters, train, start)
        with _completed(Path(out)) as folder:
            plain.save_pretrained(folder, state_dict=weights, max_shard_size="2GB")
            tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(card(train, start, figures, sft))

    together(write, f"{out}: the model cannot be written")


def gathered(engine: Any, lm: Any, rank: int, only_trained: bool) -> dict[str, Any]:
    """Parameters and buffers by name, in the memory of the first worker's host; {} on the other
    workers. Tied parameters are one tensor. Every worker calls it."""
    import deepspeed

    sharded = engine.zero_optimization_stage() == 3
    kept, copies = {} if only_trained else lm.state_dict().keys(), {}
    out: dict[str, Any] = {}
    for prefix, module in lm.named_modules():
        named = dict(module.named_parameters(prefix, recurse=False))
        named = {n: p for n, p in named.items() if p.requires_grad or not only_trained}
        parameters = list(named.values())
        gather = sharded and bool(parameters)
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=gather):
            if rank:
                continue
            for name, p in named.items():
                if id(p) not in copies:
                    copies[id(p)] = p.detach().to("cpu", copy=True)
                out[name] = copies[id(p)]
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name in kept:
                    out[name] = buffer.detach().to("cpu", copy=True)
    return out


def merged(base: dict[str, Any], factors: dict[str, Any], scale: float) -> dict[str, Any]:
    """`base` with scale * B A added to the weights of every layer that has an adapter."""
    weights = dict(base)
    for name in factors:
        if not name.endswith(A):
            continue
        layer = name.removesuffix(A)
        delta = scale * factors[layer + B].float() @ factors[name].float()
        before = base[f"{layer}.weight"]
        weights[f"{layer}.weight"] = (before.float() + delta).to(before.dtype)
    return weights


def _write_adapter(folder: Path, factors: dict[str, Any], train: TrainConfig, start: str) -> None:
    """Write the files of peft's save_pretrained. Its keys leave the adapter's name out."""
    from safetensors.torch import save_file

    weights = {
        f"base_model.model.{n.replace(f'.{adapters.NAME}.', '.')}": v.contiguous()
        for n, v in factors.items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapters.config(train.lora, start).save_pretrained(str(folder))


@contextmanager
def _completed(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` at the end."""
    folder = target.with_name(target.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
