"""Tables that a folder of FactTune's scripts brings with it (`data.ready`).

ready.TABLES["questions"]                  ->  ("questions", "answers")
ready.rows(cfg.data, "answers", responses) ->  rows of `answers` of these responses
ready.recipe(cfg.data, "answers", topics)  ->  {"atomic_qs/Ada_aqs.json": "5f0c...", ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from facttune_ray.config import DataConfig
from facttune_ray.sources import confidence, entities, factscore, tuning

TABLES = {
    "facts": ("facts", "verdicts"),
    "questions": ("questions", "answers"),
    "entities": ("entities",),
}


def rows(data: DataConfig, table: str, responses: list[dict]) -> Iterator[dict]:
    """Rows of the table, topic by topic. UserError names the file and the entry that is wrong."""
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
        for found in entities.read_entities(data.folder, responses, data.entity_samples):
            yield from found


def recipe(data: DataConfig, table: str, topics: Iterable[str]) -> dict[str, str]:
    """Hashes of the files that the table comes from."""
    files = {
        "facts": [("factscore_outputs", "_fs_out.json")],
        "questions": [("atomic_qs", "_aqs.json"), (data.samples, "_samples.json")],
        "entities": [(data.entity_samples, "_ne_samples.json")],
    }
    (kind,) = (name for name, made in TABLES.items() if table in made)
    names = [
        f"{folder}/{tuning.file_name(topic, ending)}"
        for topic in sorted(set(topics))
        for folder, ending in files[kind]
    ]
    return {name: factscore.file_digest(data.folder, name) for name in names}
