"""The stages: what each reads, what it runs on, and whether it asks an endpoint.

    prompts -> responses -> facts -+-> verdicts -----------------+-> rewards -> groups -> reference
                                   +-> questions -> answers -+   |
                        responses -+-> entities -------------+-> classes

One file a stage, named like the table that it writes. Each has

    VERSION            raised when the stage's code changes its rows
    recipe(cfg)        the settings that change its rows
    async run(context, shard) -> list of rows
    hints(cfg)         lines for the user before it runs; only where there are any

A stage reads its tables through the context. Stages never import each other. A new stage is a file
and a line of STAGES.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from facttune_ray.config import Config


def _never(cfg: Config) -> bool:
    return False


def _always(cfg: Config) -> bool:
    return True


def _prompts_ask(cfg: Config) -> bool:
    return cfg.data.source == "topics" and cfg.prompts.method == "llm"


def _facts_ask(cfg: Config) -> bool:
    facts = cfg.facts
    return facts.method == "llm" or (facts.method == "rules" and facts.abstention == "llm")


def _verdicts_ask(cfg: Config) -> bool:
    return "chat" in stage("verdicts").estimators(cfg.verdicts)


@dataclass(frozen=True)
class Stage:
    """What a stage needs. Every question about a stage is answered from here."""

    name: str  # of its module and of its table
    reads: tuple[str, ...]  # roles of its input tables; a run gives those that it has
    asks: Callable[[Config], bool] = _never  # whether it sends requests to the LLM of `llm`
    samples: bool = False  # it draws from `sampling.engine`
    gpus: str = ""  # the section of the config that gives its workers GPUs; "": none does

    def endpoint(self, cfg: Config) -> str:
        """The section of the config whose endpoint the stage asks; "" when it asks none."""
        if self.samples:
            return "sampling.llm" if cfg.sampling.engine == "api" else ""
        return "llm" if self.asks(cfg) else ""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prompts", ("topics",), _prompts_ask),
        Stage("responses", ("prompts",), samples=True, gpus="sampling"),
        Stage("facts", ("responses",), _facts_ask),
        Stage("verdicts", ("facts", "knowledge"), _verdicts_ask, gpus="verdicts"),
        Stage("questions", ("facts", "prompts"), _always),
        Stage("answers", ("questions",), samples=True, gpus="sampling"),
        Stage("entities", ("responses",), samples=True, gpus="sampling"),
        Stage(
            "classes",
            ("questions", "answers", "entities"),
            lambda cfg: cfg.classes.method == "llm",
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
        Stage("judgements", ("responses", "base"), _always),
    )
}
# the steps of a run that no stage makes: artifacts, models, and the summary
STEPS = ("knowledge", "topics", "pretrain", *STAGES, "train", "evaluate")


def stage(name: str) -> ModuleType:
    """The stage's module, imported when first used."""
    assert name in STAGES, name
    return importlib.import_module(f"facttune_ray.stages.{name}")
