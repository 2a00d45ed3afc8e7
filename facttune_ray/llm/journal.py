"""Requests in flight, on disk: after a kill they are listed, because they may have been billed.

    journal = Journal(ledger_folder, run="0c4e", writer="6f1c")
    attempt = await journal.begin(key, usd=0.0004)    on disk before the request is sent
    await journal.store(attempt, "resp_68a1")         background mode: the answer can be fetched
    journal.end(attempt)                              the answer is in the ledger, or was not billed
    await journal.close()                             removes the file, unless attempts are open

    ledger/0c4e.6f1c.sent    records: key, estimated dollars, n, length of the id, id (big-endian)

n > 0: attempt n was sent; if there is an id, the server keeps the answer under it. n < 0: attempt
-n has ended. An attempt that has not ended and has no id is *unknown*. On a file system the journal
is appended to. An object store cannot append: there one put writes all open attempts, before their
requests are sent.
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
SYNC_S = 0.2  # a host's crash loses the records of this time at most
# a file that has grown by this much is rewritten with its open attempts: other workers read it
REWRITE_BYTES = 2**18


@dataclass(frozen=True)
class Attempt:
    """A request that may have been billed, and whose answer is not in the ledger yet."""

    key: bytes
    usd: float  # estimated cost
    id: str = ""  # under which the server keeps the answer
    writer: str = ""


class Journal:
    """The attempts of one writer. A journal lives on one event loop."""

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
        """Return the number of a new attempt when it is on disk."""
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
        that the server no longer has it."""
        self._open[attempt] = replace(self._open[attempt], id=id)
        await self._write(attempt)

    def end(self, attempt: int) -> None:
        """The attempt is in the ledger, or was not billed."""
        ended = self._open.pop(attempt)
        if self._appends:
            with contextlib.suppress(OSError):  # on a full disk it stays listed as unknown
                self._append(_record(-attempt, ended))

    async def _write(self, attempt: int) -> None:
        if self._appends:
            self._append(_record(attempt, self._open[attempt]))
            self._sync_later()
            return
        async with self._lock:  # one put serves all attempts that came while the last one ran
            if self._put.get(attempt) != self._open[attempt]:
                attempts = dict(self._open)
                await asyncio.to_thread(self._file.write_bytes, _records(attempts))
                self._put = attempts

    def _append(self, record: bytes) -> None:
        with writing(self._folder):
            if self._stream is None or self._size > REWRITE_BYTES:
                self._rewrite()
            try:
                self._stream.write(record)
            except BaseException:
                self._close_stream()  # a part may be written: the next record rewrites the file
                raise
            self._size += len(record)

    def _rewrite(self) -> None:
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
            self._syncing = asyncio.create_task(self._sync())

    async def _sync(self) -> None:
        """Sync the file after SYNC_S, so that a host's crash loses no older record. A kill of the
        process loses no record."""
        await asyncio.sleep(SYNC_S)
        self._syncing = None
        try:
            await asyncio.to_thread(folders.sync, self._folder.fs, self._file.path)
        except FileNotFoundError:
            pass  # closed and removed
        except OSError:
            self._sync_later()  # a full disk may have room again

    async def close(self) -> None:
        """Leave a file with the open attempts, or no file when there are none."""
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
    """The attempts of this run (None: of every run) that have not ended. Attempts of a run that
    goes on are in flight."""
    attempts: list[Attempt] = []
    for name in folder.names():
        of_run, _, rest = name.partition(".")
        writer = rest.removesuffix(".sent")
        if not name.endswith(".sent") or run not in (None, of_run):
            continue
        data, at = b"", 0
        with contextlib.suppress(FileNotFoundError):  # its writer has closed it meanwhile
            data = (folder / name).read_bytes()
        not_ended: dict[int, Attempt] = {}
        while at + HEAD.size <= len(data):
            key, usd, n, size = HEAD.unpack_from(data, at)
            at += HEAD.size + size
            if at > len(data):
                break  # torn
            not_ended[abs(n)] = Attempt(key, usd, data[at - size : at].decode(), writer)
            if n < 0:
                del not_ended[-n]
        attempts += not_ended.values()
    return attempts


def unknown(folder: Folder, run: str | None = None) -> list[Attempt]:
    """The attempts that may have been billed and whose answer cannot be fetched."""
    return [attempt for attempt in attempts(folder, run) if not attempt.id]
