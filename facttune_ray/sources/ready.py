"""Tables that are read from a folder of FactTune's scripts instead of being made (`data.ready`).

ready.TABLES["questions"]                  ->  ("questions", "answers")
ready.rows(cfg.data, "answers", responses) ->  rows of `answers` of these responses
ready.recipe(cfg.data, "answers", topics)  ->  {"atomic_qs/Ada_aqs.json": "5f0c...", ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from facttune_ray.config import DataConfig
from facttune_ray.sources import confidence, entities, tuning
from facttune_ray.sources.topic_files import file_name
from facttune_ray.storage.records import file_digest

TABLES = {
    "facts": ("facts", "verdicts"),
    "questions": ("questions", "answers"),
    "entities": ("entities",),
}


def rows(data: DataConfig, table: str, responses: list[dict]) -> Iterator[dict]:
    """Rows of the table, topic by topic. UserError names the wrong file and entry."""
    if table in TABLES["facts"]:
        for fact, verdict in tuning.read_scores(data.folder, responses):
            if table == "facts":
                yield fact
            elif verdict is not None:
                yield verdict
    elif table in TABLES["questions"]:
        for pair in confidence.read_questions(data.folder, responses, data.samples):
            yield from pair[TABLES["questions"].index(table)]
    else:
        for topic_rows in entities.read_entities(data.folder, responses, data.entity_samples):
            yield from topic_rows


def recipe(data: DataConfig, table: str, topics: Iterable[str]) -> dict[str, str]:
    """Hashes of the files that the table comes from."""
    files = {
        "facts": [(tuning.SCORES, tuning.SCORES_END)],
        "questions": [
            (confidence.QUESTIONS, confidence.QUESTIONS_END),
            (data.samples, confidence.ANSWERS_END),
        ],
        "entities": [(data.entity_samples, entities.ENTITIES_END)],
    }
    (kind,) = (name for name, tables in TABLES.items() if table in tables)
    names = [
        f"{folder}/{file_name(topic, ending)}"
        for topic in sorted(set(topics))
        for folder, ending in files[kind]
    ]
    return {name: file_digest(data.folder, name) for name in names}
