"""Settings of topics and prompts: data.sizes and the config section `prompts`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SizesConfig:
    """Topics of each split, drawn by run.seed. Topics beyond them are left out."""

    train: int | None = None  # null: all that the others leave
    val: int | None = None  # null: the share data.val
    dpoval: int = 0  # more topics of the split val, by the name that FactTune's scripts give it
    test: int | None = None  # null: the share data.test


@dataclass(frozen=True)
class PromptsConfig:
    """Topics to prompts (data.source: topics)."""

    method: Literal["template", "llm"] = "template"  # llm: questions about each topic
    domain: Literal["general", "bio", "medicine"] = "general"  # what the topics are
    form: Literal["plain", "chat"] = "plain"  # template: text to go on from, or a request
    template: str = ""  # a text of your own with {topic} in it; "": that of domain and form
    questions: int = 6  # llm: distinct ones a topic (paper, medical questions: 6)
