"""Write the weights of a DeepSpeed engine as folders that transformers and peft load.

    model/    Hugging Face folder: safetensors, tokenizer, generation settings, model card
    adapter/  with LoRA: the adapter alone, for peft; in model/ it is merged. It is written first,
              so a failed merge loses nothing

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
from facttune_ray.errors import UserError, one_line
from facttune_ray.training import adapters
from facttune_ray.training.card import card
from facttune_ray.training.collectives import together
from facttune_ray.training.portable import both_versions, read_back


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
        from facttune_ray.sampling.weights import DTYPES

        if rank:
            return
        plain, weights = lm, {k: v.to(DTYPES[train.dtype]) for k, v in parameters.items()}
        adapted: list[str] = []
        if train.lora.rank:
            adapter, adapted = Path(out).parent / "adapter", adapters.targets(lm)
            with _completed(adapter) as folder:
                _write_adapter(folder, parameters, train, start, adapted)
            plain = _merged(parameters, train, start, adapter)
            weights = plain.state_dict()
        with _completed(Path(out)) as folder:
            plain.save_pretrained(folder, state_dict=weights, max_shard_size="2GB")
            tokenizer.save_pretrained(folder)
            both_versions(folder, plain.config)
            checked = read_back(folder, plain, tokenizer, weights)
            text = card(train, start, figures, sft, checked=checked, adapted=adapted)
            (folder / "README.md").write_text(text)

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


def _merged(factors: dict[str, Any], train: TrainConfig, start: str, adapter: Path) -> Any:
    """The unquantised model that training began with, and in it the adapter. UserError names the
    adapter, which is written already."""
    from facttune_ray.sampling.weights import load

    try:
        plain = load(start, train.dtype)[1]
        adapters.merge(plain, factors, train.lora)
    except Exception as e:  # whatever it is: the training must not be repeated for it
        raise UserError(
            f"{adapter}: this is the trained adapter; it cannot be merged into {start}: "
            f"{type(e).__name__}: {one_line(e)[:200]}"
        ) from e
    return plain


def _write_adapter(
    folder: Path, factors: dict[str, Any], train: TrainConfig, start: str, targets: list[str]
) -> None:
    """Write the files of peft's save_pretrained. Its keys leave the adapter's name out."""
    from safetensors.torch import save_file

    weights = {
        f"base_model.model.{n.replace(f'.{adapters.NAME}.', '.')}": v.contiguous()
        for n, v in factors.items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapters.config(train.lora, start, targets).save_pretrained(str(folder))


@contextmanager
def _completed(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` at the end."""
    folder = target.with_name(target.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
