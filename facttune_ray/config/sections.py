"""The whole config: a frozen dataclass whose fields are the sections of a YAML preset.

The dataclasses are the only source of defaults. Each section stands in the file of its subject.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from facttune_ray.config import stages
from facttune_ray.config.data import DataConfig, PromptsConfig
from facttune_ray.config.evaluation import EvaluationConfig
from facttune_ray.config.llm import LLMConfig
from facttune_ray.config.model import ModelConfig
from facttune_ray.config.sampling import SamplingConfig
from facttune_ray.config.setting import setting
from facttune_ray.config.train import TrainConfig, TuneConfig


@dataclass(frozen=True)
class RunConfig:
    """One run: where its tables go, and its seed."""

    name: str = setting("run", "Name that the report shows.")
    out: str = setting(
        "runs/default", "Folder of every table, model and report of this run.", min_length=1
    )
    seed: int = setting(0, "Every random choice derives from this seed and from row ids.")
    shards: int = setting(
        0,
        "Parts of every table. A topic lies whole in one shard, which is the unit of work and is "
        "held in memory. 0: one shard for each 256 topics, at least 8.",
        ge=0,
    )
    workers: int = setting(
        0, "Most workers of a stage; 0: as many as shards, hosts and limits allow.", ge=0
    )
    max_error_fraction: float = setting(
        0.05, "A stage fails when a larger share of its rows has an error.", ge=0
    )


@dataclass(frozen=True)
class ContenderSettings:
    """Another model or decoder on the run's test topics: its changes to the run's settings."""

    of: str = setting("", "Name of the tuned model to sample from; empty: the base model.")
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    responses: stages.ResponsesConfig = field(default_factory=stages.ResponsesConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


# A contender is a layer over the run's config, not a section with defaults. The annotation names
# the class whose keys and types the layer may have.
ContenderLayer = Annotated[dict[str, Any], ContenderSettings]


@dataclass(frozen=True)
class Config:
    """Everything. Each field is one section of a YAML preset."""

    __pydantic_config__ = {"extra": "forbid"}

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    responses: stages.ResponsesConfig = field(default_factory=stages.ResponsesConfig)
    facts: stages.FactsConfig = field(default_factory=stages.FactsConfig)
    verdicts: stages.VerdictsConfig = field(default_factory=stages.VerdictsConfig)
    questions: stages.QuestionsConfig = field(default_factory=stages.QuestionsConfig)
    answers: stages.AnswersConfig = field(default_factory=stages.AnswersConfig)
    entities: stages.EntitiesConfig = field(default_factory=stages.EntitiesConfig)
    classes: stages.ClassesConfig = field(default_factory=stages.ClassesConfig)
    p_true: stages.PTrueConfig = field(default_factory=stages.PTrueConfig)
    rewards: stages.RewardsConfig = field(default_factory=stages.RewardsConfig)
    groups: stages.GroupsConfig = field(default_factory=stages.GroupsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: dict[str, TuneConfig] = setting({}, "Tuned models: name -> settings of its tuning.")
    contenders: dict[str, ContenderLayer] = setting(
        {}, "Other models or decoders on the test topics: name -> changed settings."
    )
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
