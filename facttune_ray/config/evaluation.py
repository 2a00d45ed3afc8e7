"""Held-out measurement: the config section `evaluation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from facttune_ray.config.setting import setting


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out measurement."""

    samples: int = setting(10, "Responses to each val or test prompt.", ge=1)
    tuned: bool = setting(True, "Sample and score the tuned models.")
    select: Literal["net", "error_rate", "correct"] = setting(
        "net", "Figure on the split val that chooses the round."
    )
    resamples: int = setting(2000, "Bootstrap resamples over topics.", ge=0)
    estimator: str = setting(
        "auto",
        "Estimator of a second judge on the test facts. auto: the first of minicheck, nli, lexical "
        "and local_lm that verdicts.estimator does not use; minicheck, nli and local_lm count only "
        "if verdicts names their model. none: only verdicts.estimator.",
    )
    judge_samples: int = setting(
        1, "Responses to a test prompt that an LLM compares with the base model's; 0: none.", ge=0
    )
    k: list[int] = setting(
        [],
        "K of f1@K and recall@K, each at least 1; []: the median and the largest number of facts.",
    )
    examples: int = setting(5000, "Most responses in the report.", unit="rows", ge=0)
    most: int = setting(
        65_536,
        "Most measured responses of a model, and most with rewards; of a larger set, whole shards "
        "up to this number. Each takes less than 1 KB of memory.",
        unit="rows",
        ge=1,
    )
