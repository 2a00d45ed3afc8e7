"""A disk that may fail at every operation, and that loses unsynced data in a crash.

    disk = Disk(world, stale_s=0.0)
    folder = Folder(Mount(disk, process), "ledger")       one mount per process

Local disk: writes go to the page cache. `sync` of a file makes its contents durable, `sync` of a
folder the names in it. A killed process leaves the cache as it is, and its last write may be torn.
A crash of the host keeps synced data, the first few of the later names, and any part of the later
contents. Object store: a file appears whole when it is closed, and listings show it later.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from simulation.world import EPOCH_S, Killed, Process, World


@dataclass
class File:
    data: bytes = b""
    synced: bytes = b""
    mtime_s: float = 0.0


@dataclass
class Faults:
    """What goes wrong, and how often."""

    full: list[tuple[float, float]] = field(default_factory=list)  # (begin, end) without space
    broken: float = 0.0  # share of operations that fail with EIO or a store's error
    broken_until_s: float = 0.0
    stale_s: float = 0.0  # age of listings


class Disk:
    def __init__(self, world: World, store: bool, faults: Faults) -> None:
        self.world, self.store, self.faults = world, store, faults
        self.dice = world.dice("disk")
        self.files: dict[str, File] = {}
        self.kept: dict[str, File] = {}  # durable names
        self.unkept: list[tuple[str, File | None]] = []  # later changes of names, in order
        # a store's changes: (when, name, exists)
        self.listed: list[tuple[float, str, bool]] = []
        self.operations = 0
        self.written: dict[str, float] = {}  # when a name appeared
        self.removed: list[float] = []  # when a segment of the ledger was removed

    def name(self, path: str, file: File | None) -> None:
        if file is None:
            self.files.pop(path, None)
            if path.endswith(".arrow"):
                self.removed.append(self.world.now)
        else:
            self.files[path] = file
            self.written[path] = self.world.now
        self.unkept.append((path, file))
        if self.store:
            self.listed.append((self.world.now, path, file is not None))

    def keep(self, folder: str) -> None:
        """Make the names in a folder durable."""
        left = []
        for path, file in self.unkept:
            if path.rpartition("/")[0] == folder:
                self._kept(path, file)
            else:
                left.append((path, file))
        self.unkept = left

    def _kept(self, path: str, file: File | None) -> None:
        if file is None:
            self.kept.pop(path, None)
        else:
            self.kept[path] = file

    def crash(self) -> None:
        """The host loses power."""
        if self.store:
            return
        for path, file in self.unkept[: self.dice.randint(0, len(self.unkept))]:
            self._kept(path, file)
        self.unkept.clear()
        self.files = dict(self.kept)
        for file in self.files.values():
            if file.data != file.synced:
                same = file.data.startswith(file.synced)
                start = len(file.synced) if same else 0
                cut = self.dice.randint(start, len(file.data))
                torn = file.data[:cut]
                if self.dice.random() < 0.3:  # the length is durable, the blocks are not
                    torn += bytes(len(file.data) - cut)
                file.data = file.synced = torn

    def names(self) -> Iterable[str]:
        if not self.store or not self.faults.stale_s:
            return self.files
        old_s = self.world.now - self.faults.stale_s
        there: dict[str, bool] = {}
        for at, path, is_there in self.listed:
            # a listing has every change that is old enough, and some of the newer ones
            if at <= old_s or self.dice.random() < 0.5:
                there[path] = is_there
        return [path for path, is_there in there.items() if is_there]


class Mount:
    """The part of pyarrow's file system interface that the product uses, for one process."""

    def __init__(self, disk: Disk, process: Process | None) -> None:
        self.disk, self.process = disk, process
        self.type_name = "s3" if disk.store else "local"
        self.local = not disk.store

    def _begin(self, what: str, path: str, writes: bool = True) -> bool:
        """Begin an operation. Return whether the process is killed in the middle of it."""
        disk, process = self.disk, self.process
        if process is None:
            return False
        if process.dead:
            raise Killed
        disk.operations += 1
        faults, now = disk.faults, disk.world.now
        if process.dies_in is not None:
            process.dies_in -= 1
            if process.dies_in <= 0:
                disk.world.note(process.name, f"killed at {what} {path}")
                process.kill()
                return True
        if writes and any(begin <= now < end for begin, end in faults.full):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        if faults.broken and now < faults.broken_until_s and disk.dice.random() < faults.broken:
            disk.world.note(process.name, f"disk fails: {what} {path}")
            if disk.store:
                raise OSError(
                    f"When {what} '{path}': AWS Error SLOW_DOWN during PutObject operation"
                )
            raise OSError(errno.EIO, "Input/output error", path)
        return False

    def get_file_info(self, what: Any) -> Any:
        if isinstance(what, str):
            self._begin("stat", what, writes=False)
            return self._info(what, what in self.disk.files)
        if not isinstance(what, pafs.FileSelector):
            return [self.get_file_info(path) for path in what]
        self._begin("list", what.base_dir, writes=False)
        start = what.base_dir + "/"
        found = {}
        for path in self.disk.names():
            if path.startswith(start):
                inside = path[len(start) :]
                name, deeper, _ = inside.partition("/")
                if deeper and not what.recursive:
                    found[start + name] = pafs.FileInfo(start + name, pafs.FileType.Directory)
                else:
                    found[path] = self._info(path, True)
        return [found[path] for path in sorted(found)]

    def _info(self, path: str, there: bool) -> pafs.FileInfo:
        if there:
            file = self.disk.files.get(path, File())
            mtime = EPOCH_S + file.mtime_s
            return pafs.FileInfo(path, pafs.FileType.File, mtime=mtime, size=len(file.data))
        if any(name.startswith(path + "/") for name in self.disk.files):
            return pafs.FileInfo(path, pafs.FileType.Directory)
        return pafs.FileInfo(path, pafs.FileType.NotFound)

    def _file(self, path: str) -> File:
        if path not in self.disk.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.disk.files[path]

    def open_input_file(self, path: str) -> pa.NativeFile:
        if self._begin("read", path, writes=False):
            raise Killed
        return pa.BufferReader(self._file(path).data)

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, **_: Any) -> Writer:
        if self._begin("create", path):
            raise Killed
        file = File(mtime_s=self.disk.world.now)
        if not self.disk.store:
            self.disk.name(path, file)
        return Writer(self, path, file)

    def open_append_stream(self, path: str, **_: Any) -> Writer:
        if self._begin("append", path):
            raise Killed
        if self.disk.store:
            raise OSError("an object store cannot append")
        if path not in self.disk.files:
            self.disk.name(path, File(mtime_s=self.disk.world.now))
        return Writer(self, path, self.disk.files[path])

    def create_dir(self, path: str, **_: Any) -> None:
        if self._begin("mkdir", path):
            raise Killed

    def move(self, source: str, to: str) -> None:
        if self._begin("move", source):
            raise Killed
        file = self._file(source)
        self.disk.name(to, file)
        self.disk.name(source, None)

    def delete_file(self, path: str) -> None:
        if self._begin("delete", path, writes=False):
            raise Killed
        self._file(path)
        self.disk.name(path, None)

    def delete_dir(self, path: str) -> None:
        if self._begin("delete", path, writes=False):
            raise Killed
        for name in [n for n in self.disk.files if n.startswith(path + "/")]:
            self.disk.name(name, None)

    def sync(self, path: str) -> None:
        if self._begin("sync", path):
            raise Killed
        if path in self.disk.files:
            self.disk.files[path].synced = self.disk.files[path].data
        else:
            self.disk.keep(path)


class Writer:
    """An open file."""

    def __init__(self, mount: Mount, path: str, file: File) -> None:
        self.mount, self.path, self.file = mount, path, file

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close(kind is None)

    def write(self, data: Any) -> int:
        data = bytes(data)
        disk = self.mount.disk
        before = len(self.file.data)
        try:
            killed = self.mount._begin("write", self.path)
        except OSError:
            if not disk.store:
                self.file.data += data[: disk.dice.randint(0, len(data))]
            raise
        self.file.data += data[: disk.dice.randint(0, len(data))] if killed else data
        disk.world.note(self.path, f"{before} + {len(self.file.data) - before} bytes")
        if killed:
            raise Killed
        return len(data)

    def flush(self) -> None:
        pass

    def close(self, whole: bool = True) -> None:
        if self.mount.process is not None and self.mount.process.dead:
            return
        if self.mount.disk.store and whole:
            killed = self.mount._begin("put", self.path)
            if not killed or self.mount.disk.dice.random() < 0.5:
                self.mount.disk.name(self.path, self.file)
            if killed:
                raise Killed
