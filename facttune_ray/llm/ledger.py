"""Durable store of paid completions: each is written before it is used, and never paid twice.

    ledger/0192f3...-00012.arrow    one Arrow IPC file, rows sorted by key: a segment

One row: key (SHA-256 of model, messages or prompt, parameters, sample index), the completion and
how it was had. Each of several choices of one request (`n`) is a row; what they share, the tokens
of the prompt and the attempts, stands in the first. Segments are only added: a writer puts one down
every `flush_rows` rows or `flush_s` seconds and merges its own small ones; `compact` merges all. A
reader maps the first 8 bytes of each key (8 bytes a row) and reads a completion when it is asked
for. A segment that is torn (its writer's file system lost the end) is left out. Neither keys of an
account nor headers are stored.
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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.errors import Final
from facttune_ray.llm.journal import Journal, unknown
from facttune_ray.llm.replies import CUT, ENDED, split_thoughts
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

# a writer merges so many small segments, up to so many rows: as many as fit well into memory, some
# times over
MERGE, MERGED_ROWS = 16, 2**14
SUMMED_ROWS = 2**18  # rows whose dollars are summed at a time


@dataclass(frozen=True)
class Completion:
    """What one paid request gave."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    served_model: str
    attempts: int
    latency_s: float | None
    refusal: str | None = None
    finish_reason: str | None = None
    cost_usd: float = 0.0
    prompt_chars: int = 0
    top_logprobs: str | None = None  # JSON {token: log-probability} of the first token
    thoughts: str | None = None  # of a reasoning model
    counted: str | None = None  # where the tokens come from: usage | total | estimate

    @property
    def filtered(self) -> bool:
        """A provider's filter ended it: what it says is no whole answer."""
        return bool(self.finish_reason) and self._finish not in ENDED | CUT

    @property
    def cut(self) -> bool:
        """It ends at the most tokens that it could have."""
        return self._finish in CUT

    @property
    def _finish(self) -> str:
        return (self.finish_reason or "").casefold()

    @property
    def answer(self) -> str:
        """The text, in older ledgers without the thoughts in it. Final when a filter took it, or
        when nothing was left of its tokens for a text."""
        if self.filtered:
            raise Final(f"refused: {self.refusal}")
        text = split_thoughts(self.text)[0]
        if self.cut and not text.strip():
            raise Final("the answer was cut before its text began: raise llm.max_tokens")
        return text

    @property
    def whole_answer(self) -> str:
        """`answer`; Final also when it was cut within its text."""
        if self.cut:
            raise Final("the answer was cut at its most tokens: raise llm.max_tokens")
        return self.answer


def request_key(model: str, prompt: list[dict] | str, params: dict[str, Any], sample: int) -> bytes:
    """SHA-256 of everything that decides a completion. The endpoint's address does not, nor how
    many were asked for at once. `prompt`: messages of a chat, or the text of `completions`."""
    body = json.dumps([model, prompt, params, sample], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(body.encode()).digest()


class Ledger:
    """Completions of every finished, running or killed writer under one folder."""

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
        """See the segments that other writers have completed since, and drop merged ones."""
        with self._segments_lock:
            while not self._refreshed():
                pass

    def _refreshed(self) -> bool:
        names = {n for n in self.folder.names() if n.endswith(".arrow")}
        for gone in self.segments.keys() - names:
            del self.segments[gone]
        for name in sorted(names - self.segments.keys() - self.torn):
            try:
                segment = Segment.load(self.folder / name)
            except FileNotFoundError:  # merged since it was listed: list again
                return False
            if segment is None:
                self.torn.add(name)
            else:
                segment.prefixes = self._index.keep(segment.prefixes)
                self.segments[name] = segment
        return True

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """The completions of those keys that are here; of several, the oldest."""
        raw = sorted(set(keys))
        prefixes = np.frombuffer(b"".join(k[:8] for k in raw), ">u8").astype(np.uint64)
        # first: a row that is written meanwhile must not be missed in both places
        mine = {key: self._unwritten[key] for key in raw if key in self._unwritten}
        found: dict[bytes, dict] = {}
        while True:
            try:
                for segment in list(self.segments.values()):
                    for key, row in segment.find(prefixes, raw):
                        if key not in found or row["created_s"] < found[key]["created_s"]:
                            found[key] = row
                break
            except FileNotFoundError:  # merged by another process
                self.refresh()
        return {key: _completion(row) for key, row in (mine | found).items()}

    # -- writing ---------------------------------------------------------------------------

    async def put(self, key: bytes, completion: Completion) -> None:
        """Return when the completion is durable: many are written together."""
        await self.put_all({key: completion})

    async def put_all(self, completions: Mapping[bytes, Completion]) -> None:
        """As `put`; these stand in one segment, all or none of them."""
        also = {"created_s": time.time(), "stage": self.stage, "run": self.run}
        for key, completion in completions.items():
            self._unwritten[key] = asdict(completion) | {"key": key} | also
        if self._flushing is None:
            self._full = asyncio.Event()
            self._flushing = asyncio.create_task(self._flush_soon())
        if len(self._unwritten) >= self.flush_rows:
            self._full.set()
        await asyncio.shield(self._flushing)

    async def _flush_soon(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._full.wait(), self.flush_s)
        self._flushing = None  # who comes from here on waits for the next one
        await self._flush()

    async def _flush(self) -> None:
        async with self._lock:
            if self._unwritten:
                rows = dict(self._unwritten)
                try:
                    await asyncio.to_thread(self.write, list(rows.values()))
                except (ValueError, TypeError, OverflowError):  # Arrow refuses them: a bug, but
                    self._done_with(rows)  # the next group is not to fail for it, too
                    raise
                self._done_with(rows)  # after a full disk, say, they wait for the next group

    def _done_with(self, rows: Iterable[bytes]) -> None:
        for key in rows:
            del self._unwritten[key]

    def write(self, rows: list[dict]) -> None:
        """One segment of these rows, then merge this writer's small ones when there are many."""
        with writing(self.folder):
            self._mine.append((self.add(_table(rows)), len(rows)))
            while (small := self._to_merge()) is not None:
                try:
                    merged = pa.concat_tables(read_segment(self.folder / name) for name, _ in small)
                except FileNotFoundError:  # compacted by somebody else
                    self._mine = [m for m in self._mine if m not in small]
                    break
                self._mine = [m for m in self._mine if m not in small]
                self._mine.append((self.add(merged.sort_by("key")), merged.num_rows))
                for name, _ in small:
                    self.remove(name)

    def add(self, table: pa.Table) -> str:
        """Write one segment of rows sorted by key."""
        name = f"{self.writer}-{self._written:06d}.arrow"
        self._written += 1
        (self.folder / name).write_bytes(segment_bytes(table), durable=True)
        prefixes = prefixes_of(table["key"].combine_chunks())
        starts = np.array([*range(0, table.num_rows, ROWS), table.num_rows])
        with self._segments_lock:
            kept = self._index.keep(prefixes)
            self.segments[name] = Segment(self.folder / name, kept, starts)
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

    def spent_usd(self, run: str) -> float:
        """What one run has paid into this ledger, and what its unknown requests may have cost."""
        return sum(self.paid_usd(run).values())

    def paid_usd(self, run: str) -> dict[str, float]:
        """The same by writer. A row that a merge has copied counts once."""
        while True:
            try:
                found = self._paid_usd(run)
                for lost in unknown(self.folder, run):
                    found[lost.writer] = found.get(lost.writer, 0.0) + lost.usd
                return found
            except FileNotFoundError:  # merged by another process
                self.refresh()

    def _paid_usd(self, run: str) -> dict[str, float]:
        # a segment is read once; 16 bytes a row are kept, in a file, and looked at range by range
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
            found = [(p[rows], usd[rows]) for (p, usd), rows in zip(paid, spans, strict=True)]
            _, first = np.unique(np.concatenate([p for p, _ in found]), return_index=True)
            usd = np.concatenate([usd for _, usd in found])[first]
            of = np.repeat(np.arange(len(found)), [len(p) for p, _ in found])[first]
            sums = np.bincount(of, usd, len(found)).tolist()
            for writer, some in zip(writers, sums, strict=True):
                by_writer[writer] += some
        return by_writer


def _completion(row: dict) -> Completion:
    row = dict.fromkeys(("top_logprobs", "thoughts", "counted")) | row
    return Completion(**{name: row[name] for name in Completion.__dataclass_fields__})


def crc(row: dict) -> int:
    """Checksum of what a row was paid for."""
    body = f"{row['text']}\x1f{row['refusal']}\x1f{row['prompt_tokens']}"
    body += f"\x1f{row['completion_tokens']}"
    return zlib.crc32(body.encode("utf-8", "surrogatepass"), zlib.crc32(row["key"]))


def _table(rows: list[dict]) -> pa.Table:
    for row in rows:
        row["crc"] = crc(row)
    return pa.Table.from_pylist(sorted(rows, key=lambda r: r["key"]), schema=SCHEMA)
