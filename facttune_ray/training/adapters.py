"""Low-rank adapters (LoRA, Hu et al. 2021) in a causal LM, by peft.

    tokenizer, lm = load("runs/x/model", TrainConfig(lora=LoraConfig(rank=8)), "cpu")
    ->  the same class of model, with W x + (alpha / rank) B A x in place of W x. Only A and B are
        trained. B starts at 0, so at first the model is the one without adapters

Without `train.lora.targets` every linear layer gets an adapter, except the output layer, routers,
and layers that fail a test with peft. One layer of each kind gets a random adapter, and some of its
outputs must be those of the layer with the merged weight; one forward pass of 8 tokens must call
it. So what training would lose at its end is found before step 1, at the cost of that pass and of
one product of two rows a kind. Experts whose weights are one stacked tensor keep them: peft would
add a whole matrix to each of them in every forward pass. With `train.lora.quantize` the
frozen weights are stored in 8 or 4 bits (QLoRA, Dettmers et al. 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from facttune_ray.config import LoraConfig, TrainConfig
from facttune_ray.errors import UserError, one_line
from facttune_ray.sampling import weights
from facttune_ray.sampling.probe import ids_of

NAME = "default"  # peft's name of a single adapter
A, B = f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"  # ends of the names of the factors
LINEAR = (nn.Linear, Conv1D)  # Conv1D holds its weight transposed
SLICE = 16  # outputs of a layer that the test of its adapter compares


def load(path: str, train: TrainConfig, device: Any) -> tuple[Any, Any]:
    """(tokenizer, causal LM with adapters). `path`: as in `sampling.weights.load`. UserError when
    peft is missing, or when a layer of `train.lora.targets` cannot have an adapter that `export`
    can merge."""
    if find_spec("peft") is None:
        raise UserError('train.lora.rank: needs peft: pip install "facttune_ray[lora]", or peft')
    import peft

    lora = train.lora
    tokenizer, lm = weights.load(
        path, train.dtype, device=str(device), quantize=lora.quantize, key="train.lora.quantize"
    )
    lm.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # the test's adapters are random, too
        chosen = _layers(lora, lm, path)
    peft.inject_adapter_in_model(config(lora, path, _ends(chosen, lm)), lm, adapter_name=NAME)
    if adapted(lm) != chosen:
        raise RuntimeError(f"{path}: peft adapted {adapted(lm) ^ chosen} against its test")
    return tokenizer, lm.to(device) if lora.quantize == "none" else lm


def config(lora: LoraConfig, base: str, targets: Iterable[str]) -> Any:
    """peft's settings. `base`: the name of the model under the adapter; `targets`: names of layers,
    or their ends."""
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes any number
        target_modules=sorted(targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def adapted(lm: nn.Module) -> set[str]:
    """Names of the layers that have an adapter."""
    from peft.tuners.lora import LoraLayer

    return {name for name, module in lm.named_modules() if isinstance(module, LoraLayer)}


def delta(a_RI: torch.Tensor, b_OR: torch.Tensor, lora: LoraConfig) -> torch.Tensor:
    """What an adapter adds to the weight [O, I] of its layer: (alpha / rank) B A, in float32."""
    return lora.alpha / lora.rank * (b_OR.float() @ a_RI.float())


def merge(lm: nn.Module, factors: dict[str, torch.Tensor], lora: LoraConfig) -> None:
    """Add each adapter to the weight of its layer, in place. `lm`: the model without adapters;
    `factors`: A and B of every layer by their names in the model with adapters. The sum is
    computed in float32 and rounded once."""
    with torch.no_grad():
        for name in factors:
            if not name.endswith(A):
                continue
            layer: Any = lm.get_submodule(name.removesuffix(A))
            added = delta(factors[name], factors[name.removesuffix(A) + B], lora)
            added = added.T if isinstance(layer, Conv1D) else added
            weight = (layer.weight.float() + added).to(layer.weight.dtype)
            layer.weight = nn.Parameter(weight, requires_grad=False)


def targets(lm: nn.Module) -> list[str]:
    """Names for peft's config that match the layers with an adapter and no other."""
    return sorted(_ends(adapted(lm), lm))


# ---------------------------------------------------------------- which layers


def _layers(lora: LoraConfig, lm: Any, path: str) -> set[str]:
    """Names of the layers that get an adapter. A layer stands for all layers of its kind: the same
    end of the name, class and size."""
    head = lm.get_output_embeddings()
    linear = {n: m for n, m in lm.named_modules() if isinstance(m, LINEAR) and m is not head}
    wanted = _named(lora.targets, linear) if lora.targets else linear.keys() - _routers(lm)
    kinds = {n: (n.rsplit(".", 1)[-1], type(m), m.weight.shape) for n, m in linear.items()}
    first = {kinds[n]: n for n in sorted(wanted, reverse=True)}
    called = _called(lm, {n: kinds[n] for n in wanted})
    reasons = {
        kind: _reason(lora, lm.config, name, linear[name])
        if kind in called
        else "the model reads its weight without running the layer"
        for kind, name in first.items()
    }
    if lora.targets:
        for kind, reason in reasons.items():
            if reason:
                raise UserError(
                    f"train.lora.targets: {kind[0]} cannot have an adapter: {reason}: remove it"
                )
    chosen = {n for n in wanted if not reasons[kinds[n]]}
    if not chosen:
        whys = "; ".join(f"{kind[0]}: {why}" for kind, why in reasons.items() if why)
        raise UserError(
            f"train.lora.rank: no layer of {path} ({type(lm).__name__}) can have an adapter: set "
            f"it to 0 ({whys[:160] or 'it has no linear layers'})"
        )
    return chosen


def _named(targets: Iterable[str], linear: Iterable[str]) -> set[str]:
    """Names that end with one of `targets`. UserError for a target that no name ends with."""
    wanted: set[str] = set()
    for target in targets:
        found = {n for n in linear if n == target or n.endswith(f".{target}")}
        if not found:
            ends = sorted({n.rsplit(".", 1)[-1] for n in linear})
            raise UserError(
                f'train.lora.targets: no linear layer ends with "{target}": choose among '
                f"{', '.join(ends)}"
            )
        wanted |= found
    return wanted


def _routers(lm: nn.Module) -> set[str]:
    """Names of the linear layers beside experts that give one number an expert, or a single one,
    such as the gate of a shared expert. A changed router would move tokens between experts."""
    modules, routers = dict(lm.named_modules()), set()
    for name, module in modules.items():
        experts = _experts(module)
        if experts < 2:
            continue
        block = name.rpartition(".")[0]
        for beside, layer in modules.items():
            if beside.startswith(f"{block}.") and not beside.startswith(f"{name}."):
                if isinstance(layer, LINEAR) and _outputs(layer) in (1, experts):
                    routers.add(beside)
    return routers


def _experts(module: nn.Module) -> int:
    """The number of experts that a module holds, in one stacked tensor or as a list; 0: none."""
    if isinstance(module, nn.ModuleList):
        kinds = {type(m) for m in module if not isinstance(m, LINEAR)}
        has_layers = any(isinstance(m, LINEAR) for m in module.modules())
        return len(module) if len(kinds) == 1 and has_layers else 0
    if isinstance(module, nn.Conv1d):  # its weight has three dimensions, too
        return 0
    return max((p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3), default=0)


def _outputs(layer: nn.Module) -> int:
    return layer.nf if isinstance(layer, Conv1D) else layer.out_features  # type: ignore[return-value]


@torch.no_grad()
def _called(lm: Any, kinds: dict[str, Any]) -> set[Any]:
    """The kinds of layers that a forward pass calls. Some recurrent layers hand the weight of a
    layer to their own kernel instead: an adapter of this layer would have no effect."""
    called: set[Any] = set()
    hooks = [
        lm.get_submodule(name).register_forward_hook(lambda *_, kind=kind: called.add(kind))
        for name, kind in kinds.items()
    ]
    try:
        lm.eval()(input_ids=torch.tensor([ids_of(lm, 8)], device=lm.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return called


@torch.no_grad()
def _reason(lora: LoraConfig, model: Any, name: str, layer: Any) -> str:
    """Why a layer cannot have an adapter; "" if it can. peft adapts the layer alone, with random
    factors, and some outputs must be those of the layer with the merged weight. `model`: the
    model's config, by which peft refuses or renames some layers."""
    import peft

    end = name.rsplit(".", 1)[-1]
    holder = nn.Module()
    holder.config = model
    holder.add_module(end, layer)
    try:
        peft.inject_adapter_in_model(config(lora, "", [end]), holder, adapter_name=NAME)
        wrapped: Any = holder.get_submodule(end)
        a_RI, b_OR = wrapped.lora_A[NAME].weight, wrapped.lora_B[NAME].weight
    except (ValueError, TypeError, RuntimeError, AttributeError) as e:
        return f"peft: {one_line(e)[:200]}"
    # Quantised weights are integers: their layers take the type of the adapter.
    dtype = layer.weight.dtype if layer.weight.is_floating_point() else a_RI.dtype
    generator = torch.Generator().manual_seed(0)
    x_2I = torch.randn(2, a_RI.shape[1], generator=generator).to(layer.weight.device, dtype)
    b_OR.copy_(torch.randn(b_OR.shape, generator=generator) * lora.rank / (lora.alpha or 1))
    try:
        adapted_2S = wrapped(x_2I)[:, :SLICE].float()
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError) as e:
        return f"peft: {one_line(e)[:200]}"
    added_SI = delta(a_RI, b_OR[:SLICE], lora)
    rounding = torch.finfo(dtype).eps
    if layer.weight.is_floating_point():
        merged_2S = _part(layer, added_SI)(x_2I).float()
    else:  # the adapter will be merged into the unquantised layer
        merged_2S = layer(x_2I)[:, :SLICE].float() + x_2I.float() @ added_SI.T
        rounding = torch.finfo(torch.bfloat16).eps
    bound = (1e-4 + 4 * rounding) * float(merged_2S.abs().max())
    if not float((adapted_2S - merged_2S).abs().max()) <= bound:
        return "its adapter does not give what the merged weight gives"
    return ""


def _part(layer: Any, added_SI: torch.Tensor) -> Any:
    """The layer with its first outputs only, and `added_SI` added to their weights."""
    part, outputs = copy.copy(layer), len(added_SI)
    part._parameters = dict(layer._parameters)
    if isinstance(layer, Conv1D):
        weight, part.nf = layer.weight[:, :outputs] + added_SI.T, outputs
    else:
        weight, part.out_features = layer.weight[:outputs] + added_SI, outputs
    part.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias[:outputs], requires_grad=False)
    return part


def _ends(chosen: set[str], lm: nn.Module) -> set[str]:
    """The shortest names that match the chosen layers and no other module: ends, such as "q_proj",
    where no other module has this end."""
    others = {n.rsplit(".", 1)[-1] for n, _ in lm.named_modules() if n not in chosen}
    return {n if (end := n.rsplit(".", 1)[-1]) in others else end for n in chosen}
