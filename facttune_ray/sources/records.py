"""Rows of a JSONL, JSON, Parquet or CSV file, with the place that an error names.

read("prefs.jsonl", "data.groups")    ->  ("prefs.jsonl:1", {"prompt": "Who is Ada?", ...}), ...
read("prefs.parquet", "data.groups")  ->  ("prefs.parquet: row 1", {...}), ...

.json holds a list of objects, or lines as .jsonl, or {prompt: {"responses": ..., "pairs": ...}}, or
FactTune's {topic: {prompt: {"responses": ..., "factscore_avg": ...}}} of rewards; in a CSV
cells of lists are JSON. Any pyarrow path; .gz, .bz2 and .zst are unpacked.
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
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from facttune_ray.errors import UserError, one_line
from facttune_ray.storage.tables import Folder

Row = dict[str, Any]
PACKED = (".gz", ".bz2", ".zst")
LISTS = ("responses", "rewards", "pairs")  # columns whose CSV cells are JSON
CELL = 2**31 - 1  # characters at most
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read(path: str, key: str = "data.groups") -> Iterator[tuple[str, Row]]:
    """(place, row) in order. UserError when the file is missing, empty, of another kind, or a row
    cannot be read. `key`: the setting that errors name."""
    kind = kind_of(path)
    if kind not in READERS:
        raise UserError(f"{path}: not a .{', .'.join(k[1:] for k in READERS)} file")
    rows = 0
    try:
        for rows, (where, row) in enumerate(READERS[kind](path, key), 1):  # noqa: B007
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected an object with columns, not {row!r:.40}")
            yield where, row
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {rows + 1}: not UTF-8") from None
    except (OSError, pa.ArrowException, csv.Error, EOFError) as e:
        raise UserError(f"{path}: row {rows + 1}: cannot be read: {one_line(e)}") from None
    if not rows:
        raise UserError(f"{path}: the file is empty")


def kind_of(path: str) -> str:
    """ ".jsonl" of "prefs.jsonl.gz"."""
    name = PurePosixPath(path)
    return (name.with_suffix("") if name.suffix in PACKED else name).suffix


def content_digest(path: str, key: str = "data.groups") -> str:
    """Hash of a file's bytes; UserError when it is missing."""
    found = hashlib.sha256()
    with _open(path, key, None) as f:
        while some := f.read(2**20):
            found.update(some)
    return found.hexdigest()[:16]


def _open(path: str, key: str, compression: str | None = "detect") -> Any:
    file = Folder.of(path)
    if file.fs.get_file_info(file.path).type != pafs.FileType.File:
        raise UserError(f"{path}: no such file: check {key}")
    return file.fs.open_input_stream(file.path, compression=compression)


def lines(path: str, key: str) -> Iterator[str]:
    """Lines with their ends. UnicodeDecodeError at the first that is not UTF-8."""
    with io.BufferedReader(_open(path, key), 2**16) as f:
        for number, line in enumerate(f):
            yield line.decode("utf-8-sig" if number == 0 else "utf-8")


def _jsonl(path: str, key: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines(path, key), 1):
        if line.strip():
            yield f"{path}:{number}", _json(f"{path}:{number}", line)


def loads(text: str) -> Any:
    """JSON, with U+FFFD for half a surrogate pair: JSON can carry one, but no file and no table."""
    found = json.loads(text)
    if _SURROGATE.search(text):
        told = json.dumps(found, ensure_ascii=False).encode("utf-16", "surrogatepass")
        found = json.loads(told.decode("utf-16", "replace"))
    return found


def _json(where: str, text: str) -> Any:
    try:
        return loads(text.rstrip())
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON: {in_line(e)}") from None


def in_line(error: Exception) -> str:
    """What is wrong with a line of JSON, and where in it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return one_line(error)


def _whole_json(path: str, key: str) -> Iterator[tuple[str, Any]]:
    text = "".join(lines(path, key))
    try:
        found = loads(text)
    except (ValueError, RecursionError) as e:
        if "Extra data" not in str(e):
            raise UserError(f"{path}: not JSON: {e}") from None
        yield from _jsonl(path, key)
        return
    if _of_objects(found):
        if all(map(_of_objects, found.values())):
            of_topics = [({"topic": t}, of_it) for t, of_it in found.items()]
        else:
            of_topics = [({}, found)]
        found = [t | {"prompt": p} | row for t, of_it in of_topics for p, row in of_it.items()]
    elif isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        raise UserError(f"{path}: expected a list of objects")
    for number, row in enumerate(found, 1):
        yield f"{path}: row {number}", row


def _of_objects(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(v, dict) for v in found.values())


def _parquet(path: str, key: str) -> Iterator[tuple[str, Any]]:
    _open(path, key, None).close()
    file, number = Folder.of(path), 0
    with file.fs.open_input_file(file.path) as f:
        for batch in pq.ParquetFile(f).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def _csv(path: str, key: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(CELL)
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
