"""JSON files of FactTune's scripts, which keep one file per topic in one folder per kind.

    file_name("AC/DC", "_generations.json")   ->  "AC%2FDC_generations.json"
    write_each("data", "responses", "_generations.json", responses, content)
        writes data/responses/Ada_generations.json, ... and returns the number of topics

The scripts have no place for ids, errors and evidence. These stand under the key EXTRA, which the
scripts do not read, so that our files come back as the rows that they were made from.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.records import loads
from facttune_ray.storage.schema import digest

EXTRA = "facttune"
NAME_BYTES = 200  # of a file name without its ending; file systems take 255 in all
Rows = Iterable[dict]


def file_name(topic: str, ending: str) -> str:
    """`{topic}{ending}` as the scripts name the file; "AC/DC" becomes "AC%2FDC".

    The scripts fail on a topic with a slash. Different topics get different names.
    """
    safe = re.sub(r"[/\\\x00-\x1f\x7f]|%(?=[0-9A-Fa-f]{2})", lambda m: f"%{ord(m[0]):02X}", topic)
    raw = safe.encode("utf-8", "surrogatepass")
    if len(raw) > NAME_BYTES:
        safe = f"{raw[:NAME_BYTES].decode('utf-8', 'ignore')}~{digest(topic, chars=12)}"
    return safe + ending


def read_json(file: Folder, kind: type, form: str, absent: str) -> Any:
    """Content of a JSON file.

    UserError when the file is absent (`absent` says why that is wrong), when it is not JSON, or
    when its content is not a `kind` (`form` describes the expected content).
    """
    try:
        content = loads(file.read_bytes().decode("utf-8-sig")) if file.exists() else None
    except (ValueError, RecursionError, OSError) as e:
        raise UserError(f"{file.path}: not readable as JSON: {e}") from None
    if content is None:
        raise UserError(f"{file.path}: no such file: {absent}")
    if not isinstance(content, kind):
        raise UserError(f"{file.path}: expected {form}")
    return content


def write_json(file: Folder, value: Any, allow_nan: bool = False) -> None:
    text = json.dumps(value, indent=4, ensure_ascii=False, allow_nan=allow_nan)
    file.write_bytes(text.encode("utf-8") + b"\n")


def write_each(
    folder: str,
    kind: str,
    ending: str,
    responses: Rows,
    content: Callable[[str, list[dict]], Any],
    allow_nan: bool = False,
) -> int:
    """Write `{folder}/{kind}/{topic}{ending}` for each topic of `responses`; return the number of
    files. `content(topic, responses of the topic)` gives a file's content."""
    topics = by_topic(responses)
    for topic, rows in topics.items():
        file = Folder.of(folder) / kind / file_name(topic, ending)
        write_json(file, content(topic, rows), allow_nan)
    return len(topics)


def by_topic(responses: Rows) -> dict[str, list[dict]]:
    """Rows of each topic: its prompts in the order of their first row, then the rows' order."""
    topics: dict[str, dict[str, list[dict]]] = {}
    for r in responses:
        topics.setdefault(r["topic"], {}).setdefault(r["prompt_id"], []).append(r)
    return {t: [r for rows in prompts.values() for r in rows] for t, prompts in topics.items()}


def by_response(rows: Rows) -> dict[str, list[dict]]:
    responses: dict[str, list[dict]] = defaultdict(list)
    for r in rows:
        responses[r["response_id"]].append(r)
    return responses


def facts_by_response(facts: Rows) -> dict[str, list[dict]]:
    """Each response's facts in the order of their positions."""
    return by_response(sorted(facts, key=lambda f: f["position"]))


def response_of(entry: dict, index: int, responses: list[dict], taken: set[str]) -> dict:
    """The response that an entry belongs to; its id is added to `taken`.

    This is the response at the entry's place if it has the entry's text, else the next one with
    this text. LookupError when no response is left that has it.
    """
    written_for = (entry.get(EXTRA) or {}).get("response_id")
    text = entry["generation"]
    for r in [*responses[index : index + 1], *responses]:
        key = r["response_id"]
        if r["text"] == text and key not in taken and written_for in (None, key):
            taken.add(key)
            return r
    raise LookupError(f'no response of the topic has the text "{str(text)[:40]}..."')


@contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Turn the error of a missing key or a wrong type into a UserError that says where it is."""
    try:
        yield
    except KeyError as e:
        raise UserError(f"{where}: {e} is missing") from None
    except (LookupError, TypeError, AttributeError) as e:
        raise UserError(f"{where}: {e}") from None
