"""Requests in flight, on disk: after a kill they are listed, for they may have been billed.

    journal = Journal(ledger_folder, run="0c4e", writer="6f1c")
    attempt = await journal.begin(key, usd=0.0004)    on disk before the request leaves
    await journal.store(attempt, "resp_68a1")         background mode: its answer can be fetched
    journal.end(attempt)                              its answer is in the ledger, or unpaid
    await journal.close()                             removes the file, unless attempts are open

    ledger/0c4e.6f1c.sent    records: key, estimated dollars, n, length of the id, id (big-endian)

n > 0: attempt n was sent, and the server keeps its answer under the id, if there is one. n < 0:
attempt -n is over, and known. An attempt that is never over and has no id is *unknown*. A local
file is appended to. An object store cannot append: there the open attempts are put as a whole, many
with one put, before their requests leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass, replace
from typing import Any

from facttune_ray.storage import folders
from facttune_ray.storage.folders import OBJECT_STORES, Folder, writing

HEAD = struct.Struct(">32sdqH")
SYNC_S = 0.2  # records that a host's crash may lose: those of so long
# a file is made again from its open attempts when it has grown by so much: others read it, too
REWRITE_BYTES = 2**18


@dataclass(frozen=True)
class Attempt:
    """A request that may have been billed, and whose answer is not in the ledger yet."""

    key: bytes
    usd: float  # its estimated cost
    id: str = ""  # under which the server keeps its answer
    writer: str = ""


class Journal:
    """One writer's attempts. Lives on one event loop."""

    def __init__(self, folder: Folder, run: str, writer: str) -> None:
        self._folder, self._file = folder, folder / f"{run}.{writer}.sent"
        self._appends = folder.fs.type_name not in OBJECT_STORES
        self._stream: Any = None
        self._size, self._last = 0, 0
        self._open: dict[int, Attempt] = {}
        self._put: dict[int, Attempt] = {}  # what the object in the store holds
        self._lock = asyncio.Lock()
        self._syncing: asyncio.Task[None] | None = None

    async def begin(self, key: bytes, usd: float) -> int:
        """Return the attempt's number when it is on disk."""
        self._last += 1
        attempt = self._last
        self._open[attempt] = Attempt(key, usd)
        try:
            await self._write(attempt)
        except BaseException:
            del self._open[attempt]  # it is not sent
            raise
        return attempt

    async def store(self, attempt: int, id: str) -> None:
        """Return when it is on disk that the server keeps the attempt's answer under this id; "":
        that it no longer does."""
        self._open[attempt] = replace(self._open[attempt], id=id)
        await self._write(attempt)

    def end(self, attempt: int) -> None:
        """The attempt is known: paid and in the ledger, or not paid."""
        over = self._open.pop(attempt)
        if self._appends:
            with contextlib.suppress(OSError):  # a full disk: it is listed, although it is known
                self._append(_record(-attempt, over))

    async def _write(self, attempt: int) -> None:
        if self._appends:
            self._append(_record(attempt, self._open[attempt]))
            self._sync_later()
            return
        async with self._lock:  # those who came meanwhile find themselves put
            if self._put.get(attempt) != self._open[attempt]:
                some = dict(self._open)
                await asyncio.to_thread(self._file.write_bytes, _records(some))
                self._put = some

    def _append(self, record: bytes) -> None:
        with writing(self._folder):
            if self._stream is None or self._size > REWRITE_BYTES:
                self._begin_file()
            try:
                self._stream.write(record)
            except BaseException:
                self._close_stream()  # a part of it may be there: the next one makes the file anew
                raise
            self._size += len(record)

    def _begin_file(self) -> None:
        self._close_stream()
        self._file.write_bytes(_records(self._open), durable=True)
        self._stream = self._folder.fs.open_append_stream(self._file.path)
        self._size = 0

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _sync_later(self) -> None:
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync_soon())

    async def _sync_soon(self) -> None:
        """A host that crashes loses the records of the last SYNC_S alone. A process that is killed
        loses none."""
        await asyncio.sleep(SYNC_S)
        self._syncing = None
        try:
            await asyncio.to_thread(folders.sync, self._folder.fs, self._file.path)
        except FileNotFoundError:
            pass  # closed and removed
        except OSError:
            self._sync_later()  # a disk that is full may have room again

    async def close(self) -> None:
        """Leave the open attempts alone on disk, and no file without any."""
        self._close_stream()
        if self._syncing is not None:
            self._syncing.cancel()
            self._syncing = None
        if not self._last:
            return
        if self._open:
            await asyncio.to_thread(self._file.write_bytes, _records(self._open), durable=True)
        else:
            await asyncio.to_thread(self._file.delete_file)


def _record(n: int, attempt: Attempt) -> bytes:
    id = attempt.id.encode()
    return HEAD.pack(attempt.key, attempt.usd, n, len(id)) + id


def _records(attempts: dict[int, Attempt]) -> bytes:
    return b"".join(_record(n, attempt) for n, attempt in attempts.items())


def attempts(folder: Folder, run: str | None = None) -> list[Attempt]:
    """Every attempt of this run (None: of all) that began and is not known to be over. Those of a
    run that goes on now are in flight."""
    found: list[Attempt] = []
    for name in folder.names():
        of, _, rest = name.partition(".")
        writer = rest.removesuffix(".sent")
        if not name.endswith(".sent") or run not in (None, of):
            continue
        data, at = b"", 0
        with contextlib.suppress(FileNotFoundError):  # its writer has closed it meanwhile
            data = (folder / name).read_bytes()
        left: dict[int, Attempt] = {}
        while at + HEAD.size <= len(data):
            key, usd, n, size = HEAD.unpack_from(data, at)
            at += HEAD.size + size
            if at > len(data):
                break  # torn
            left[abs(n)] = Attempt(key, usd, data[at - size : at].decode(), writer)
            if n < 0:
                del left[-n]
        found += left.values()
    return found


def unknown(folder: Folder, run: str | None = None) -> list[Attempt]:
    """Those of which nobody can tell any more whether they were billed."""
    return [attempt for attempt in attempts(folder, run) if not attempt.id]
