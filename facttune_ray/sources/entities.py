"""Entities and their samples as files of FactTune's scripts, written and read.

    ne_samples/llama-7b_20samples/Ada_ne_samples.json
        {"Write a biography of Ada.": {"Ada was a poet.": {"a poet": ["a writer", ...]}}}

These keys lose an entity that occurs twice in a response, and a response whose text occurs twice.
Occurrences, spans, ids and entities without a sample therefore stand under EXTRA, beside the
questions: the scripts' score_metrics never looks up that key. Functions take the rows of one shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.sources.confidence import check_values, usable
from facttune_ray.sources.topic_files import (
    EXTRA,
    Rows,
    by_response,
    by_topic,
    file_name,
    read_json,
    write_each,
)
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import TABLES, digest
from facttune_ray.text.entities import before

ENTITIES, ENTITIES_END = "ne_samples", "_ne_samples.json"


def write_entities(folder: str, samples: str, responses: Rows, entities: Rows) -> int:
    """`{samples}/{topic}_ne_samples.json`, one per topic of `responses`; returns the files written.

    Under the scripts' keys an entity stands once for each text of a response, with the samples of
    the first occurrence that has any.
    """
    entities_of = by_response(entities)

    def content(topic: str, rows: list[dict]) -> dict[str, Any]:
        prompts: dict[str, Any] = {}
        extra = []
        for r in rows:
            if r["prompt"] == EXTRA:
                raise UserError(f'{topic}: the prompt "{EXTRA}" is a key of ours: change it')
            texts = prompts.setdefault(r["prompt"], {})
            here = texts.setdefault(r["text"], {}) if r["text"] is not None else {}
            for e in entities_of[r["response_id"]]:
                if e["text"] is not None and usable(e["answers"]):
                    here.setdefault(e["text"], e["answers"])
                entry = {k: v for k, v in e.items() if k not in ("topic", "split", "answers")}
                written = e["text"] in here and here[e["text"]] == e["answers"]
                extra.append(entry | ({} if written else {"answers": e["answers"]}))
        return prompts | {EXTRA: extra}

    return write_each(folder, samples, ENTITIES_END, responses, content, allow_nan=True)


def read_entities(folder: str, responses: Rows, samples: str) -> Iterator[list[dict]]:
    """Rows of `entities`, one list per topic of `responses`.

    A file of the scripts holds only an entity's text. The text is searched in the response from
    the end of the entity before it, so the span is a guess if the text occurs more than once.
    Responses of equal text have the same entities. UserError as in `read_questions`.
    """
    for topic, rows in by_topic(responses).items():
        file = Folder.of(folder) / samples / file_name(topic, ENTITIES_END)
        form = "{question: {response: {entity: [...]}}}"
        content = read_json(file, dict, form, f'topic "{topic}" has no entities')
        extra = content.pop(EXTRA, None)
        _check_entities(content, rows, file.path)
        if extra is None:
            with_text = (r for r in rows if r["text"] is not None)
            yield [e for r in with_text for e in _spans(content, r, file.path)]
        else:
            try:
                yield list(_extra_entities(extra, content, {r["response_id"]: r for r in rows}))
            except (KeyError, TypeError):
                raise UserError(
                    f'{file.path}: "{EXTRA}" does not match the rest: remove it'
                ) from None


def _check_entities(content: dict, responses: list[dict], where: str) -> None:
    texts = {(r["prompt"], r["text"]) for r in responses}
    prompts = {p for p, _ in texts}
    for prompt, by_text in content.items():
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


def _spans(content: dict, response: dict, where: str) -> Iterator[dict]:
    """Rows of the entities that a file of the scripts has for one response."""
    prompt, text = response["prompt"], response["text"]
    if prompt not in content:
        raise UserError(f'{where}: no entities of "{prompt}": sample them again')
    if text not in content[prompt]:
        raise UserError(f'{where}: "{prompt}": no entities of the response "{text:.40}..."')
    at = 0
    for entity, values in content[prompt][text].items():
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
    """Index of the entity in the text: as whole words after `at`, or as any characters after `at`,
    or as any characters before it."""
    if not entity:
        return None
    words = re.compile(rf"(?<!\w){re.escape(entity)}(?!\w)")
    if match := words.search(text, at):
        return match.start()
    places = (text.find(entity, at), text.find(entity))
    return next((p for p in places if p >= 0), None)


def _extra_entities(
    extra: Iterable[dict], content: dict, responses: dict[str, dict]
) -> Iterator[dict]:
    for e in extra:
        r = responses[e["response_id"]]
        row = e | {k: r[k] for k in ("topic", "split")}
        if "answers" not in e:
            row["answers"] = content[r["prompt"]][r["text"]][e["text"]]
        yield {k: row[k] for k in TABLES["entities"].names}
