"""A training job: grouped DPO on Ray Train workers with DeepSpeed.

in   reference  one row a prompt (storage/schema.py): token ids, log-probabilities, rewards
out  model/     Hugging Face folder; with LoRA also adapter/
     train.jsonl    one line a step: {"step": 12, "steps": 60, "epoch": 0, "loss": 0.61,
                    "reward_accuracy": 0.71, "margin": 0.4, "pairs": 180, "tokens": 5210, ...}
     heldout.jsonl  one line a measurement; samples.jsonl: responses drawn at each measurement
     checkpoints/   during training; afterwards `train.keep` checkpoints and the last

The groups of an optimizer step are divided among the workers, and each worker runs as many passes
as its tokens need. The loss is the mean over all pairs (as in the reference trainer) or over
prompts (`train.loss_mean`). It does not depend on how groups fall on workers and passes, so a run
that lost a worker or its driver continues from the last checkpoint with any number of workers,
along the same curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from facttune_ray.config import GroupsConfig, SFTConfig, TrainConfig

VERSION = 2  # raised when the code changes the trained weights


@dataclass(frozen=True)
class TrainJob:
    """The settings of one training run: plain values, sent to every worker."""

    rows: tuple[str, ...]  # Parquet parts of the table `reference`, paths or URIs
    model: str  # Hugging Face folder that training starts from; also the reference model
    out: str  # folder or URI that gets model/ and train.jsonl
    train: TrainConfig
    groups: GroupsConfig  # the pairs and their weights
    seed: int
    deepspeed: dict[str, Any]
    sft: SFTConfig | None = None  # supervised tuning on the groups' responses instead of DPO
    name: str = "train"  # the run's name in trackers, and its folder in train.checkpoints
