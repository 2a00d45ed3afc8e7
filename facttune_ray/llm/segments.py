"""Files of the ledger: Arrow IPC, sorted by key, found by the first 8 bytes of a key.

    (folder / "6f1c...-000000.arrow").write_bytes(segment_bytes(table))     rows sorted by key
    Segment.load(folder / "6f1c...-000000.arrow").find(prefixes, keys)  ->  (key, row), ...

One look-up is a binary search and a read of the record batches that it hits.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa

from facttune_ray.storage.folders import Folder, explain

SCHEMA = pa.schema(
    [
        ("key", pa.binary(32)),
        ("text", pa.string()),
        ("refusal", pa.string()),  # the model's words of refusal; null: it did not refuse
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("prompt_chars", pa.int64()),  # characters of the messages or the prompt
        ("served_model", pa.string()),
        ("cost_usd", pa.float64()),  # at the price when it was paid
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),  # of the attempt that succeeded; null in batch mode
        ("created_s", pa.float64()),  # Unix time
        ("stage", pa.string()),  # that paid
        ("run", pa.string()),  # that paid: its budget counts it
        ("crc", pa.uint32()),  # of key, text and tokens: `verify` checks it
        # older ledgers lack these
        ("top_logprobs", pa.string()),  # JSON, where they were asked for
        ("thoughts", pa.string()),  # of a reasoning model, which its text does not hold
        ("counted", pa.string()),  # where the tokens come from: usage | total | estimate
    ]
)
ROWS = 4096  # a record batch: what one look-up reads at least
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class Segment:
    """One file: its keys' first 8 bytes in order, and where its batches begin."""

    def __init__(self, file: Folder, prefixes: np.ndarray, starts: np.ndarray) -> None:
        self.file, self.prefixes, self.starts = file, prefixes, starts

    @staticmethod
    def load(file: Folder) -> Segment | None:
        """None when the file is torn."""

        def read() -> list[np.ndarray]:
            options = pa.ipc.IpcReadOptions(included_fields=[0])
            with file.fs.open_input_file(file.path) as f:
                reader = pa.ipc.open_file(f, options=options)
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
                return [prefixes_of(b.column(0)) for b in batches]

        try:
            keys = file.again(read)
        except (pa.ArrowInvalid, pa.ArrowSerializationError, pa.ArrowTypeError):
            return None
        except OSError as e:
            if e.errno is not None or explain(e):  # the store's trouble; Arrow's own has no number
                raise
            return None
        starts = np.cumsum([0, *(len(k) for k in keys)])
        return Segment(file, np.concatenate(keys) if keys else np.empty(0, np.uint64), starts)

    def find(self, keys: np.ndarray, raw: list[bytes]) -> Iterator[tuple[bytes, dict]]:
        """(key, row) of those `keys` (sorted prefixes of `raw`) that stand here."""
        first = np.searchsorted(self.prefixes, keys, side="left")
        last = np.searchsorted(self.prefixes, keys, side="right")
        hits = np.flatnonzero(last > first)
        if not len(hits):
            return
        batches: dict[int, list[tuple[int, bytes]]] = {}
        for hit in hits.tolist():
            for row in range(int(first[hit]), int(last[hit])):
                batch = int(np.searchsorted(self.starts, row, side="right")) - 1
                batches.setdefault(batch, []).append((row - int(self.starts[batch]), raw[hit]))
        for key, found in self.file.again(lambda: self._rows(batches)):
            if found["key"] == key:
                yield key, found

    def _rows(self, batches: dict[int, list[tuple[int, bytes]]]) -> list[tuple[bytes, dict]]:
        """(wanted key, row) of these rows of these batches."""
        out = []
        with self.file.fs.open_input_file(self.file.path) as f:
            reader = pa.ipc.open_file(f)
            for index, wanted in batches.items():
                found = reader.get_batch(index).take(pa.array([row for row, _ in wanted]))
                keys = (key for _, key in wanted)
                out += list(zip(keys, found.to_pylist(), strict=True))
        return out

    def read(self, first: int, last: int) -> pa.Table:
        """Rows first..last-1."""
        return self.file.again(lambda: self._read(first, last))

    def _read(self, first: int, last: int) -> pa.Table:
        with self.file.fs.open_input_file(self.file.path) as f:
            reader = pa.ipc.open_file(f)
            parts = []
            for i, start in enumerate(self.starts[:-1].tolist()):
                low, high = max(first, start), min(last, int(self.starts[i + 1]))
                if low < high:
                    parts.append(reader.get_batch(i).slice(low - start, high - low))
        return _up_to_date(pa.Table.from_batches(parts)) if parts else SCHEMA.empty_table()


def prefixes_of(keys: pa.Array) -> np.ndarray:
    """Big-endian first 8 bytes of each 32-byte key: sorted as the keys are."""
    if not len(keys):
        return np.empty(0, np.uint64)
    data = np.frombuffer(keys.buffers()[1], np.dtype(">u8"), len(keys) * 4, keys.offset * 32)
    return data[::4].astype(np.uint64)


def key_ranges(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges low <= prefix < high of about `most` of so many rows each: keys are hashes, so equal
    ranges of them hold about equally many."""
    parts = max(1, -(-rows // most))
    yield from itertools.pairwise(i * 2**64 // parts for i in range(parts + 1))


def rows_in(prefixes: np.ndarray, low: int, high: int) -> slice:
    """Where a range lies in sorted prefixes."""
    first = np.searchsorted(prefixes, np.uint64(low), side="left")
    return slice(int(first), int(np.searchsorted(prefixes, np.uint64(high - 1), side="right")))


class Index:
    """Prefixes in a file of this host, mapped into memory: the system takes the pages back when it
    needs them, so a worker does not grow with the ledger. A map is an open file, so all share one;
    a file that has outgrown its map gets another, twice as large."""

    def __init__(self) -> None:
        self._map = np.empty(0, np.uint64)
        self._used = 0

    @functools.cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix="facttune-ledger-")

    def keep(self, prefixes: np.ndarray) -> np.ndarray:
        """The same numbers; small arrays stay where they are, as do all on a disk that is full."""
        if len(prefixes) < ROWS:
            return prefixes
        start, end = self._used, self._used + len(prefixes)
        try:
            self._file.seek(8 * start)
            self._file.write(prefixes.tobytes())
            self._file.flush()
            if end > len(self._map):
                self._file.truncate(16 * end)  # what is not written takes no space
                self._map = np.memmap(self._file, np.uint64, "r", shape=(2 * end,))
        except OSError:
            return prefixes
        self._used = end
        return self._map[start:end]


def segment_bytes(table: pa.Table) -> bytes:
    """The file of rows that are sorted by key."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=_OPTIONS) as writer:
        writer.write_table(table, max_chunksize=ROWS)
    return sink.getvalue().to_pybytes()


def read_segment(file: Folder, columns: list[str] | None = None) -> pa.Table:
    """All its rows, or these columns of them."""
    wanted = None if columns is None else [SCHEMA.get_field_index(c) for c in columns]
    options = pa.ipc.IpcReadOptions(included_fields=wanted)

    def read() -> pa.Table:
        with file.fs.open_input_file(file.path) as f:
            return pa.ipc.open_file(f, options=options).read_all()

    table = file.again(read)
    return _up_to_date(table) if columns is None else table


def _up_to_date(table: pa.Table) -> pa.Table:
    """A segment of an earlier version with the columns that have been added since, null."""
    for field in SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(SCHEMA.names)
