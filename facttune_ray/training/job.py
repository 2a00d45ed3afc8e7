"""reference -> a tuned model: grouped DPO on Ray Train workers with DeepSpeed.

in   reference  one row a prompt (schema.REFERENCE): token ids, log-probabilities, rewards
out  model/     Hugging Face folder; with LoRA adapter/ beside it, and always
     train.jsonl    one line a step: {"step": 12, "steps": 60, "epoch": 0, "loss": 0.61,
                    "reward_accuracy": 0.71, "margin": 0.4, "pairs": 180, "tokens": 5210, ...}
     heldout.jsonl  one line a measurement; samples.jsonl: what the model wrote at it
     checkpoints/   while it trains, and after it `train.keep` of them and the last

An optimizer step takes whole groups over all workers, each worker in as many passes as its tokens
need. The loss is the mean over all their pairs (the reference trainer's), or over their prompts
(`train.loss_mean`), however the groups fall on workers and passes. So a run that lost a worker, or
its driver, goes on from the last checkpoint with any number of workers, along the same curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from facttune_ray.config import GroupsConfig, SFTConfig, TrainConfig

VERSION = 2  # raised when the code changes the trained weights


@dataclass(frozen=True)
class TrainJob:
    """What one training run needs; plain values, sent to every worker."""

    rows: tuple[str, ...]  # Parquet parts of the table `reference`, paths or URIs
    model: str  # Hugging Face folder training starts from; also the reference
    out: str  # folder or URI that gets model/ and train.jsonl
    train: TrainConfig
    groups: GroupsConfig  # which pairs count, and how much
    seed: int
    deepspeed: dict[str, Any]
    sft: SFTConfig | None = None  # supervised tuning on the groups' responses instead of DPO
    name: str = "train"  # of the run: in trackers, and of its folder in train.checkpoints
