"""Rows of Parquet, JSONL, JSON and CSV files, each with the place that an error message names.

    read("prefs.jsonl", "data.groups")    ->  ("prefs.jsonl:1", {"prompt": "Who is Ada?", ...}), ...
    read("prefs.parquet", "data.groups")  ->  ("prefs.parquet: row 1", {...}), ...
    blocks("s3://bucket/wiki.jsonl.zst")  ->  Block(path, first=1, count=512, data=b"{..."), ...
        neighbouring rows, which another process may parse: block.rows()
    files(["s3://bucket/wiki/*.parquet", "more/"])  ->  the paths of all files

This is the project's only reader of row files: of articles, topics, responses and preferences.
Parquet and compression (gzip, bzip2, xz, zstd) are recognised by the first bytes of a file. JSON,
JSONL and CSV are recognised by the beginning of the text, and by the name where the beginning does
not tell. A JSON file holds a list of objects, or {prompt: {"responses": ...,
"pairs": ...}}, or FactTune's rewards {topic: {prompt: {"responses": ..., "factscore_avg": ...}}}.
In a CSV file the cells of LISTS are JSON.
"""

from __future__ import annotations

import bz2
import csv
import fnmatch
import glob
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facttune_ray.errors import UserError, one_line
from facttune_ray.storage.folders import Folder, explain, join

Row = dict[str, Any]
BLOCK_BYTES = 2**20  # text that one process parses at once
BLOCK_ROWS = 1024  # largest number of rows of a block of Parquet, JSON or CSV
# columns whose CSV cells are JSON
LISTS = (
    "responses", "rewards", "pairs", "generations", "ratings", "completions", "conversations",
    "history", "messages",
)  # fmt: skip
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException, csv.Error)
MAX_CELL = 2**31 - 1  # characters of a CSV cell
PARQUET = b"PAR1"
BOM = b"\xef\xbb\xbf"
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")  # the files of a folder
UNPACK: dict[bytes, Callable[[Any], Any]] = {  # first bytes of a compressed file -> its reader
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda raw: pa.CompressedInputStream(raw, "zstd"),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one file."""

    path: str
    first: int  # number of the first row, or of the first line of JSONL, from 1
    count: int  # rows, or lines
    data: bytes | pa.RecordBatch | Sequence[Any]  # lines of JSONL, rows of Parquet, parsed rows

    def rows(self) -> Iterator[tuple[str, Any]]:
        """(place, row) in order. UserError at the first line that is not JSON."""
        if isinstance(self.data, bytes):
            for number, line in enumerate(self.data.split(b"\n"), self.first):
                if line and not line.isspace():
                    where = f"{self.path}:{number}"
                    yield where, _json(where, _decoded(where, line))
            return
        parsed = self.data.to_pylist() if isinstance(self.data, pa.RecordBatch) else self.data
        for number, row in enumerate(parsed, self.first):
            yield f"{self.path}: row {number}", row


def read(path: str, key: str = "data.groups") -> Iterator[tuple[str, Row]]:
    """(place, row) in the file's order.

    `key`: the setting that error messages name. UserError when the file is missing, empty or of an
    unknown format, or when a row cannot be read.
    """
    rows = 0
    for block in blocks(path, key):
        for where, row in block.rows():
            rows += 1
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected an object with columns, not {row!r:.40}")
            yield where, row
    if not rows:
        raise UserError(f"{path}: the file is empty")


def blocks(
    path: str,
    key: str = "data.groups",
    skip: int = 0,
    columns: Sequence[str] = (),
    size: int = BLOCK_BYTES,
) -> Iterator[Block]:
    """All rows of a file in blocks, without the first `skip` rows (lines of JSONL).

    `columns`: the columns of a Parquet file that are read, if it has any of them; () for all.
    `size`: about how many bytes a block has. UserError when the file cannot be read.
    """
    done = skip
    try:
        with _opened(path, key) as (kind, file):
            for block in BLOCKS[kind](path, file, skip, columns, size):
                yield block
                done = block.first + block.count - 1
    except UNREADABLE as e:
        why = explain(e) or one_line(e)
        raise UserError(f"{path}: row {done + 1}: cannot be read: {why}") from None


def count(path: str) -> int:
    """The number of rows: exact for Parquet and JSON, else the number of line ends. 0 for a
    missing file, because its reader will report it. UserError when it cannot be read."""
    file = Folder.of(path)
    if not file.is_file():
        return 0
    try:
        with _opened(path, "", any_text=True) as (kind, stream):
            if kind == "parquet":
                return pq.ParquetFile(stream).metadata.num_rows
            if kind != "json":
                return sum(part.count(b"\n") for part in iter(lambda: stream.read(2**20), b""))
        return sum(block.count for block in blocks(path))
    except UNREADABLE as e:
        raise UserError(f"{path}: cannot be read: {explain(e) or one_line(e)}") from None


def lines(path: str, key: str) -> Iterator[str]:
    """Lines with their ends. UserError when the file cannot be read, or at the first line that is
    not UTF-8."""
    try:
        with _opened(path, key, any_text=True) as (_, file):
            yield from _lines(path, file)
    except UNREADABLE as e:
        why = explain(e) or one_line(e)
        raise UserError(f"{path}: cannot be read: {why}: check {key}") from None


def content_digest(path: str, key: str = "data.groups") -> str:
    """Hash of a file's bytes, for recipes. UserError when the file cannot be read."""
    try:
        with _raw(path, key) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()[:16]
    except OSError as e:
        raise UserError(f"{path}: {explain(e) or one_line(e)}: check {key}") from None


def file_digest(folder: str, name: str) -> str:
    """`content_digest` of a file in data.folder."""
    return content_digest(join(folder, name), "data.folder and the file's name")


def files(inputs: Sequence[Any]) -> list[str]:
    """The files that paths, globs and folders (their row files, sorted) name, here or on an object
    store. UserError for a name without a file."""
    found: list[str] = []
    for item in map(str, inputs):
        place = Folder.of(item)
        if place.is_file():
            found.append(item)
        elif place.exists():
            names = [n for n in place.files() if named(n) in ENDINGS]
            if not names:
                raise UserError(f"{item}: no {', '.join(ENDINGS)} file in this folder")
            found += [join(item, n) for n in names]
        else:
            matches = _matches(item)
            if not matches:
                raise UserError(f"{item}: no such file or folder")
            found += files(matches)
    return found


def named(path: str) -> str:
    """The format by the name's ending: ".jsonl" for "prefs.jsonl.gz"."""
    name = PurePosixPath((path.partition("?")[0] if "://" in path else path).lower())
    return (name.with_suffix("") if name.suffix in COMPRESSED else name).suffix


def _matches(pattern: str) -> list[str]:
    """Sorted paths that fit a glob."""
    if "://" not in pattern:
        return sorted(glob.glob(pattern, recursive=True))
    # A URI's query begins with "?", so "?" is not a wildcard in a URI.
    pattern, mark, query = pattern.partition("?")
    start = re.split(r"[*\[]", pattern, maxsplit=1)[0]
    if start == pattern or start.count("/") < 3:
        return []
    head = start.rpartition("/")[0]
    folder = Folder.of(head + mark + query)
    return [(folder / n).uri for n in folder.files() if fnmatch.fnmatch(f"{head}/{n}", pattern)]


# ---------------------------------------------------------------- bytes and formats


def _raw(path: str, key: str) -> Any:
    file = Folder.of(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file: check {key}")
    return io.BufferedReader(_Bytes(file), BLOCK_BYTES)


class _Bytes(io.RawIOBase):
    """The bytes of a file. Each read is retried while an object store refuses it or stalls."""

    def __init__(self, file: Folder) -> None:
        self._folder, self._at = file, 0
        self._file = file.again(lambda: file.fs.open_input_file(file.path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        self._at = (self._file.size() if start is None else start) + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._folder.again(lambda: self._file.read_at(len(buffer), self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _opened(path: str, key: str, any_text: bool = False) -> Iterator[tuple[str, Any]]:
    """(format, the file's unpacked bytes). `any_text`: a text of an unknown format is "text"."""
    with _raw(path, key) as raw:
        head = raw.peek(BLOCK_BYTES)
        if head.startswith(PARQUET):
            yield "parquet", raw
            return
        unpack = next((u for mark, u in UNPACK.items() if head.startswith(mark)), None)
        if unpack:
            with unpack(raw) as packed, io.BufferedReader(packed, BLOCK_BYTES) as unpacked:
                yield _kind(path, unpacked.peek(BLOCK_BYTES), any_text), unpacked
        else:
            yield _kind(path, head, any_text), raw


def _kind(path: str, head: bytes, any_text: bool) -> str:
    """The format of a text by its beginning; by the name where the beginning does not tell."""
    text, name = head.removeprefix(BOM).lstrip(), named(path)
    line, _, rest = text.partition(b"\n")
    if text.startswith(b"{") and line.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{"):
        return "jsonl"
    if text.startswith((b"{", b"[")):
        whole = text.startswith(b"[") or name == ".json"
        spread = name not in (".jsonl", ".ndjson") and not line.rstrip().endswith(b"}")
        return "json" if whole or spread else "jsonl"
    if name in (".jsonl", ".ndjson", ".json", ".csv"):
        return name[1:].replace("ndjson", "jsonl")
    if any_text:
        return "text"
    if text and b"," not in line:
        raise UserError(f"{path}: its content is neither Parquet nor JSON nor CSV")
    return "csv"


def _lines(path: str, file: Any) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        yield _decoded(f"{path}:{number}", line.removeprefix(BOM) if number == 1 else line)


def _decoded(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8: save the file as UTF-8") from None


# ---------------------------------------------------------------- blocks of each format


def _jsonl(path: str, file: Any, skip: int, columns: Any, size: int) -> Iterator[Block]:
    """Blocks of about `size` bytes that end at line ends."""
    number, rest, read = 1, b"", b"..."
    while read:
        read = file.read(size)
        data = rest + read
        end = data.rfind(b"\n") + 1 if read else len(data)
        data, rest = data[:end], data[end:]
        if number == 1:
            data = data.removeprefix(BOM)
        count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        if count and number + count - 1 > skip:
            drop = max(0, skip - number + 1)
            kept = data.split(b"\n", drop)[-1] if drop else data
            yield Block(path, number + drop, count - drop, kept)
        number += count


def _parquet(path: str, file: Any, skip: int, columns: Sequence[str], size: int) -> Iterator[Block]:
    table = pq.ParquetFile(file)
    chosen = [name for name in table.schema_arrow.names if name in columns] or None
    number = 1
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        if number + about.num_rows - 1 <= skip:
            number += about.num_rows
            continue
        rows = max(1, min(BLOCK_ROWS, size * about.num_rows // max(1, about.total_byte_size)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=chosen):
            drop = min(max(0, skip - number + 1), len(batch))
            if drop < len(batch):
                yield Block(path, number + drop, len(batch) - drop, batch[drop:])
            number += len(batch)


def _csv(path: str, file: Any, skip: int, columns: Any, size: int) -> Iterator[Block]:
    csv.field_size_limit(MAX_CELL)
    rows = csv.DictReader(_lines(path, file), strict=True)
    return _parsed(path, (_cells(f"{path}: row {n}", r) for n, r in enumerate(rows, 1)), skip)


def _cells(where: str, row: dict) -> Row:
    if None in row or None in row.values():
        raise UserError(f"{where}: not as many cells as the first line has columns")
    lists = {k: _json(where, row[k]) for k in LISTS if row.get(k)}
    return {k: v for k, v in row.items() if k not in LISTS} | lists


def _whole_json(path: str, file: Any, skip: int, columns: Any, size: int) -> Iterator[Block]:
    text = "".join(_lines(path, file))
    try:
        value = loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON: {one_line(e)}") from None
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
    return _parsed(path, iter(value), skip)


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())


def _parsed(path: str, rows: Iterator[Any], skip: int) -> Iterator[Block]:
    number = 1
    while batch := list(islice(rows, BLOCK_ROWS)):
        kept = batch[max(0, skip - number + 1) :]
        if kept:
            yield Block(path, number + len(batch) - len(kept), len(kept), kept)
        number += len(batch)


BLOCKS: dict[str, Callable[..., Iterator[Block]]] = {
    "jsonl": _jsonl,
    "json": _whole_json,
    "parquet": _parquet,
    "csv": _csv,
}


# ---------------------------------------------------------------- JSON


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
