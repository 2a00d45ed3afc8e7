"""Rows of a JSONL, JSON, Parquet or CSV file, each with the place that an error message names.

    read("prefs.jsonl", "data.groups")    ->  ("prefs.jsonl:1", {"prompt": "Who is Ada?", ...}), ...
    read("prefs.parquet", "data.groups")  ->  ("prefs.parquet: row 1", {...}), ...

A .json file holds a list of objects, or lines as in .jsonl, or {prompt: {"responses": ..., "pairs":
...}}, or FactTune's rewards {topic: {prompt: {"responses": ..., "factscore_avg": ...}}}. In a CSV
file the cells of lists are JSON. Any path of pyarrow is read; .gz, .bz2 and .zst are unpacked.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facttune_ray.errors import UserError, one_line
from facttune_ray.storage.folders import Folder, explain, join

Row = dict[str, Any]
COMPRESSED = (".gz", ".bz2", ".zst")
LISTS = ("responses", "rewards", "pairs")  # columns whose CSV cells are JSON
MAX_CELL = 2**31 - 1  # characters of a CSV cell
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read(path: str, key: str = "data.groups", kind: str = "") -> Iterator[tuple[str, Row]]:
    """(place, row) in the file's order.

    `key`: the setting that error messages name. `kind`: the format, such as ".jsonl"; by default
    the file name's ending. UserError when the file is missing, empty or of an unknown format, or
    when a row cannot be read.
    """
    kind = kind or kind_of(path)
    if kind not in READERS:
        raise UserError(f"{path}: not a .{', .'.join(k[1:] for k in READERS)} file")
    rows = 0
    try:
        for rows, (where, row) in enumerate(READERS[kind](path, key), 1):  # noqa: B007
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected an object with columns, not {row!r:.40}")
            yield where, row
    except (OSError, pa.ArrowException, csv.Error, EOFError) as e:
        why = explain(e) or one_line(e)
        raise UserError(f"{path}: row {rows + 1}: cannot be read: {why}") from None
    if not rows:
        raise UserError(f"{path}: the file is empty")


def kind_of(path: str) -> str:
    """The format by the name's ending: ".jsonl" for "prefs.jsonl.gz"."""
    name = PurePosixPath(path)
    return (name.with_suffix("") if name.suffix in COMPRESSED else name).suffix


def content_digest(path: str, key: str = "data.groups") -> str:
    """Hash of a file's bytes, for recipes. UserError when the file cannot be read."""
    try:
        with _open(path, key, None) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()[:16]
    except OSError as e:
        raise UserError(f"{path}: {explain(e) or one_line(e)}: check {key}") from None


def file_digest(folder: str, name: str) -> str:
    """`content_digest` of a file in data.folder."""
    return content_digest(join(folder, name), "data.folder and the file's name")


def _open(path: str, key: str, compression: str | None = "detect") -> Any:
    file = Folder.of(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file: check {key}")
    return file.fs.open_input_stream(file.path, compression=compression)


def lines(path: str, key: str) -> Iterator[str]:
    """Lines with their ends. UserError at the first line that is not UTF-8."""
    with io.BufferedReader(_open(path, key), 2**16) as f:
        for number, line in enumerate(f, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8: save the file as UTF-8") from None


def _jsonl(path: str, key: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines(path, key), 1):
        if line.strip():
            yield f"{path}:{number}", _json(f"{path}:{number}", line)


def loads(text: str) -> Any:
    """JSON with U+FFFD for each half of a surrogate pair, which no table can hold."""
    value = json.loads(text)
    if _SURROGATE.search(text):
        encoded = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        value = json.loads(encoded.decode("utf-16", "replace"))
    return value


def _json(where: str, text: str) -> Any:
    try:
        return loads(text.rstrip())
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not JSON: {e.msg} at column {e.colno}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON: {one_line(e)}") from None


def _whole_json(path: str, key: str) -> Iterator[tuple[str, Any]]:
    text = "".join(lines(path, key))
    try:
        value = loads(text)
    except (ValueError, RecursionError) as e:
        if "Extra data" not in str(e):
            raise UserError(f"{path}: not JSON: {e}") from None
        yield from _jsonl(path, key)
        return
    if _holds_objects(value):
        if all(map(_holds_objects, value.values())):
            topics = [({"topic": topic}, prompts) for topic, prompts in value.items()]
        else:
            topics = [({}, value)]
        value = [t | {"prompt": p} | row for t, prompts in topics for p, row in prompts.items()]
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of objects")
    for number, row in enumerate(value, 1):
        yield f"{path}: row {number}", row


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())


def _parquet(path: str, key: str) -> Iterator[tuple[str, Any]]:
    _open(path, key, None).close()
    file, number = Folder.of(path), 0
    with file.fs.open_input_file(file.path) as f:
        for batch in pq.ParquetFile(f).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def _csv(path: str, key: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(MAX_CELL)
    for number, row in enumerate(csv.DictReader(lines(path, key), strict=True), 1):
        where = f"{path}: row {number}"
        if None in row or None in row.values():
            raise UserError(f"{where}: not as many cells as the first line has columns")
        lists = {k: _json(where, row[k]) for k in LISTS if row.get(k)}
        yield where, {k: v for k, v in row.items() if k not in LISTS} | lists


READERS: dict[str, Callable[[str, str], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".json": _whole_json,
    ".parquet": _parquet,
    ".csv": _csv,
}
