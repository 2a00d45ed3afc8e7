"""The stages: what each stage reads and where it runs.

    prompts -> responses -> facts -+-> verdicts -----------------+-> rewards -> groups -> reference
                                   +-> questions -> answers -+   |
                        responses -+-> entities -------------+-> classes

Each stage is a file with the name of the table that it writes. The file has

    VERSION            raised when the stage's code changes its rows
    recipe(cfg)        the settings that change its rows
    async run(context, shard) -> list of rows
    hints(cfg)         optional: lines for the user before the stage runs

A stage reads its tables through the context. Stages never import each other. To add a stage, add a
file and a line in STAGES.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `facttune --help` reads STEPS and must not wait for the config
    from facttune_ray.config import Config


def _facts_ask(cfg: Config) -> bool:
    facts = cfg.facts
    offline = facts.method in ("rules", "spacy")
    return facts.method == "llm" or (offline and facts.abstention == "llm")


def _verdicts_ask(cfg: Config) -> bool:
    return "chat" in stage("verdicts").estimators(cfg.verdicts)


@dataclass(frozen=True)
class Stage:
    """The declaration of a stage. It answers every question about what a stage needs."""

    name: str  # of its module and of its table
    reads: tuple[str, ...]  # roles of its input tables; a run gives the tables that it has
    asks: bool | Callable[[Config], bool] = False  # whether it sends requests to the LLM of `llm`
    samples: bool = False  # whether it samples from `sampling.engine`
    gpus: str = ""  # config section whose `gpus` its workers get; "": no GPU

    def endpoint(self, cfg: Config) -> str:
        """The config section of the endpoint that the stage asks; "" when it asks none."""
        if self.samples:
            return "sampling.llm" if cfg.sampling.engine == "api" else ""
        asks = self.asks(cfg) if callable(self.asks) else self.asks
        return "llm" if asks else ""

    @property
    def runs_on(self) -> str:
        """Where the stage can run, with config sections: "CPU, GPU (verdicts), API (llm)"."""
        places = [] if self.asks is True else ["CPU"]
        if self.gpus:
            places.append(f"GPU ({self.gpus})")
        if self.samples:
            places.append("API (sampling.llm)")
        elif self.asks:
            places.append("API (llm)")
        return ", ".join(places)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prompts", ("topics",), asks=lambda cfg: cfg.prompts.method == "llm"),
        Stage("responses", ("prompts",), samples=True, gpus="sampling"),
        Stage("facts", ("responses",), asks=_facts_ask),
        Stage("verdicts", ("facts", "knowledge"), asks=_verdicts_ask, gpus="verdicts"),
        Stage("questions", ("facts", "prompts"), asks=True),
        Stage("answers", ("questions",), samples=True, gpus="sampling"),
        Stage("entities", ("responses",), samples=True, gpus="sampling"),
        Stage(
            "classes",
            ("questions", "answers", "entities"),
            asks=lambda cfg: cfg.classes.method == "llm",
            gpus="classes",
        ),
        Stage("p_true", ("facts",), gpus="sampling"),
        Stage(
            "rewards",
            ("responses", "facts", "verdicts", "questions", "entities", "classes", "p_true"),
        ),
        Stage("mixes", ("rewards",)),
        Stage("groups", ("rewards", "mixes", "responses")),
        Stage("reference", ("groups", "facts", "verdicts"), gpus="train"),
        Stage("judgements", ("responses", "base"), asks=True),
    )
}
# Every step of a run, in order: what it reads, where it runs. The steps that are no stage make
# artifacts, models and the summary.
STEPS = {
    "knowledge": ("data.knowledge", "CPU"),
    "topics": ("data.topics", "CPU"),
    "pretrain": ("texts of model.pretrain.documents", "CPU"),
    **{s.name: (", ".join(s.reads), s.runs_on) for s in STAGES.values()},
    "train": ("reference", "CPU, GPU (train)"),
    "evaluate": ("tables of the test split", "CPU"),
}


def stage(name: str) -> ModuleType:
    """The stage's module, imported when first used."""
    assert name in STAGES, name
    return importlib.import_module(f"facttune_ray.stages.{name}")
