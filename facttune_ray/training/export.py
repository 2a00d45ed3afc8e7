"""Weights of a DeepSpeed engine -> folders that transformers and peft load.

    model/    Hugging Face folder: safetensors, tokenizer, generation settings, model card
    adapter/  with LoRA, beside it: the adapter alone, for peft; model/ has it merged

The parameters of one layer are gathered at a time, so the only whole copy is the first worker's,
in its host's memory.
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
    """Write the folder `out`, and `adapter` beside it, each whole or not at all, in `train.dtype`.

    Every worker calls it; the first writes. `start`: the model that was tuned, as the user named
    it; `figures`: for the model card. UserError on all workers when the disk does not take it.
    """
    lm = engine.module.lm
    found = gathered(engine, lm, rank, only_trained=bool(train.lora.rank))

    def write() -> None:
        from facttune_ray.sampling.weights import DTYPES, load

        if rank:
            return
        plain, weights = lm, {k: v.to(DTYPES[train.dtype]) for k, v in found.items()}
        if train.lora.rank:  # onto what training began with, also where it trained on 4 bits of it
            plain = load(start, train.dtype)[1]
            weights = merged(plain.state_dict(), found, train.lora.alpha / train.lora.rank)
            with _appearing(Path(out).parent / "adapter") as folder:
                _write_adapter(folder, found, train, start)
        with _appearing(Path(out)) as folder:
            plain.save_pretrained(folder, state_dict=weights, max_shard_size="2GB")
            tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(card(train, start, figures, sft))

    together(write, f"{out}: the model cannot be written")


def gathered(engine: Any, lm: Any, rank: int, only_trained: bool) -> dict[str, Any]:
    """Parameters and buffers by name, in the first worker's host memory; {} on the others. Tied
    ones are one tensor. Every worker calls it."""
    import deepspeed

    sharded = engine.zero_optimization_stage() == 3
    kept, copies = {} if only_trained else lm.state_dict().keys(), {}
    found: dict[str, Any] = {}
    for prefix, module in lm.named_modules():
        own = [(n, p) for n, p in module.named_parameters(prefix, recurse=False)]
        own = [(n, p) for n, p in own if p.requires_grad or not only_trained]
        parameters = [p for _, p in own]
        gather = sharded and bool(parameters)
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=gather):
            if rank:
                continue
            for name, p in own:
                if id(p) not in copies:
                    copies[id(p)] = p.detach().to("cpu", copy=True)
                found[name] = copies[id(p)]
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name in kept:
                    found[name] = buffer.detach().to("cpu", copy=True)
    return found


def merged(base: dict[str, Any], factors: dict[str, Any], scale: float) -> dict[str, Any]:
    """`base` with scale * B A added to the weight of every layer that has an adapter."""
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
    """As peft's save_pretrained does, whose keys leave the adapter's name out."""
    from safetensors.torch import save_file

    weights = {
        f"base_model.model.{n.replace(f'.{adapters.NAME}.', '.')}": v.contiguous()
        for n, v in factors.items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapters.config(train.lora, start).save_pretrained(str(folder))


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder that stands at `target` once it is complete."""
    folder = target.with_name(target.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
