"""groups -> a tuned model: grouped DPO on Ray Train workers with DeepSpeed.

in   groups   one row a prompt (schema.GROUPS)
out  model/   Hugging Face folder; train.jsonl beside it, one line a step:
     {"step": 12, "steps": 60, "epoch": 0, "loss": 0.61, "reward_accuracy": 0.71, "margin": 0.4,
      "pairs": 180}

An optimizer step takes `train.groups_per_step` whole groups over all workers. The loss is the
mean over all their pairs (the reference trainer's), however the groups fall on the workers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facttune_ray.config import TrainConfig, conf_dir
from facttune_ray.errors import UserError

VERSION = 1  # raised when the code changes the trained weights


@dataclass(frozen=True)
class TrainJob:
    """What one training run needs; plain values, sent to every worker."""

    groups: tuple[str, ...]  # Parquet parts
    model: str  # Hugging Face folder training starts from; also the reference
    out: str  # folder that gets model/ and train.jsonl
    train: TrainConfig
    threshold: float  # groups.threshold: which pairs count
    chat: str
    seed: int
    deepspeed: dict[str, Any]


def deepspeed_config(train: TrainConfig) -> dict[str, Any]:
    """conf/deepspeed/zero{N}.json with what TrainConfig decides filled in."""
    path = conf_dir() / "deepspeed" / f"zero{train.zero}.json"
    return json.loads(path.read_text()) | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": train.clip,
        "bf16": {"enabled": train.dtype == "bfloat16"},
    }


def train(job: TrainJob) -> int:
    """Run the job on the Ray cluster. -> optimizer steps; UserError when it cannot be trained."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    cfg = job.train
    storage = Path(job.out) / "ray_train"
    trainer = TorchTrainer(
        worker,  # type: ignore[arg-type]  # its return value comes back in the result
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cfg.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cfg.workers,
            use_gpu=cfg.gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": cfg.gpus} if cfg.gpus else {})},
        ),
        run_config=ray.train.RunConfig(storage_path=str(storage), name="train"),
    )
    with _progress(Path(job.out) / "train.jsonl"):
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    shutil.rmtree(storage, ignore_errors=True)
    if isinstance(outcome, str):
        raise UserError(outcome)
    return outcome


def worker(config: dict[str, Any]) -> int | str:
    """One Ray Train worker. -> steps, or what was wrong with the input: the driver says it."""
    try:
        return _train(config["job"])
    except UserError as e:
        return str(e)


def _train(job: TrainJob) -> int:
    if not job.train.gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import ray.train
    import torch

    from facttune_ray.sampling.transformers import load
    from facttune_ray.training.batches import batch_indices, epoch_order
    from facttune_ray.training.export import export
    from facttune_ray.training.losses import LOSSES, margins
    from facttune_ray.training.reference import forward_logps, reference_logps

    cfg, context = job.train, ray.train.get_context()
    # only inference uses this operator, and building it would need a C++ compiler
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rank, world = context.get_world_rank(), context.get_world_size()
    if not cfg.gpus:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    torch.manual_seed(job.seed)
    tokenizer, model = load(job.model, cfg.dtype)
    model.train()  # dropout is whatever the model's config says: 0 in every current Llama
    groups = _groups(job, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    per_step = max(cfg.groups_per_step, world)
    steps = cfg.epochs * math.ceil(len(groups) / per_step)
    steps = min(steps, cfg.max_steps) if cfg.max_steps else steps
    optimizer = _optimizer(cfg, model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(cfg, step, steps)
        ),
        config=job.deepspeed,
    )
    references = _gather(
        reference_logps(engine, groups[rank::world], pad, engine.device, per_step), len(groups)
    )
    log = Path(job.out) / "train.jsonl"
    step = 0
    with open(log if rank == 0 else os.devnull, "w", buffering=1) as lines:
        for epoch in range(cfg.epochs):
            order = epoch_order(len(groups), seed=job.seed, epoch=epoch)
            for chosen in batch_indices(order, per_step):
                if step == steps:
                    break
                mine = chosen[rank::world]
                # a worker without a group in a short last batch takes part with weight 0
                weight = sum(len(groups[i].pairs) for i in mine) * world
                weight /= sum(len(groups[i].pairs) for i in chosen)
                some = [groups[i] for i in mine or chosen[:1]]
                logps_B, pairs_P2 = forward_logps(engine, some, pad, engine.device)
                reference_B = torch.cat([references[i] for i in mine or chosen[:1]])
                reference_B = reference_B.to(engine.device)
                loss = LOSSES[cfg.loss](
                    logps_B.float(),
                    reference_B,
                    pairs_P2,
                    beta=cfg.beta,
                    label_smoothing=cfg.label_smoothing,
                )
                engine.backward(loss * weight)
                engine.step()
                margin_P = margins(logps_B.detach().float(), reference_B, pairs_P2) * cfg.beta
                figures = _mean_over_workers(
                    [loss.detach(), _accuracy(margin_P), margin_P.mean()], weight
                )
                step += 1
                if step == 1:
                    _check_first(cfg, figures[0])
                line = dict(zip(("loss", "reward_accuracy", "margin"), figures, strict=True))
                line |= {"step": step, "steps": steps, "epoch": epoch}
                line["pairs"] = sum(len(groups[i].pairs) for i in chosen)
                lines.write(json.dumps(line) + "\n")
    export(engine, tokenizer, f"{job.out}/model", rank)
    torch.distributed.barrier()
    return steps


def _groups(job: TrainJob, tokenizer: Any) -> list[Any]:
    """Every group as token ids, in table order; UserError when there is no pair."""
    import pyarrow.parquet as pq

    from facttune_ray.training.batches import tokenize_group

    out = []
    for path in job.groups:
        for row in pq.read_table(path, partitioning=None).to_pylist():
            group = tokenize_group(
                row,
                tokenizer,
                max_length=job.train.max_length,
                threshold=job.threshold,
                chat=job.chat,  # type: ignore[arg-type]
            )
            if group.pairs:
                out.append(group)
    if not out:
        raise UserError(
            f"{Path(job.groups[0]).parent} has no pair of responses whose rewards differ: "
            f"nothing to train on. Check the rewards table, lower groups.threshold, or sample more"
        )
    return out


def _optimizer(cfg: TrainConfig, model: Any) -> Any:
    import torch

    kinds = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    return kinds[cfg.optimizer](model.parameters(), lr=cfg.lr)


def learning_rate(cfg: TrainConfig, step: int, steps: int) -> float:
    """Factor on `train.lr` at a step (from 0): linear warm-up, then constant or down to 0."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    return warm if cfg.schedule == "constant" else warm * (1 - step / steps)


def _accuracy(margin_P: Any) -> Any:
    """Share of pairs in the right order; a pair without any order counts half."""
    return ((margin_P > 0).float() + 0.5 * (margin_P == 0).float()).mean()


def _gather(mine: list[Any], count: int) -> list[Any]:
    """All workers' tensors in group order: worker r computed groups r, r + world, ..."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(count)]


def _mean_over_workers(values: list[Any], weight: float) -> list[float]:
    """Means over all pairs of the step: each worker's mean, weighted by its share of the pairs."""
    import torch
    import torch.distributed as dist

    total = torch.stack([v.float() for v in values]) * weight / dist.get_world_size()
    dist.all_reduce(total)
    return total.tolist()


def _check_first(cfg: TrainConfig, loss: float) -> None:
    """Before the first update policy and reference agree, so DPO's loss is ln 2."""
    if cfg.loss in ("dpo", "cdpo") and abs(loss - math.log(2)) > 0.02:
        raise UserError(
            f"first DPO loss is {loss:.4f}, not ln 2 = 0.6931: the reference log-probabilities "
            f"are not the starting model's (dropout on, or train.dtype too coarse)"
        )


@contextlib.contextmanager
def _progress(log: Path) -> Iterator[None]:
    """A bar that follows the workers' log file while the trainer runs; none off a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    done = threading.Event()

    def follow() -> None:
        with tqdm(desc="training", unit="step", leave=False) as bar:
            while not done.wait(0.5):
                lines = log.read_text().splitlines() if log.exists() else []
                if lines:
                    last = json.loads(lines[-1])
                    bar.total = last["steps"]
                    bar.set_postfix(loss=f"{last['loss']:.3f}", refresh=False)
                    bar.update(len(lines) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
