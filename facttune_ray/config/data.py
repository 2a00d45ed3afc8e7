"""Topics, prompts and the knowledge source: the config sections `data` and `prompts`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from facttune_ray.config.setting import setting


@dataclass(frozen=True)
class WorldConfig:
    """The embedded world of fictional people (data.source=world)."""

    people: int = setting(400, "People in the world, each a topic.", unit="topics", ge=0)
    train: int = setting(
        150, "Topics whose responses are scored and trained on.", unit="topics", ge=0
    )
    val: int = setting(50, "Topics that choose the round.", unit="topics", ge=0)
    test: int = setting(100, "Topics that the summary measures.", unit="topics", ge=0)


@dataclass(frozen=True)
class SizesConfig:
    """Topics of each split, drawn by run.seed; the other topics are not used."""

    train: int | None = setting(
        None, "Topics to train on; null: all that the other splits leave.", unit="topics", ge=0
    )
    val: int | None = setting(
        None, "Topics that choose the round; null: the share data.val.", unit="topics", ge=0
    )
    dpoval: int = setting(
        0, "More topics of the split val, by the name in FactTune's scripts.", unit="topics", ge=0
    )
    test: int | None = setting(
        None, "Topics that the summary measures; null: the share data.test.", unit="topics", ge=0
    )


@dataclass(frozen=True)
class DataConfig:
    """Topics, prompts and the knowledge source."""

    source: Literal["world", "topics", "responses", "factscore", "tuning"] = setting(
        "world",
        "world: the embedded world. topics: a file of topics, whose prompts the section `prompts` "
        "makes. responses: rows {topic, prompt, response} of any model. factscore: JSONL {topic, "
        "input, output}, with or without FActScore's labels. tuning: questions_per_topic_*.json "
        "and responses/ of FactTune's scripts.",
    )
    folder: str = setting("", "Folder of data.topics, data.files and data.knowledge.")
    topics: str = setting(
        "",
        "source=topics: text, one topic a line; or JSONL, JSON, CSV, Parquet with a topic column.",
    )
    topic_column: str = setting(
        "topic", "source=topics, responses: name of the column that holds the topic."
    )
    sizes: SizesConfig = field(default_factory=SizesConfig)
    files: list[str] = setting(
        [],
        "source=responses: JSONL, JSON, CSV, Parquet; source=factscore: JSONL. The name of a file "
        "is the model of its rows.",
    )
    ready: list[Literal["facts", "questions", "entities"]] = setting(
        [],
        "source=tuning: tables that the folder brings, so that they are not made again: facts "
        "(with verdicts), questions (with answers), entities.",
    )
    samples: str = setting(
        "atomic_qs_samples/llama-7b_20samples", "ready=questions: folder of the sampled answers."
    )
    entity_samples: str = setting(
        "ne_samples/llama7b_20samples", "ready=entities: folder of the sampled entities."
    )
    knowledge: str = setting(
        "", "Articles: rows {title, text} (JSONL, JSON, CSV, Parquet), or a FActScore database."
    )
    groups: str | list[str] = setting(
        "", "`facttune train`: a file, or a list of files, of your own preferences."
    )
    reward: str = setting("rewards", "groups: key of the rewards in these files.")
    val: float = setting(
        0.15, "Share of the topics in the split val, where data.sizes gives no number.", ge=0, le=1
    )
    test: float = setting(
        0.25, "Share of the topics in the split test, where data.sizes gives no number.", ge=0, le=1
    )
    world: WorldConfig = field(default_factory=WorldConfig)


@dataclass(frozen=True)
class PromptsConfig:
    """Topics to prompts (data.source=topics)."""

    method: Literal["template", "llm"] = setting(
        "template", "template: one prompt a topic; llm: an LLM writes questions about each topic."
    )
    domain: Literal["general", "bio", "medicine"] = setting("general", "Kind of the topics.")
    form: Literal["plain", "chat"] = setting(
        "plain", "method=template: a text that the model continues (plain), or a request (chat)."
    )
    template: str = setting(
        "",
        "Your own template, with {topic} in it, or a file with the template; empty: the template "
        "of domain and form.",
    )
    questions: int = setting(
        6, "method=llm: distinct questions a topic (the paper, medical questions: 6).", ge=1
    )
