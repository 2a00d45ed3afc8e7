"""Entities as files of FactTune's scripts, written and read.

    ne_samples/llama-7b_20samples/Ada_ne_samples.json
        {"Write a biography of Ada.": {"Ada was a poet.": {"a poet": ["a writer", ...]}}}

These keys lose an entity that occurs again, and a response whose text does: what they cannot hold
(occurrences, spans, ids, entities without a sample) stands under "facttune" beside the questions,
which the reference's score_metrics never looks up. Our files come back as the rows that they were
made from. Rows are taken a shard at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.sources.confidence import by_response, check_values, usable, write_json
from facttune_ray.sources.tuning import OWN, Rows, by_topic, file_name, read_json
from facttune_ray.storage.schema import TABLES, digest
from facttune_ray.storage.tables import Folder
from facttune_ray.text.entities import before

ENTITIES = "ne_samples"


def write_entities(folder: str, samples: str, responses: Rows, entities: Rows) -> int:
    """`{samples}/{topic}_ne_samples.json`, one a topic of `responses`; returns the files written.

    An entity that occurs again in a response, or a response whose text occurs again, is under the
    reference's keys once, with the samples of the first that has some.
    """
    found = by_response(entities)
    topics = by_topic(responses)
    for topic, rows in topics.items():
        levels: dict[str, Any] = {}
        own = []
        for r in rows:
            if r["prompt"] == OWN:
                raise UserError(f'{topic}: the prompt "{OWN}" is a key of ours: change it')
            here = levels.setdefault(r["prompt"], {})
            here = here.setdefault(r["text"], {}) if r["text"] is not None else {}
            for e in found[r["response_id"]]:
                if e["text"] is not None and usable(e["answers"]):
                    here.setdefault(e["text"], e["answers"])
                one = {k: v for k, v in e.items() if k not in ("topic", "split", "answers")}
                written = e["text"] in here and here[e["text"]] == e["answers"]
                own.append(one | ({} if written else {"answers": e["answers"]}))
        file = Folder.of(folder) / samples / file_name(topic, "_ne_samples.json")
        write_json(file, levels | {OWN: own})
    return len(topics)


def read_entities(folder: str, responses: Rows, samples: str) -> Iterator[list[dict]]:
    """Rows of `entities`, one list a topic of `responses`.

    A file of the reference tells an entity's text alone: it is looked for in the response from
    where the one before ends, so its span is a guess where the text occurs more than once.
    Responses of equal text have the same entities. UserError as in `read_questions`.
    """
    for topic, rows in by_topic(responses).items():
        file = Folder.of(folder) / samples / file_name(topic, "_ne_samples.json")
        found = read_json(file)
        if found is None:
            raise UserError(f'{file.path}: no such file: topic "{topic}" has no entities')
        if not isinstance(found, dict):
            raise UserError(f"{file.path}: expected {{question: {{response: {{entity: [...]}}}}}}")
        own = found.pop(OWN, None)
        _check_entities(found, rows, file.path)
        if own is None:
            yield [e for r in rows if r["text"] is not None for e in _spans(found, r, file.path)]
        else:
            try:
                yield list(_own_entities(own, found, {r["response_id"]: r for r in rows}))
            except (KeyError, TypeError):
                raise UserError(
                    f'{file.path}: "{OWN}" does not match the rest: remove it'
                ) from None


def _check_entities(found: dict, responses: list[dict], where: str) -> None:
    texts = {(r["prompt"], r["text"]) for r in responses}
    prompts = {p for p, _ in texts}
    for prompt, by_text in found.items():
        if prompt not in prompts:
            raise UserError(f'{where}: "{prompt}" is no question of the topic: check the split')
        if not isinstance(by_text, dict):
            raise UserError(f'{where}: "{prompt}": expected {{response: {{entity: [samples]}}}}')
        for text, entities in by_text.items():
            if (prompt, text) not in texts:
                raise UserError(f'{where}: "{prompt}": no response has the text "{text:.40}..."')
            if not isinstance(entities, dict):
                raise UserError(f'{where}: "{prompt}": "{text:.40}...": expected {{entity: [...]}}')
            for entity, values in entities.items():
                check_values(values, f'{where}: "{prompt}": "{entity}"')


def _spans(found: dict, response: dict, where: str) -> Iterator[dict]:
    """Rows of the entities that the reference's file has for one response."""
    prompt, text = response["prompt"], response["text"]
    if prompt not in found:
        raise UserError(f'{where}: no entities of "{prompt}": sample them again')
    if text not in found[prompt]:
        raise UserError(f'{where}: "{prompt}": no entities of the response "{text:.40}..."')
    at = 0
    for entity, values in found[prompt][text].items():
        start = _find(text, entity, at)
        if start is None:
            raise UserError(
                f'{where}: "{prompt}": "{entity}" is not in the response "{text:.40}..."'
            )
        at = start + len(entity)
        row = dict.fromkeys(TABLES["entities"].names)
        row |= {k: response[k] for k in ("response_id", "topic", "split")}
        row |= {"entity_id": digest(response["response_id"], start), "text": entity}
        row |= {"start": start, "end": at, "answers": values}
        yield row | {"prefix": before(text, start)}


def _find(text: str, entity: str, at: int) -> int | None:
    """Where the entity begins: as whole words after `at`, or in any way, or before it."""
    if not entity:
        return None
    words = re.compile(rf"(?<!\w){re.escape(entity)}(?!\w)")
    if found := words.search(text, at):
        return found.start()
    places = (text.find(entity, at), text.find(entity))
    return next((p for p in places if p >= 0), None)


def _own_entities(own: Iterable[dict], found: dict, responses: dict[str, dict]) -> Iterator[dict]:
    for e in own:
        r = responses[e["response_id"]]
        row = e | {k: r[k] for k in ("topic", "split")}
        if "answers" not in e:
            row["answers"] = found[r["prompt"]][r["text"]][e["text"]]
        yield {k: row[k] for k in TABLES["entities"].names}
