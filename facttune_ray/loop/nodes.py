"""The nodes of a run as data: what is to be made, and the recipe that decides its content.

A node has a name (its folder in the run) and a step (which command may make it). A recipe never
holds a path or hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facttune_ray.config import Config, SFTConfig, TrainConfig
from facttune_ray.loop.models import Snapshot
from facttune_ray.stages import stage
from facttune_ray.storage.tables import Recipe
from facttune_ray.training import job


@dataclass(frozen=True)
class StageTable:
    """The table of a stage, made shard by shard on the cluster."""

    scope: str  # "base/tune"; "": the run's folder
    step: str  # the stage
    inputs: Mapping[str, str]  # role -> name of a table
    cfg: Config  # the run's, or that of a contender or a second judge
    splits: tuple[str, ...] | None = None  # only rows of these splits; None: all
    model: Snapshot | None = None  # the model that samples, or that training starts from
    reward: str = ""  # stage `groups`: the column, or the mix, that orders responses
    mix: Mapping[str, Mapping[str, float]] | None = None  # stage `mixes`: weights of rewards

    @property
    def name(self) -> str:
        return f"{self.scope}/{self.step}" if self.scope else self.step

    def recipe(self, fingerprints: Mapping[str, str]) -> Recipe:
        """`fingerprints`: role -> fingerprint of the input."""
        module = stage(self.step)
        recipe = module.recipe(self.cfg) | {"stage": self.step, "version": module.VERSION}
        recipe |= {f"input.{role}": fingerprint for role, fingerprint in fingerprints.items()}
        if self.splits is not None:
            recipe["splits"] = list(self.splits)
        if self.reward:
            recipe["reward"] = self.reward
        if self.mix is not None:
            recipe["rewards.mix"] = self.mix
        if self.model is not None:
            recipe |= {"input.model": self.model.fingerprint, "snapshot": self.model.name}
        return recipe


@dataclass(frozen=True)
class DriverTable:
    """A table that the driver writes itself: prompts, and tables read from files."""

    name: str
    step: str  # the table whose schema it has
    rows: Callable[[], Iterable[dict]]
    # applied to the rows of each shard, which holds all rows of a topic
    settle: Callable[[list[dict]], Iterable[dict]] = list


@dataclass(frozen=True)
class Artifact:
    """A folder that is not a table, such as a database."""

    name: str
    step: str
    make: Callable[[Path], dict[str, Any]]  # writes into a local folder -> entries of the manifest


@dataclass(frozen=True)
class Training:
    """A model that is trained by DPO, or supervised if `sft` is given."""

    scope: str
    rows: str  # name of the table `reference` that it is trained on
    start: Snapshot
    train: TrainConfig
    sft: SFTConfig | None = None
    step: str = "train"

    @property
    def name(self) -> str:
        return f"{self.scope}/{self.step}"

    def recipe(self, settings: Recipe, rows: str, seed: int) -> Recipe:
        """`settings`: those of training (`training/recipe.py`); `rows`: fingerprint of the
        table."""
        return settings | {
            "input.reference": rows,
            "input.model": self.start.fingerprint,
            "run.seed": seed,
            "version": job.VERSION,
        }


Node = StageTable | DriverTable | Artifact | Training
