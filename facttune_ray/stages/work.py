"""One table to make, as it is sent to the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from facttune_ray.config import Config
from facttune_ray.storage.schema import SPLITS


@dataclass(frozen=True)
class Work:
    """One table to make, as it is sent to the workers. Names are relative to `cfg.run.out`."""

    stage: str
    output: str  # table to write: "base/tune/facts"
    inputs: Mapping[str, str]  # role -> table: {"responses": "base/tune/responses"}
    cfg: Config
    splits: tuple[str, ...] = SPLITS  # only rows of these splits
    snapshot: str = ""  # model that samples: "base", "facttune_fs/round_1"
    model_path: str = ""  # its Hugging Face folder
    reward: str = ""  # groups: the column, or the mix, that orders responses
    mix: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # mixes: their weights
    moments: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # mean, sd of each
    base_url: str = ""  # LLM endpoint; "" when the stage asks none
    meter: str = ""  # name of the run's meter actor
    knowledge: str = ""  # SQLite knowledge source
