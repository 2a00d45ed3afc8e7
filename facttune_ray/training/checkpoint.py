"""Save and load the state of a DeepSpeed engine, for any number of workers and any ZeRO stage.

in   engine  of ZeRO 0-3, its torch optimizer on the device or offloaded to the CPU; fp32 to fp16
out  folder  one safetensors file a worker, then checkpoint.json, which completes the checkpoint

Every worker writes the elements that it holds, so saving sends no tensor between workers and no
process holds the whole model. A key names a state, its first element, and the parameter:

     00001-of-00002.safetensors   "exp_avg|512|model.lm_head.weight"  float32 [512]
     checkpoint.json              {"format": 1, "optimizer": "AdamW", "files": {...: bytes},
                                   "shapes": {"model.lm_head.weight": [32, 32], ...},
                                   "steps": 2.0, "state": {"step": 2, "epoch": 0}, ...}

Loading reads the spans that overlap with the elements of a worker of the new engine. Weights are
those of the optimizer (fp32 under bf16 and fp16). Not stored: frozen parameters and buffers, which
come with the model that the engine is built from, and random states, because seeds derive from the
step.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from facttune_ray.errors import UserError
from facttune_ray.training.collectives import together

FORMAT, INDEX = 1, "checkpoint.json"
WEIGHT = "weight"  # the name of the weights, beside the names of the optimizer's states
COUNTERS = ("global_steps", "global_samples", "skipped_steps")  # attributes of the engine
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of fp16's loss scaler


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one parameter that this worker holds."""

    name: str  # of the parameter in engine.module
    start: int  # first element, in the flattened parameter
    numel: int
    home: Any  # the tensor that the torch optimizer steps; its key in optimizer.state
    offset: int  # first element, in the flattened home

    def of(self, tensor: Any) -> Any:
        """These elements of home, or of a state with home's shape: a view [numel]."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


@dataclass(frozen=True)
class Layout:
    """The trained parameters of an engine, and the pieces that this worker holds."""

    shapes: dict[str, list[int]]  # full shape of every trained parameter
    pieces: list[Piece]
    homes: list[Any]
    replicated: bool  # every worker holds all parameters


class Span(NamedTuple):
    """Elements start..stop of a flattened parameter, in a file."""

    start: int
    stop: int
    file: str
    key: str


def save(engine: Any, folder: str, state: dict[str, Any]) -> None:
    """Write a checkpoint; every worker calls it, between two optimizer steps.

    `state`: the caller's progress as plain JSON (step, epoch, best figures), the same on every
    worker. A checkpoint that is in the folder is deleted first. UserError on all workers when one
    worker cannot write.
    """
    import torch.distributed as dist
    from safetensors.torch import save_file

    layout, rank, world = _layout(engine), dist.get_rank(), dist.get_world_size()
    optimizer, here = engine.basic_optimizer, Path(folder)
    states = _state_names(optimizer, layout.homes)
    index = {
        "format": FORMAT,
        "optimizer": _kind(optimizer),
        "shapes": layout.shapes,
        "states": states,
        "steps": _steps(optimizer, layout.homes),
        "groups": [_numbers(group) for group in optimizer.param_groups],
        "scheduler": engine.lr_scheduler.state_dict() if engine.lr_scheduler else None,
        "engine": {name: getattr(engine, name) for name in COUNTERS},
        "scaler": {k: v for k, v in _scaler(engine).items() if k in SCALER},
        "state": state,
    }
    json.dumps(index)  # raise for values that JSON cannot hold, before anything is deleted

    def clear() -> None:
        here.mkdir(parents=True, exist_ok=True)
        (here / INDEX).unlink(missing_ok=True)
        for old in here.glob("*-of-*.safetensors"):
            old.unlink(missing_ok=True)

    def write() -> tuple[str, int]:
        tensors: dict[str, Any] = {}
        for piece in layout.pieces:
            start, stop = 0, piece.numel
            if layout.replicated:
                start, stop = (piece.numel * r // world for r in (rank, rank + 1))
            for name in (WEIGHT, *states) if start < stop else ():
                values = piece.of(_tensor(optimizer, piece.home, name))
                tensors[f"{name}|{piece.start + start}|{piece.name}"] = values[start:stop]
        path = here / f"{rank:05d}-of-{world:05d}.safetensors"
        save_file(tensors, path)
        _sync(path)
        return path.name, path.stat().st_size

    def finish(files: dict[str, int]) -> None:
        if rank == 0:
            path = here / f"{INDEX}.part"
            path.write_text(json.dumps(index | {"files": files}, indent=1))
            _sync(path)
            os.replace(path, here / INDEX)

    cannot = f"{folder}: the checkpoint cannot be written"
    together(clear, cannot)
    written = together(write, cannot)
    files: list[Any] = [None] * world
    dist.all_gather_object(files, written)
    together(lambda: finish(dict(files)), cannot)


def load(engine: Any, folder: str) -> dict[str, Any]:
    """Set weights, optimizer, scheduler and counters; return the `state` that `save` was given.

    Every worker calls it. If the folder is no checkpoint, if the model or the optimizer differs, or
    if a file is missing or torn, all workers raise UserError and nothing is changed. Learning rate
    and the other numbers of the optimizer's groups are set from the checkpoint.
    """
    from safetensors import safe_open

    layout, optimizer = _layout(engine), engine.basic_optimizer

    def check() -> tuple[dict[str, Any], dict[tuple[str, str], list[Span]]]:
        index = _read(folder)
        _check_same(folder, index, engine, layout)
        spans = _spans(folder, index)
        for piece, name in product(layout.pieces, (WEIGHT, *index["states"])):
            stored = sum(b - a for _, a, b in _overlaps(piece, spans[name, piece.name]))
            if stored != piece.numel:
                raise UserError(
                    f"{folder}: holds {stored} of the {piece.numel} elements of {name} of "
                    f'"{piece.name}" from {piece.start} on: take another checkpoint'
                )
        return index, spans

    index, spans = together(check, f"{folder}: the checkpoint cannot be read")
    _make_states(optimizer, layout.homes, index)
    with ExitStack() as stack:
        opened = {name: safe_open(Path(folder) / name, framework="pt") for name in index["files"]}
        files = {name: stack.enter_context(file) for name, file in opened.items()}
        for piece, name in product(layout.pieces, (WEIGHT, *index["states"])):
            values = piece.of(_tensor(optimizer, piece.home, name))
            for span, a, b in _overlaps(piece, spans[name, piece.name]):
                stored = files[span.file].get_slice(span.key)[a - span.start : b - span.start]
                values[a - piece.start : b - piece.start].copy_(stored)
    for group, numbers in zip(optimizer.param_groups, index["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()})
    if engine.lr_scheduler:
        engine.lr_scheduler.load_state_dict(index["scheduler"])
    for name in COUNTERS:
        setattr(engine, name, index["engine"][name])
    _scaler(engine).update(index.get("scaler", {}))
    _refresh(engine)
    return index["state"]


def _layout(engine: Any) -> Layout:
    """Find the weights that the optimizer steps, in each of DeepSpeed's optimizer wrappers."""
    wrapper, stage = engine.optimizer, engine.zero_optimization_stage()
    names = {id(p): name for name, p in engine.module.named_parameters()}
    if getattr(wrapper, "swap_optimizer", False):
        raise UserError(
            "deepspeed: optimizer states on NVMe cannot be checkpointed: set "
            'zero_optimization.offload_optimizer.device to "cpu"'
        )
    pieces: Iterable[Piece]
    if stage == 3:
        params, homes = wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat
        pieces = (_partition_z3(wrapper, p, names) for group in params for p in group)
    elif hasattr(wrapper, "single_partition_of_fp32_groups"):  # ZeRO 1 and 2
        params, homes = wrapper.bit16_groups, wrapper.single_partition_of_fp32_groups
        pieces = _fragments(params, homes, names)
    elif hasattr(wrapper, "fp32_groups_flat_partition"):  # ZeRO 1, bf16 with fp32 gradients
        params, homes = wrapper.bf16_groups, wrapper.fp32_groups_flat_partition
        pieces = _fragments(params, homes, names)
    else:  # ZeRO 0: under bf16 a wrapper has the fp32 copies
        groups = [g["params"] for g in engine.basic_optimizer.param_groups]
        trained = [p for g in groups for p in g if p.requires_grad and p.numel()]
        plain = wrapper is engine.basic_optimizer
        params = [trained] if plain else wrapper.fp16_groups
        homes = trained if plain else [copy for g in wrapper.fp32_groups for copy in g]
        flat = [p for g in params for p in g]
        pieces = (
            Piece(names[id(p)], 0, p.numel(), home, 0) for p, home in zip(flat, homes, strict=True)
        )
    shapes = {names[id(p)]: list(getattr(p, "ds_shape", p.shape)) for g in params for p in g}
    return Layout(shapes, [p for p in pieces if p.numel > 0], list(homes), replicated=stage == 0)


def _fragments(params: list[Any], homes: list[Any], names: dict[int, str]) -> Iterator[Piece]:
    """ZeRO 1 and 2: all, some or no elements of a parameter are in this worker's flat home."""
    for group, home in zip(params, homes, strict=True):
        for p in group:
            if (m := p._hp_mapping) is not None:
                whole, part = m.lp_fragment_address, m.hp_fragment_address
                yield Piece(names[id(p)], whole.start, part.numel, home, part.start)


def _partition_z3(wrapper: Any, p: Any, names: dict[int, str]) -> Piece:
    """ZeRO 3: equal parts of every parameter; the last parts may hold padding."""
    group, offset, size = wrapper.grad_position[wrapper.get_param_id(p)]
    start = size * wrapper._get_param_partition_rank(p)
    numel = min(size, p.ds_numel - start)
    return Piece(names[id(p)], start, numel, wrapper.fp32_partitioned_groups_flat[group], offset)


def _scaler(engine: Any) -> dict[str, Any]:
    """The attributes of fp16's dynamic loss scaler; {} without a scaler."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return vars(scaler) if getattr(scaler, "dynamic", False) else {}


def _refresh(engine: Any) -> None:
    """Copy the optimizer's weights to the weights that the model computes with, as a step does."""
    wrapper = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        wrapper._partition_all_parameters()  # a gathered parameter would keep its old values
        for group in range(len(wrapper.fp32_partitioned_groups_flat)):
            wrapper._reassign_or_swap_out_partitioned_parameters(group)
    elif hasattr(wrapper, "update_lp_params"):
        wrapper.update_lp_params()
    elif hasattr(wrapper, "fp32_groups"):
        for group, copies in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for p, copy in zip(group, copies, strict=True):
                p.data.copy_(copy.data)


def _tensor(optimizer: Any, home: Any, name: str) -> Any:
    """The weights or a state of a home; zeros if the parameter never had a gradient."""
    if name == WEIGHT:
        return home
    state = optimizer.state.get(home, {}).get(name)
    return home.detach().new_zeros(home.shape) if state is None else state


def _state_names(optimizer: Any, homes: list[Any]) -> list[str]:
    """The states with one value an element; [] before the first step."""
    states = ((k, v, h) for h in homes for k, v in optimizer.state.get(h, {}).items())
    return sorted({k for k, v, h in states if k != "step" and getattr(v, "shape", 0) == h.shape})


def _steps(optimizer: Any, homes: list[Any]) -> float:
    """The optimizer's count of steps, which AdamW's bias correction uses."""
    return max((float(optimizer.state.get(h, {}).get("step", 0)) for h in homes), default=0.0)


def _make_states(optimizer: Any, homes: list[Any], index: dict[str, Any]) -> None:
    """Create the checkpoint's states for every home, as the first step would, and set the count of
    steps."""
    import torch

    if not index["states"]:  # saved before the first step, which creates the states
        return optimizer.state.clear()
    on_device = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    for home in homes:
        states = optimizer.state[home]
        for name in {*index["states"]} - states.keys():
            states[name] = torch.zeros_like(home, requires_grad=False)
        device = home.device if on_device else "cpu"
        states["step"] = torch.tensor(index["steps"], dtype=torch.float32, device=device)


def _kind(optimizer: Any) -> str:
    """`AdamW`, `RMSprop centered`: the class and the flags that decide which states exist."""
    flags = (f for f in ("amsgrad", "centered") if optimizer.param_groups[0].get(f))
    return " ".join([type(optimizer).__name__, *flags])


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group, such as lr, betas, weight decay."""
    types = {k: {type(x) for x in (v if isinstance(v, tuple) else (v,))} for k, v in group.items()}
    return {name: group[name] for name, kinds in types.items() if kinds <= {int, float}}


def _read(folder: str) -> dict[str, Any]:
    """The contents of checkpoint.json. UserError unless all files that it lists are complete."""
    path = Path(folder) / INDEX
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise UserError(f"{path}: format {index['format']}, this version reads {FORMAT}")
        files = index["files"].items()
    except FileNotFoundError:
        raise UserError(f"{folder}: no checkpoint: {INDEX} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not the index of a checkpoint: {type(e).__name__} {e}") from None
    for name, size in files:
        file = Path(folder) / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            problem = "is missing" if actual is None else f"is torn: {actual} bytes of {size}"
            raise UserError(f"{file} {problem}: take another checkpoint")
    return index


def _spans(folder: str, index: dict[str, Any]) -> dict[tuple[str, str], list[Span]]:
    """(state, parameter) -> the spans of its elements; reads only the headers of files."""
    from safetensors import SafetensorError, safe_open

    spans: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for name in index["files"]:
        try:
            with safe_open(Path(folder) / name, framework="pt") as file:
                for key in file.keys():
                    state, start, parameter = key.split("|", 2)
                    stop = int(start) + file.get_slice(key).get_shape()[0]
                    spans[state, parameter].append(Span(int(start), stop, name, key))
        except (SafetensorError, ValueError) as e:
            raise UserError(f"{folder}/{name} is torn: {e}: take another checkpoint") from None
    return spans


def _overlaps(piece: Piece, spans: list[Span]) -> Iterator[tuple[Span, int, int]]:
    """(span, first, last + 1): elements of the piece that each span holds, numbered as in the
    parameter."""
    for span in spans:
        a, b = max(piece.start, span.start), min(piece.start + piece.numel, span.stop)
        if a < b:
            yield span, a, b


def _check_same(folder: str, index: dict[str, Any], engine: Any, layout: Layout) -> None:
    theirs, ours = index["shapes"], layout.shapes
    for name in [*theirs, *ours]:
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f'{folder}: of another model: "{name}" is {theirs.get(name, "missing")} there '
                f"and {ours.get(name, 'missing')} here: start again in another folder"
            )
    kind = _kind(engine.basic_optimizer)
    if index["optimizer"] != kind:
        raise UserError(
            f"{folder}: of the optimizer {index['optimizer']}, this run has {kind}: "
            f"set train.optimizer back, or start again in another folder"
        )
    groups = len(engine.basic_optimizer.param_groups)
    if len(index["groups"]) != groups or bool(index["scheduler"]) != bool(engine.lr_scheduler):
        raise UserError(
            f"{folder}: of a run with other parameter groups or another schedule: "
            f"set them back, or start again in another folder"
        )


def _sync(path: Path) -> None:
    """Flush a file to disk, so that after a crash a file of the right length has its content."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
