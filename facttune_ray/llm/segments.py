"""Files of the ledger: Arrow IPC files with rows sorted by key.

    (folder / "6f1c...-000000.arrow").write_bytes(segment_bytes(table))     rows sorted by key
    Segment.load(folder / "6f1c...-000000.arrow").find(prefixes, keys)  ->  (key, row), ...

A look-up is a binary search in prefixes, the first 8 bytes of each key, and a read of the record
batches that have a match.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa

from facttune_ray.storage.folders import Folder, explain

T = TypeVar("T")
SCHEMA = pa.schema(
    [
        ("key", pa.binary(32)),
        ("text", pa.string()),
        ("refusal", pa.string()),  # the model's refusal; null: it did not refuse
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("prompt_chars", pa.int64()),  # characters of the messages or the prompt
        ("served_model", pa.string()),
        ("cost_usd", pa.float64()),  # at the price of that day
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),  # of the attempt that succeeded; null in batch mode
        ("created_s", pa.float64()),  # Unix time
        ("stage", pa.string()),  # that paid
        ("run", pa.string()),  # that paid
        ("crc", pa.uint32()),  # checksum, see ledger.crc
        # older ledgers lack these
        ("top_logprobs", pa.string()),  # JSON, where the request asked for it
        ("thoughts", pa.string()),  # of a reasoning model; not part of `text`
        ("counted", pa.string()),  # source of the tokens: usage | total | estimate
    ]
)
ROWS = 4096  # rows of a record batch: the least that a look-up reads
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class Segment:
    """One file: its prefixes in order, and the first row of each record batch."""

    def __init__(self, file: Folder, prefixes: np.ndarray, starts: np.ndarray) -> None:
        self.file, self.prefixes, self.starts = file, prefixes, starts

    @staticmethod
    def load(file: Folder) -> Segment | None:
        """Read the prefixes; None when the file is torn."""

        def prefixes(reader: pa.ipc.RecordBatchFileReader) -> list[np.ndarray]:
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            return [prefixes_of(batch.column(0)) for batch in batches]

        try:
            keys = _read(file, prefixes, ["key"])
        except (pa.ArrowInvalid, pa.ArrowSerializationError, pa.ArrowTypeError):
            return None
        except OSError as e:
            if e.errno is not None or explain(e):  # of the file system, not of Arrow
                raise
            return None
        starts = np.cumsum([0, *(len(k) for k in keys)])
        return Segment(file, np.concatenate(keys) if keys else np.empty(0, np.uint64), starts)

    def find(self, prefixes: np.ndarray, keys: list[bytes]) -> Iterator[tuple[bytes, dict]]:
        """(key, row) of those sorted `keys` that the file has; `prefixes` are theirs."""
        first = np.searchsorted(self.prefixes, prefixes, side="left")
        last = np.searchsorted(self.prefixes, prefixes, side="right")
        hits = np.flatnonzero(last > first)
        if not len(hits):
            return
        batches: dict[int, list[tuple[int, bytes]]] = {}
        for hit in hits.tolist():
            for row in range(int(first[hit]), int(last[hit])):
                batch = int(np.searchsorted(self.starts, row, side="right")) - 1
                batches.setdefault(batch, []).append((row - int(self.starts[batch]), keys[hit]))

        def rows(reader: pa.ipc.RecordBatchFileReader) -> list[tuple[bytes, dict]]:
            rows: list[tuple[bytes, dict]] = []
            for index, wanted in batches.items():
                table = reader.get_batch(index).take(pa.array([row for row, _ in wanted]))
                rows += zip((key for _, key in wanted), table.to_pylist(), strict=True)
            return rows

        yield from ((key, row) for key, row in _read(self.file, rows) if row["key"] == key)

    def read(self, first: int, last: int) -> pa.Table:
        """Rows `first` to `last` - 1."""

        def parts(reader: pa.ipc.RecordBatchFileReader) -> list[pa.RecordBatch]:
            parts = []
            for i, (start, end) in enumerate(itertools.pairwise(self.starts.tolist())):
                low, high = max(first, start), min(last, end)
                if low < high:
                    parts.append(reader.get_batch(i).slice(low - start, high - low))
            return parts

        batches = _read(self.file, parts)
        return _up_to_date(pa.Table.from_batches(batches)) if batches else SCHEMA.empty_table()


def prefixes_of(keys: pa.Array) -> np.ndarray:
    """The first 8 bytes of each 32-byte key, big-endian, so that they sort like the keys."""
    if not len(keys):
        return np.empty(0, np.uint64)
    data = np.frombuffer(keys.buffers()[1], np.dtype(">u8"), len(keys) * 4, keys.offset * 32)
    return data[::4].astype(np.uint64)


def key_ranges(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges low <= prefix < high that hold about `most` of `rows` rows each. Keys are hashes, so
    equal ranges hold about equally many."""
    parts = max(1, -(-rows // most))
    yield from itertools.pairwise(i * 2**64 // parts for i in range(parts + 1))


def rows_in(prefixes: np.ndarray, low: int, high: int) -> slice:
    """The positions of a range in sorted prefixes."""
    first = np.searchsorted(prefixes, np.uint64(low), side="left")
    return slice(int(first), int(np.searchsorted(prefixes, np.uint64(high - 1), side="right")))


class Index:
    """Prefixes in a temporary file that is mapped into memory. The operating system can reclaim its
    pages, so a worker's memory does not grow with the ledger. All prefixes share one file, because
    each map keeps a file open. When the file outgrows its map, a map twice as large replaces it."""

    def __init__(self) -> None:
        self._map = np.empty(0, np.uint64)
        self._used = 0

    @functools.cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix="facttune-ledger-")

    def keep(self, prefixes: np.ndarray) -> np.ndarray:
        """The same numbers, mapped. Small arrays stay in memory, and on a full disk all do."""
        if len(prefixes) < ROWS:
            return prefixes
        start, end = self._used, self._used + len(prefixes)
        try:
            self._file.seek(8 * start)
            self._file.write(prefixes.tobytes())
            self._file.flush()
            if end > len(self._map):
                self._file.truncate(16 * end)  # the unwritten part takes no space
                self._map = np.memmap(self._file, np.uint64, "r", shape=(2 * end,))
        except OSError:
            return prefixes
        self._used = end
        return self._map[start:end]


def segment_bytes(table: pa.Table) -> bytes:
    """The bytes of a file with these rows, which are sorted by key."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=_OPTIONS) as writer:
        writer.write_table(table, max_chunksize=ROWS)
    return sink.getvalue().to_pybytes()


def read_segment(file: Folder, columns: list[str] | None = None) -> pa.Table:
    """All rows, or these columns of them."""
    table = _read(file, lambda reader: reader.read_all(), columns)
    return _up_to_date(table) if columns is None else table


def _read(
    file: Folder,
    work: Callable[[pa.ipc.RecordBatchFileReader], T],
    columns: list[str] | None = None,
) -> T:
    """What `work` returns for the reader of a file, or of these columns of it."""
    wanted = None if columns is None else [SCHEMA.get_field_index(c) for c in columns]
    options = pa.ipc.IpcReadOptions(included_fields=wanted)

    def read() -> T:
        with file.fs.open_input_file(file.path) as f:
            return work(pa.ipc.open_file(f, options=options))

    return file.again(read)


def _up_to_date(table: pa.Table) -> pa.Table:
    """Add the columns that a segment of an earlier version lacks, with nulls."""
    return pa.concat_tables([SCHEMA.empty_table(), table], promote_options="default").select(
        SCHEMA.names
    )
