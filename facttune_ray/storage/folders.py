"""Folders on any `pyarrow.fs` file system: a local or shared path, s3://, gs://.

    out = Folder.of("s3://bucket/run") / "base"
    (out / "facts" / "_MANIFEST.json").write_json({...})     whole or not at all
    with staged(out / "pretrain") as here:                   a local folder for libraries that
        model.save_pretrained(here / "model")                need one; its files stand there after

A file appears whole, whoever dies: an object store takes it in one put, elsewhere a file of a name
of its own is renamed. Object stores are asked again while they refuse (503) or are slow, ATTEMPTS
times over about a minute; what fails then is one line for the user (`explain`). Keys come from the
environment or the machine's role, never from a URI.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import tenacity

from facttune_ray.errors import UserError, one_line
from facttune_ray.storage.schema import digest

T = TypeVar("T")
OBJECT_STORES = ("s3", "gcs", "abfs")  # what is put there appears at once
CHUNK = 2**24  # bytes
CONNECT_S, REQUEST_S = 10.0, 60.0


def attempts(given: str) -> int:
    """UserError unless it is a whole number of at least 1."""
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"FACTTUNE_STORAGE_ATTEMPTS={given}: must be a whole number of at least 1")
    return int(given)


ATTEMPTS = attempts(os.environ.get("FACTTUNE_STORAGE_ATTEMPTS") or "8")  # of one request


@dataclass(frozen=True)
class Folder:
    """A folder or file on some file system. `Folder.of("s3://bucket/run") / "facts"`."""

    fs: pafs.FileSystem
    path: str  # as `fs` takes it
    scheme: str = ""  # "s3://"; "" for a local path
    query: str = ""  # "?region=..."

    @staticmethod
    def of(uri: str) -> Folder:
        """UserError when there is no such file system, or the URI holds a key."""
        if "://" not in uri or uri.startswith("file://"):
            path = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
            return Folder(pafs.LocalFileSystem(), path.rstrip("/"))
        parts = urlsplit(uri)
        if parts.password or (parts.scheme == "s3" and parts.username):
            raise UserError(
                f"{parts.scheme}://...@{parts.hostname}{parts.path}: a key in a URI would stand in "
                f"every table: give it by environment (AWS_ACCESS_KEY_ID, ...) instead"
            )
        try:
            fs, path = pafs.FileSystem.from_uri(uri)
            if isinstance(fs, pafs.S3FileSystem):
                fs = _s3(fs.region, parts.query, *_endpoint())
        except (pa.ArrowException, OSError) as e:
            raise UserError(f"{uri}: {one_line(e)}") from None
        query = f"?{parts.query}" if parts.query else ""
        return Folder(fs, path.rstrip("/"), f"{parts.scheme}://", query)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.fs, f"{self.path}/{name}", self.scheme, self.query)

    @property
    def uri(self) -> str:
        """What `Folder.of` takes: a local path, or a URI."""
        return f"{self.scheme}{self.path}{self.query}"

    def __str__(self) -> str:
        return f"{self.scheme}{self.path}"

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def exists(self) -> bool:
        return self.fs.get_file_info(self.path).type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        return self.fs.get_file_info(self.path).is_file

    def names(self) -> list[str]:
        """Names directly inside, sorted; [] when the folder is absent."""
        return sorted(info.base_name for info in self._inside())

    def files(self) -> list[str]:
        """Files at any depth, relative to the folder, sorted; [] when it is absent."""
        found = self._inside(recursive=True)
        return sorted(info.path[len(self.path) + 1 :] for info in found if info.is_file)

    def _inside(self, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        try:
            return self.fs.get_file_info(selector)
        except FileNotFoundError:  # it appeared, or a folder in it went, while it was listed
            return self.fs.get_file_info(selector)

    def read_bytes(self) -> bytes:
        """One version of the file, also where it is replaced meanwhile."""

        def read() -> bytes:
            while True:
                with self.fs.open_input_file(self.path) as f:
                    data = f.read_at(f.size(), 0)  # one request: of one version
                if self.local or self.fs.get_file_info(self.path).size == len(data):
                    return data

        return self.again(read)

    def again(self, read: Callable[[], T]) -> T:
        """What `read` gives, asked again while the store refuses or stalls. Arrow's own patience
        does not cover a refusal of a few bytes: its text does not fit where they should go."""
        if self.local:
            return read()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, OSError) and passing(e)),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_random_exponential(0.1, max=10),
            reraise=True,
        )
        return retrying(read)

    def read_json(self) -> Any | None:
        """The file's JSON, or None when it is absent. UserError when it is damaged."""
        try:
            return json.loads(self.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f"{self.path}: damaged, it is no JSON: remove it, then run the same command again"
            ) from None

    def download(self, here: Path) -> None:
        """Copy this file to a local path."""

        def copy() -> None:
            with self.fs.open_input_stream(self.path) as remote, open(here, "wb") as local:
                shutil.copyfileobj(remote, local, CHUNK)

        self.again(copy)

    def write_bytes(self, data: bytes, durable: bool = False) -> None:
        """Whole or not at all: one put on an object store, elsewhere a file that is renamed. Its
        name is nobody else's, so of two writers, say a worker and its successor, each one is
        whole. `durable`: also when the host loses its power right after."""
        with writing(self):
            if self.fs.type_name in OBJECT_STORES:
                with self.fs.open_output_stream(self.path) as f:
                    f.write(data)
                return
            parent = self.path.rsplit("/", 1)[0]
            self.fs.create_dir(parent, recursive=True)
            growing = f"{self.path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with self.fs.open_output_stream(growing) as f:
                    f.write(data)
                if durable:
                    sync(self.fs, growing)
                self.fs.move(growing, self.path)
                if durable:
                    sync(self.fs, parent)  # the file's new name
            except BaseException:
                if self.fs.get_file_info(growing).is_file:  # of a full disk, above all
                    self.fs.delete_file(growing)
                raise

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    def delete(self) -> None:
        if self.exists():
            self.fs.delete_dir(self.path)

    def delete_file(self) -> None:
        """Remove a file; one that is gone already is no error."""
        if self.exists():
            self.fs.delete_file(self.path)

    def upload(self, here: Path) -> None:
        """Copy a local file, or the files of a local folder, to this place."""
        with writing(self):
            if here.is_dir():
                for name in sorted(p.name for p in here.iterdir()):
                    (self / name).upload(here / name)
            else:
                pafs.copy_files(
                    str(here), self.path, pafs.LocalFileSystem(), self.fs, chunk_size=2**23
                )


def sync(fs: pafs.FileSystem, path: str) -> None:
    """Bring a file's content, or a folder's names, from the system's memory to the disk itself."""
    if isinstance(fs, pafs.LocalFileSystem):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class S3(pafs.S3FileSystem):
    """Arrow's, which asks again for longer. Unlike Arrow's it does so wherever it is sent."""

    def __new__(cls, **options: Any) -> S3:
        return super().__new__(cls)

    def __init__(self, **options: Any) -> None:
        patient = pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        times = {"connect_timeout": CONNECT_S, "request_timeout": REQUEST_S}
        super().__init__(retry_strategy=patient, allow_delayed_open=True, **times, **options)
        self.options = options

    def __reduce__(self) -> tuple:
        return _made, (self.options,)


def _made(options: dict[str, Any]) -> S3:
    return S3(**options)


@functools.lru_cache
def _s3(region: str, query: str, endpoint: str | None, scheme: str) -> S3:
    options = dict(parse_qsl(query))
    return S3(
        region=region or None,
        endpoint_override=options.get("endpoint_override", endpoint),
        scheme=options.get("scheme", scheme),
    )


def _endpoint() -> tuple[str | None, str]:
    """(host, scheme) of another S3 than Amazon's: the environment names it to every AWS tool."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not given:
        return None, "https"
    scheme, _, host = given.rpartition("://")
    return host.rstrip("/"), scheme or "https"


def join(folder: str, name: str) -> str:
    """`name` inside `folder`, either of which may be a URI; an absolute name is itself."""
    if "://" in name or "://" not in folder:
        return name if "://" in name else str(Path(folder).expanduser() / name)
    return name if name.startswith("/") else (Folder.of(folder) / name).uri


def scratch(uri: str) -> Path:
    """This host's folder for what cannot grow on an object store: the same for the same URI."""
    user = getattr(os, "getuid", lambda: "")()
    return Path(tempfile.gettempdir(), f"facttune-scratch-{user}", digest(uri))


@contextmanager
def staged(folder: Folder) -> Iterator[Path]:
    """A local folder whose files stand in `folder` after the block: that one itself when it is
    local, else this host's scratch folder, which stays when the block fails."""
    if folder.local:
        yield Path(folder.path)
        return
    here = scratch(folder.uri)
    here.mkdir(parents=True, exist_ok=True)
    yield here
    folder.upload(here)
    shutil.rmtree(here)


def fetched(source: Folder, files: Mapping[str, pafs.FileInfo], cache: Path) -> Path:
    """A folder of this host with these files of `source`, copied once: another one when a file's
    size or time of change is another. It appears whole or not at all; of several processes one
    fetches and the others wait. OSError when it cannot be written."""
    import fcntl  # not on Windows, where local paths work

    marks = sorted((name, info.size, info.mtime_ns) for name, info in files.items())
    place = cache / digest(source.uri, marks)
    copy, unfinished = place / Path(source.path).name, place / f"{Path(source.path).name}.tmp"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed when its process ends, however it ends
        if copy.exists():
            return copy
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        try:
            for name in files:
                file = unfinished / name
                file.parent.mkdir(parents=True, exist_ok=True)
                (source / name).download(file)
            os.replace(unfinished, copy)
        except BaseException:  # a full disk, above all: give the space back
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return copy


# -- what a user is told ---------------------------------------------------------------------

FULL = "no space left: free some, then run the same command again"
HINTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "disk quota reached: free some, then run the same command again",
    errno.EIO: "the disk does not work (input/output error): choose another folder",
    errno.EACCES: "permission denied: choose another folder",
    errno.EPERM: "not permitted there: choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another one",
    errno.EEXIST: "a file is in the way: choose another folder",
}
REFUSALS = {  # in what object stores say
    "NO_SUCH_BUCKET": "no such bucket: make it first, or check its name",
    "NoSuchBucket": "no such bucket: make it first, or check its name",
    "ACCESS_DENIED": "access denied: check the rights of the key or the machine's role",
    "PERMISSION_DENIED": "access denied: check the rights of the key or the machine's role",
    "HTTP status 403": "access denied: check the rights of the key or the machine's role",
    "INVALID_ACCESS_KEY_ID": "unknown key: check AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "wrong key: check AWS_SECRET_ACCESS_KEY",
}
STORES = ("AWS Error", "google::cloud::Status", "GetObject", "PutObject", "Azure")


def explain(error: BaseException) -> str | None:
    """What a storage error means and what to do, on one line; None when it is another error."""
    if isinstance(error, OSError) and (hint := HINTS.get(error.errno or 0)):
        return hint
    text = str(error)
    if "No space left on device" in text:  # libraries wrap it in errors of their own
        return FULL
    if isinstance(error, OSError) and error.errno is None and any(s in text for s in STORES):
        for sign, hint in REFUSALS.items():
            if sign in text:
                return hint
        said = one_line(error)
        if said.startswith("\x1b") or "ray::" in said:  # a worker's, with its traceback
            said = one_line(getattr(error, "cause", None) or error)
        return f"the store does not answer: {said[:240]}: run the same command again: it goes on"
    return None


def outage(error: OSError) -> str | None:
    """`explain` of what may happen anywhere, to a reader too: a store that is away, a full disk, a
    path that cannot be."""
    if error.errno not in (None, *HINTS.keys() - {errno.EEXIST}):
        return None
    named, line = re.search(r"'(/[^']+)'", str(error)), explain(error)
    return f"{named[1]}: {line}" if named and line and error.errno else line


def passing(error: BaseException) -> bool:
    """Whether a store said it, and may say otherwise soon."""
    text = str(error)
    ours = isinstance(error, OSError) and error.errno is None and any(s in text for s in STORES)
    return ours and not any(sign in text for sign in REFUSALS)


class writing:
    """Turn a full disk, a missing right, a store that is down or a bad path into one clear line."""

    def __init__(self, path: Folder | str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            if (hint := explain(error)) is not None:
                raise UserError(f"cannot write {self.path}: {hint}") from None
