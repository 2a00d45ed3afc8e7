"""Durable store of paid completions: each is written before it is used, and is never paid twice.

    ledger/0192f3...-00012.arrow    one segment: an Arrow IPC file with rows sorted by key

A row has the key (SHA-256 of model, prompt, parameters, sample index), the completion, and how it
was paid. Each of several choices of one request (`n`) is a row; the prompt's tokens and the
attempts stand in the first. Segments are only added. A writer adds one every `flush_rows` rows or
`flush_s` seconds, and merges its own small segments; `facttune ledger compact` merges all. A reader
maps the first 8 bytes of each key (8 bytes per row) and reads a completion when it is asked for. A
torn segment, whose end a crash has lost, is skipped. The ledger holds no API key and no header.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.llm.journal import Journal, unknown
from facttune_ray.llm.replies import Completion
from facttune_ray.llm.segments import (
    ROWS,
    SCHEMA,
    Index,
    Segment,
    key_ranges,
    prefixes_of,
    read_segment,
    rows_in,
    segment_bytes,
)
from facttune_ray.storage.folders import Folder, writing

T = TypeVar("T")
# a writer merges so many small segments, up to so many rows, which a worker holds in memory
MERGE, MERGED_ROWS = 16, 2**14
SUMMED_ROWS = 2**18  # rows whose dollars are summed at a time


def request_key(model: str, prompt: list[dict] | str, params: dict[str, Any], sample: int) -> bytes:
    """SHA-256 of all that decides a completion: neither the endpoint's address nor the number of
    choices. `prompt`: messages of a chat, or a text for `completions`."""
    body = json.dumps([model, prompt, params, sample], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(body.encode()).digest()


def while_merged(read: Callable[[], T], refresh: Callable[[], None] = lambda: None) -> T:
    """Read again, after `refresh`, when another process has merged a segment meanwhile."""
    while True:
        try:
            return read()
        except FileNotFoundError:
            refresh()


class Ledger:
    """The completions of all writers in one folder: finished, running or killed."""

    def __init__(
        self, folder: Folder, flush_rows: int = 256, flush_s: float = 0.1, run: str = "", stage=""
    ) -> None:
        self.folder, self.flush_rows, self.flush_s = folder, flush_rows, flush_s
        self.run, self.stage = run, stage
        self.segments: dict[str, Segment] = {}
        self._index = Index()
        self.torn: set[str] = set()
        self.writer, self._written = uuid.uuid4().hex, 0
        self.journal = Journal(folder, run, self.writer)
        self._mine: list[tuple[str, int]] = []  # this writer's segments and their rows
        self._unwritten: dict[bytes, dict] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._full, self._lock = asyncio.Event(), asyncio.Lock()
        self._segments_lock = threading.Lock()  # flushes and look-ups run in threads
        self.refresh()

    # -- reading ---------------------------------------------------------------------------

    def refresh(self) -> None:
        """Load the segments that were added since, and drop merged ones."""
        with self._segments_lock:
            while_merged(self._load)

    def _load(self) -> None:
        names = {n for n in self.folder.names() if n.endswith(".arrow")}
        for name in self.segments.keys() - names:
            del self.segments[name]
        for name in sorted(names - self.segments.keys() - self.torn):
            segment = Segment.load(self.folder / name)
            if segment is None:
                self.torn.add(name)
            else:
                segment.prefixes = self._index.keep(segment.prefixes)
                self.segments[name] = segment

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """The completions of those keys that the ledger has. Of several rows the oldest counts."""
        wanted = sorted(set(keys))
        prefixes = np.frombuffer(b"".join(k[:8] for k in wanted), ">u8").astype(np.uint64)
        # before the segments: a row that is written meanwhile must be seen in one of the places
        unwritten = {key: self._unwritten[key] for key in wanted if key in self._unwritten}
        rows: dict[bytes, dict] = {}

        def read() -> None:
            for segment in list(self.segments.values()):
                for key, row in segment.find(prefixes, wanted):
                    if key not in rows or row["created_s"] < rows[key]["created_s"]:
                        rows[key] = row

        while_merged(read, self.refresh)
        return {key: _completion(row) for key, row in (unwritten | rows).items()}

    # -- writing ---------------------------------------------------------------------------

    async def put(self, key: bytes, completion: Completion) -> None:
        """Return when the completion is durable. Completions that come together are one write."""
        await self.put_all({key: completion})

    async def put_all(self, completions: Mapping[bytes, Completion]) -> None:
        """`put` of several completions: the segment has all of them or none."""
        origin = {"created_s": time.time(), "stage": self.stage, "run": self.run}
        for key, completion in completions.items():
            self._unwritten[key] = asdict(completion) | {"key": key} | origin
        if self._flushing is None:
            self._full = asyncio.Event()
            self._flushing = asyncio.create_task(self._flush_soon())
        if len(self._unwritten) >= self.flush_rows:
            self._full.set()
        await asyncio.shield(self._flushing)

    async def _flush_soon(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._full.wait(), self.flush_s)
        self._flushing = None  # completions that come from here on wait for the next flush
        await self._flush()

    async def _flush(self) -> None:
        async with self._lock:
            if self._unwritten:
                rows = dict(self._unwritten)
                try:
                    await asyncio.to_thread(self.write, list(rows.values()))
                except (ValueError, TypeError, OverflowError):  # a bug: Arrow refuses the rows
                    self._forget(rows)  # or the next flush would fail, too
                    raise
                self._forget(rows)  # after an OSError the rows stay for the next flush

    def _forget(self, rows: Iterable[bytes]) -> None:
        for key in rows:
            del self._unwritten[key]

    def write(self, rows: list[dict]) -> None:
        """Write one segment, then merge this writer's small segments when there are many."""
        with writing(self.folder):
            self._mine.append((self.add(_table(rows)), len(rows)))
            while (small := self._to_merge()) is not None:
                try:
                    merged = pa.concat_tables(read_segment(self.folder / name) for name, _ in small)
                except FileNotFoundError:  # compacted by another process
                    self._mine = [m for m in self._mine if m not in small]
                    break
                self._mine = [m for m in self._mine if m not in small]
                self._mine.append((self.add(merged.sort_by("key")), merged.num_rows))
                for name, _ in small:
                    self.remove(name)

    def add(self, table: pa.Table) -> str:
        """Write one segment of rows sorted by key."""
        table = table.combine_chunks()  # record batches are cut at chunks, too
        name = f"{self.writer}-{self._written:06d}.arrow"
        self._written += 1
        (self.folder / name).write_bytes(segment_bytes(table), durable=True)
        prefixes = prefixes_of(table["key"].chunk(0))
        starts = np.array([*range(0, table.num_rows, ROWS), table.num_rows])
        with self._segments_lock:
            self.segments[name] = Segment(self.folder / name, self._index.keep(prefixes), starts)
        return name

    def remove(self, name: str) -> None:
        with self._segments_lock:
            self.segments.pop(name, None)
        (self.folder / name).delete_file()

    def _to_merge(self) -> list[tuple[str, int]] | None:
        """The newest segments, when MERGE of them are of about one size."""
        newest = self._mine[-MERGE:]
        similar = newest[0][1] < 4 * newest[-1][1] + self.flush_rows
        if len(newest) == MERGE and similar and sum(rows for _, rows in newest) <= MERGED_ROWS:
            return newest
        return None

    async def close(self) -> None:
        await self._flush()
        await self.journal.close()

    def paid_usd(self, run: str) -> dict[str, float]:
        """Dollars that one run has paid, by writer. Unknown requests count at their estimate. A row
        that a merge has copied counts once."""
        by_writer = while_merged(lambda: self._paid_usd(run), self.refresh)
        for attempt in unknown(self.folder, run):
            by_writer[attempt.writer] = by_writer.get(attempt.writer, 0.0) + attempt.usd
        return by_writer

    def _paid_usd(self, run: str) -> dict[str, float]:
        # read each segment once, keep 16 bytes per row in a file, and sum one key range at a time
        index, paid, writers = Index(), [], []
        for name in list(self.segments):
            table = read_segment(self.folder / name, ["key", "run", "cost_usd"])
            table = table.filter(pc.equal(table["run"], run)).combine_chunks()
            if table.num_rows:
                prefixes = np.concatenate([prefixes_of(c) for c in table["key"].chunks])
                usd = index.keep(table["cost_usd"].to_numpy().view(np.uint64)).view(np.float64)
                paid.append((index.keep(prefixes), usd))
                writers.append(name.partition("-")[0])
        by_writer = dict.fromkeys(writers, 0.0)
        for low, high in key_ranges(sum(len(usd) for _, usd in paid), SUMMED_ROWS) if paid else ():
            spans = [rows_in(prefixes, low, high) for prefixes, _ in paid]
            parts = [(p[rows], usd[rows]) for (p, usd), rows in zip(paid, spans, strict=True)]
            _, first = np.unique(np.concatenate([p for p, _ in parts]), return_index=True)
            usd = np.concatenate([usd for _, usd in parts])[first]
            segment = np.repeat(np.arange(len(parts)), [len(p) for p, _ in parts])[first]
            sums = np.bincount(segment, usd, len(parts)).tolist()
            for writer, sum_usd in zip(writers, sums, strict=True):
                by_writer[writer] += sum_usd
        return by_writer


def _completion(row: dict) -> Completion:
    return Completion(**{f.name: row[f.name] for f in fields(Completion) if f.name in row})


def crc(row: dict) -> int:
    """Checksum of a row: key, text, refusal and tokens."""
    body = f"{row['text']}\x1f{row['refusal']}\x1f{row['prompt_tokens']}"
    body += f"\x1f{row['completion_tokens']}"
    return zlib.crc32(body.encode("utf-8", "surrogatepass"), zlib.crc32(row["key"]))


def _table(rows: list[dict]) -> pa.Table:
    for row in rows:
        row["crc"] = crc(row)
    return pa.Table.from_pylist(sorted(rows, key=lambda r: r["key"]), schema=SCHEMA)
