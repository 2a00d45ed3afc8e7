"""Requests in flight, on disk: after a kill they are listed, for they may have been billed.

    journal = Journal(ledger_folder, run="0c4e", writer="6f1c")
    attempt = await journal.begin(key, usd=0.0004)    on disk before the request leaves
    journal.end(attempt)                              its answer is in the ledger, or unpaid
    await journal.close()                             removes the file, unless attempts are open

    ledger/0c4e.6f1c.sent    records of 48 bytes: key, estimated dollars, n (big-endian)

n > 0: attempt n was sent. n < 0: attempt -n is over, and known. An attempt that is never over is
*unknown*. A local file is appended to. An object store cannot append: there the open attempts are
put as a whole, many with one put, before their requests leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from typing import Any

from facttune_ray import storage
from facttune_ray.storage import OBJECT_STORES, Folder, writing

RECORD = struct.Struct(">32sdq")
SYNC_S = 0.2
REWRITE_BYTES = 2**22  # a file is made again from its open attempts when it has grown so large


@dataclass(frozen=True)
class Unknown:
    """An attempt that may have been billed without an answer."""

    key: bytes
    usd: float  # its estimated cost
    run: str


class Journal:
    """One writer's attempts. Lives on one event loop."""

    def __init__(self, folder: Folder, run: str, writer: str) -> None:
        self._folder, self._file = folder, folder / f"{run}.{writer}.sent"
        self._appends = folder.fs.type_name not in OBJECT_STORES
        self._stream: Any = None
        self._size, self._last = 0, 0
        self._open: dict[int, tuple[bytes, float]] = {}
        self._put: set[int] = set()  # attempts that the object in the store holds
        self._lock = asyncio.Lock()
        self._syncing: asyncio.Task[None] | None = None

    async def begin(self, key: bytes, usd: float) -> int:
        """Return the attempt's number when it is on disk."""
        self._last += 1
        attempt = self._last
        self._open[attempt] = key, usd
        try:
            if self._appends:
                self._append(RECORD.pack(key, usd, attempt))
                if self._syncing is None:
                    self._syncing = asyncio.create_task(self._sync_soon())
            else:
                async with self._lock:  # those who came meanwhile find themselves put
                    if attempt not in self._put:
                        some = dict(self._open)
                        await asyncio.to_thread(self._file.write_bytes, _records(some))
                        self._put = set(some)
        except BaseException:
            del self._open[attempt]  # it is not sent
            raise
        return attempt

    def end(self, attempt: int) -> None:
        """The attempt is known: paid and in the ledger, or not paid."""
        key, usd = self._open.pop(attempt)
        if self._appends:
            with contextlib.suppress(OSError):  # a full disk: it is listed, although it is known
                self._append(RECORD.pack(key, usd, -attempt))

    def _append(self, record: bytes) -> None:
        with writing(self._folder):
            if self._stream is None or self._size > REWRITE_BYTES:
                self._begin_file()
            self._stream.write(record)
            self._size += len(record)

    def _begin_file(self) -> None:
        known = {n: a for n, a in self._open.items() if n != self._last}
        self._close_stream()
        self._file.write_bytes(_records(known), durable=True)
        self._stream = self._folder.fs.open_append_stream(self._file.path)
        self._size = RECORD.size * len(known)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def _sync_soon(self) -> None:
        """A host that crashes loses the records of the last SYNC_S alone. A process that is killed
        loses none."""
        await asyncio.sleep(SYNC_S)
        self._syncing = None
        if self._stream is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(storage.sync, self._folder.fs, self._file.path)

    async def close(self) -> None:
        """Leave the open attempts alone on disk, and no file without any."""
        self._close_stream()
        if self._syncing is not None:
            self._syncing.cancel()
            self._syncing = None
        if not self._last:
            return
        if self._open:
            await asyncio.to_thread(self._file.write_bytes, _records(self._open))
        else:
            await asyncio.to_thread(self._file.delete_file)


def _records(attempts: dict[int, tuple[bytes, float]]) -> bytes:
    return b"".join(RECORD.pack(key, usd, n) for n, (key, usd) in attempts.items())


def unknown(folder: Folder, run: str | None = None) -> list[Unknown]:
    """Every attempt of this run (None: of all) that began and is not known to be over. Those of a
    run that goes on now are in flight."""
    found: list[Unknown] = []
    for name in folder.names():
        of, _, rest = name.partition(".")
        if not name.endswith(".sent") or run not in (None, of):
            continue
        data = b""
        with contextlib.suppress(FileNotFoundError):  # its writer has closed it meanwhile
            data = (folder / name).read_bytes()
        left: dict[int, Unknown] = {}
        for key, usd, n in RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size]):
            if n > 0:
                left[n] = Unknown(key, usd, of)
            else:
                left.pop(-n, None)
        found += left.values()
    return found
