"""One file a stage. Each has

    VERSION            raised when the stage's code changes its rows
    recipe(cfg)        the settings that change its rows
    async run(context, shard) -> list of rows of the table named like the stage
    hints(cfg)         lines for the user before it runs; only where there are any

and reads its input tables through the context. Stages never import each other.
"""

from __future__ import annotations

import importlib
from types import ModuleType

STAGES = (
    "prompts",
    "responses",
    "facts",
    "verdicts",
    "questions",
    "answers",
    "entities",
    "classes",
    "p_true",
    "rewards",
    "mixes",
    "groups",
    "reference",
    "judgements",
)

STEPS = ("knowledge", "topics", "pretrain", *STAGES, "train", "evaluate")  # with what is no stage


def stage(name: str) -> ModuleType:
    """The stage's module, imported when first used."""
    assert name in STAGES, name
    return importlib.import_module(f"facttune_ray.stages.{name}")
