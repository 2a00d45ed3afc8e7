"""Build the DeepSpeed engine of a training job.

    deepspeed_config(TrainConfig(deepspeed="zero2", clip=1.0))            the driver
    ->  {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0, ...}
    tokenizer, engine, model = build(job, steps=60, device=device)        every worker
    model(passed)           log p of a pass's response tokens (training/model.py)

A DeepSpeed JSON file holds settings that only DeepSpeed has: stage, offload, buckets. It must not
hold settings that TrainConfig has, so that no setting has two values.
"""

from __future__ import annotations

import fcntl
import functools
import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from facttune_ray.config import TrainConfig, conf_dir
from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.storage.folders import scratch
from facttune_ray.storage.memory import release_memory
from facttune_ray.training.collectives import together

if TYPE_CHECKING:
    from facttune_ray.training.job import TrainJob

# Keys that a DeepSpeed file must not have -> the setting that decides them.
DECIDED = {
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "train_batch_size": "train.groups_per_step",
    "train_micro_batch_size_per_gpu": "train.pass_tokens",
    "gradient_accumulation_steps": "train.pass_tokens",
    "gradient_clipping": "train.clip",
    "bf16": "train.dtype",
    "fp16": "train.dtype",
}
OFFLOADS = ("offload_param", "offload_optimizer")


def deepspeed_config(train: TrainConfig) -> dict[str, Any]:
    """Settings of DeepSpeed: the file that `train.deepspeed` names, in conf/deepspeed or by path,
    with the settings of TrainConfig. UserError names the file and the key."""
    known = {p.stem: p for p in (conf_dir() / "deepspeed").glob("*.json")}
    name = train.deepspeed
    path = known.get(name) or Path(name)
    if not path.is_file():
        raise UserError(
            f'train.deepspeed="{name}": no such file, and not a name in conf/deepspeed: '
            f"{', '.join(sorted(known))}.{did_you_mean(name, known).partition(' Known')[0]}"
        )
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not JSON: {e}") from None
    if not isinstance(settings, dict) or not isinstance(
        settings.get("zero_optimization", {}), dict
    ):
        raise UserError(
            f'{path}: must be a JSON object like {{"zero_optimization": {{"stage": 2}}}}'
        )
    zero = settings.get("zero_optimization", {})
    if zero.get("stage", 0) not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage={zero['stage']!r}: must be 0, 1, 2 or 3")
    for part in OFFLOADS:
        if not isinstance(zero.get(part) or {}, dict):
            raise UserError(
                f"{path}: zero_optimization.{part}={zero[part]!r}: must be an object like "
                f'{{"device": "cpu"}}'
            )
    for key in settings:
        if key in DECIDED:
            raise UserError(f'{path}: leave out "{key}": {DECIDED[key]} decides it')
    if train.dtype == "float16" and not zero.get("stage"):
        raise UserError(
            f"{path}: DeepSpeed does not scale the loss of ZeRO 0, so gradients of "
            f"train.dtype=float16 would vanish: set train.deepspeed=zero1, or another dtype"
        )
    if train.lora.quantize != "none" and zero.get("stage") == 3:
        raise UserError(
            f"{path}: ZeRO 3 cannot partition weights of train.lora.quantize="
            f"{train.lora.quantize}: set train.deepspeed=zero2, or train.lora.quantize=none"
        )
    if states_on_nvme(settings) and (train.save_every or train.best != "none"):
        raise UserError(
            f"{path}: optimizer states on NVMe cannot be checkpointed: set their device to "
            f'"cpu", or train.save_every=0 and train.best=none'
        )
    return {"steps_per_print": 10**9, "wall_clock_breakdown": False} | {
        **settings,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": train.clip,
        "bf16": {"enabled": train.dtype == "bfloat16"},
        # Halve the loss scale as soon as gradients overflow, in every ZeRO stage.
        "fp16": {"enabled": train.dtype == "float16", "initial_scale_power": 16, "hysteresis": 1},
        "zero_allow_untested_optimizer": True,  # torch's optimizers
        "zero_force_ds_cpu_optimizer": False,
    }


def build(job: TrainJob, steps: int, device: Any) -> tuple[Any, Any, Any]:
    """(tokenizer, engine, GroupModel); every worker of a process group calls it.

    `steps`: optimizer steps of the whole run, for the schedule. Dropout is off, because
    log-probabilities are compared with stored log-probabilities, and some passes run twice.
    UserError when the machine or the model does not support the job's settings.
    """
    if not job.train.gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch

    from facttune_ray.training.model import GroupModel, compile_layers

    cfg = job.train
    sharded = job.deepspeed.get("zero_optimization", {}).get("stage") == 3
    # Building this operator would need a C++ compiler, and only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    def check() -> None:
        _check_precision(cfg.dtype, deepspeed.get_accelerator())
        _check_settings(job)

    def prepare() -> tuple[Any, Any, Any]:
        torch.manual_seed(job.seed)
        with ExitStack() as turn:
            if zero:
                turn.enter_context(_turn(job))
            before = _own_memory()
            # With ZeRO 3 no device holds all weights: load them into the host's memory.
            tokenizer, lm = _load(job, "cpu" if zero else device)
            if 2 * (_own_memory() - before) < sum(p.nbytes for p in lm.parameters()):
                turn.close()  # the weights are pages of their file, which all workers share
            if cfg.recompute:
                recompute_layers(lm)
            model, torch_optimizer = GroupModel(lm.eval(), cfg.max_length), optimizer(cfg, lm)
            if zero:
                _partition(model, zero)
        if cfg.compile:
            compile_layers(lm)
        return tokenizer, model, torch_optimizer

    together(check, f"train.deepspeed={cfg.deepspeed}")
    zero = None
    if sharded:  # made before any weights: it makes process groups, for which workers meet
        zero = deepspeed.zero.Init(module=torch.nn.Module(), config_dict_or_path=job.deepspeed)
    tokenizer, model, torch_optimizer = together(prepare, f"{job.model}: cannot be loaded")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch_optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(
            torch_optimizer, lambda step: learning_rate(cfg, step, steps)
        ),
        config=job.deepspeed,
    )
    _undo_first_step(engine)
    engine.eval()
    return tokenizer, engine, model


def learning_rate(cfg: TrainConfig, step: int, steps: int) -> float:
    """Factor on `train.lr` at a step (from 0): linear warm-up, then constant or a decay to 0."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    left = 1 - step / steps
    kinds = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
    return warm * kinds[cfg.schedule]


def optimizer(cfg: TrainConfig, lm: Any) -> Any:
    """torch's optimizer of the trained parameters. Weight decay applies to matrices, not to norms
    and biases, which are vectors."""
    import torch

    kinds = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    trained = [p for p in lm.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, cfg.weight_decay), (vectors, 0.0))
        if params
    ]
    return kinds[cfg.optimizer](groups, lr=cfg.lr)


def recompute_layers(lm: Any) -> None:
    """Keep only the input of each layer, and run the layer again for its gradients. In place.

    transformers' own gradient checkpointing needs training mode, which turns dropout on.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in lm.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"train.recompute: {type(lm).__name__} has no layers that can be run again: set it to "
            f"false, and lower train.pass_tokens instead"
        )
    for layer in layers:
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    import torch
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Layers have no random operation, so no random state is kept.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def grad_norm(engine: Any) -> float | None:
    """The norm of the current gradients; None if DeepSpeed's optimizer computes it in its step."""
    import torch

    if engine.optimizer is not engine.basic_optimizer:
        return None
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def _undo_first_step(engine: Any) -> None:
    """With ZeRO 0 in bfloat16, DeepSpeed takes a step with zero gradients to create the optimizer's
    states. Undo it: weight decay has moved weights, and Adam would count one step too many."""
    if not hasattr(engine.optimizer, "fp32_groups"):
        return
    engine.basic_optimizer.state.clear()
    wrapper = engine.optimizer
    for group, copies in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
        for p, copy in zip(group, copies, strict=True):
            copy.data.copy_(p.data)


@contextmanager
def _turn(job: TrainJob) -> Iterator[None]:
    """The block runs on one worker of a host at a time. A worker that has converted the weights to
    another type or layout holds a copy of its own, and frees it before the next worker loads."""
    lock = scratch(job.out) / f"{socket.gethostname()}.lock"  # hosts may share one /tmp
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when this process ends, even if killed
        yield


def _own_memory() -> int:
    """Bytes of this process's memory that are not pages of a file (Linux; elsewhere all bytes)."""
    held = psutil.Process().memory_info()
    return held.rss - getattr(held, "shared", 0)


def _partition(model: Any, zero: Any) -> None:
    """Keep this worker's part of every parameter and free the rest. `zero`: DeepSpeed's zero.Init.

    zero.Init(module=model) sends the first worker's weights to the others. It needs the whole model
    on all workers at the same time, and writes to it, so no two workers could share its memory.
    """
    for p in model.parameters():
        p.data = p.data.to(zero.local_device)
        zero._convert_to_deepspeed_param(p)
        p.partition()
    release_memory()


def _load(job: TrainJob, device: Any) -> tuple[Any, Any]:
    if job.train.lora.rank:
        from facttune_ray.training import adapters

        return adapters.load(job.model, job.train, device)
    from facttune_ray.sampling import weights

    return weights.load(job.model, job.train.dtype, device=str(device))


def _check_precision(dtype: str, accelerator: Any) -> None:
    supports = {"float16": accelerator.is_fp16_supported, "bfloat16": accelerator.is_bf16_supported}
    if dtype in supports and not supports[dtype]():
        others = (d for d in ("bfloat16", "float16") if d != dtype and supports[d]())
        other = next(others, "float32")
        raise UserError(
            f"train.dtype={dtype}: {accelerator.device_name()} of this machine cannot compute it: "
            f"set {other}"
        )


def _check_settings(job: TrainJob) -> None:
    """UserError unless DeepSpeed accepts its settings and their NVMe folders exist here."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    name = job.train.deepspeed
    try:
        DeepSpeedConfig(job.deepspeed)
    except (ValueError, AssertionError, DeepSpeedConfigError) as e:
        line = " ".join(str(e).split())[:300]
        raise UserError(f"train.deepspeed={name}: DeepSpeed refuses it: {line}") from None
    for part in OFFLOADS:
        offload = _offload(job.deepspeed, part)
        if offload.get("device") != "nvme":
            continue
        folder = offload.get("nvme_path")
        if not folder or not Path(folder).is_dir():
            raise UserError(
                f"train.deepspeed={name}: zero_optimization.{part}.nvme_path={folder} is no folder "
                f"of this machine: mount the drive there, or set it in a copy of the file"
            )
        if not AsyncIOBuilder().is_compatible():
            raise UserError(
                f"train.deepspeed={name}: offload to NVMe needs DeepSpeed's async_io: install "
                f"libaio with its headers (libaio-dev) and a C++ compiler, or offload to the CPU"
            )


def states_on_nvme(settings: dict[str, Any]) -> bool:
    """Whether the optimizer's states are on NVMe, where checkpoints cannot read them."""
    return _offload(settings, "offload_optimizer").get("device") == "nvme"


def _offload(settings: dict[str, Any], part: str) -> dict[str, Any]:
    return settings.get("zero_optimization", {}).get(part) or {}
