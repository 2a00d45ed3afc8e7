"""Folders on any `pyarrow.fs` file system: a local or shared path, s3://, gs://.

    out = Folder.of("s3://bucket/run") / "base"
    (out / "facts" / "_MANIFEST.json").write_json({...})     atomic
    with staged(out / "pretrain") as here:                   a local folder for libraries that
        model.save_pretrained(here / "model")                need one; uploaded after the block

Writes are atomic: an object store takes a file in one put; other file systems get a temporary file
that is renamed. Requests to an object store that refuses (503) or is slow are retried, ATTEMPTS
times over about a minute. `explain` turns the final error into one line for the user. Keys come
from the environment or the machine's role, never from a URI.
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
OBJECT_STORES = ("s3", "gcs", "abfs")  # a put is atomic there
CHUNK = 2**24  # bytes
CONNECT_S, REQUEST_S = 10.0, 60.0


def attempts(given: str) -> int:
    """The number of attempts. Raise UserError unless it is a whole number of at least 1."""
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"FACTTUNE_STORAGE_ATTEMPTS={given}: must be a whole number of at least 1")
    return int(given)


ATTEMPTS = attempts(os.environ.get("FACTTUNE_STORAGE_ATTEMPTS") or "8")  # per request
AGAIN_S = 60.0  # after this time a request that failed is not repeated


@dataclass(frozen=True)
class Folder:
    """A folder or file on some file system. `Folder.of("s3://bucket/run") / "facts"`."""

    fs: pafs.FileSystem
    path: str  # in the form that `fs` takes
    scheme: str = ""  # "s3://"; "" for a local path
    query: str = ""  # "?region=..."

    @staticmethod
    def of(uri: str) -> Folder:
        """Raise UserError for an unknown file system or a URI that holds a key."""
        if "://" not in uri or uri.startswith("file://"):
            path = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
            return Folder(pafs.LocalFileSystem(), path.rstrip("/"))
        parts = urlsplit(uri)
        if parts.password or (parts.scheme == "s3" and parts.username):
            raise UserError(
                f"{parts.scheme}://...@{parts.hostname}{parts.path}: a key in a URI would be "
                f"written to every table: set it in the environment (AWS_ACCESS_KEY_ID, ...)"
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
        """The local path or URI from which `Folder.of` makes this folder again."""
        return f"{self.scheme}{self.path}{self.query}"

    def __str__(self) -> str:
        return f"{self.scheme}{self.path}"

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def exists(self) -> bool:
        return self.again(lambda: self.fs.get_file_info(self.path)).type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        return self.again(lambda: self.fs.get_file_info(self.path)).is_file

    def names(self) -> list[str]:
        """Sorted names directly inside; [] when the folder is absent."""
        return sorted(info.base_name for info in self._inside())

    def files(self) -> list[str]:
        """Sorted paths of the files at any depth, relative to the folder; [] when it is absent."""
        return sorted(self.infos())

    def infos(self) -> dict[str, pafs.FileInfo]:
        """Path, relative to the folder -> size and time of each file at any depth; {} when the
        folder is absent."""
        inside = self._inside(recursive=True)
        return {info.path[len(self.path) + 1 :]: info for info in inside if info.is_file}

    def _inside(self, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        try:
            return self.again(lambda: self.fs.get_file_info(selector))
        except FileNotFoundError:  # a folder appeared or disappeared during the listing
            return self.again(lambda: self.fs.get_file_info(selector))

    def read_bytes(self) -> bytes:
        """The bytes of one version of the file, even if a writer replaces it meanwhile."""

        def read() -> bytes:
            while True:
                with self.fs.open_input_file(self.path) as f:
                    data = f.read_at(f.size(), 0)  # one request reads one version
                if self.local or self.fs.get_file_info(self.path).size == len(data):
                    return data

        return self.again(read)

    def again(self, work: Callable[[], T]) -> T:
        """Call `work`, and retry it for AGAIN_S while the store refuses or stalls. Arrow's own
        retries end early when a client has used up its quota of retries. They do not cover a
        refused read of a few bytes: Arrow reports a broken stream instead of the 503."""
        if self.local:
            return work()
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(AGAIN_S),
            wait=tenacity.wait_random_exponential(0.1, max=10),
            reraise=True,
        )(work)

    def read_json(self) -> Any | None:
        """The file's JSON, or None when the file is absent. Raise UserError for invalid JSON."""
        try:
            return json.loads(self.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f"{self.path}: damaged, not JSON: remove it, then run the same command again"
            ) from None

    def download(self, here: Path) -> None:
        """Copy this file to a local path."""

        def copy() -> None:
            with self.fs.open_input_stream(self.path) as remote, open(here, "wb") as local:
                shutil.copyfileobj(remote, local, CHUNK)

        self.again(copy)

    def write_bytes(self, data: bytes, durable: bool = False) -> None:
        """Write the file atomically: by one put on an object store, else by renaming a temporary
        file. The temporary name is random, so two writers (a worker and its replacement) cannot
        mix their bytes. `durable` syncs to disk, so the file survives a power loss."""
        with writing(self):
            if self.fs.type_name in OBJECT_STORES:
                return self.again(lambda: self._put(data))
            parent = self.path.rsplit("/", 1)[0]
            self.fs.create_dir(parent, recursive=True)
            temporary = f"{self.path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with self.fs.open_output_stream(temporary) as f:
                    f.write(data)
                if durable:
                    sync(self.fs, temporary)
                self.fs.move(temporary, self.path)
                if durable:
                    sync(self.fs, parent)  # the file's new name
            except BaseException:
                if self.fs.get_file_info(temporary).is_file:  # free its space: the disk may be full
                    self.fs.delete_file(temporary)
                raise

    def _put(self, data: bytes) -> None:
        with self.fs.open_output_stream(self.path) as f:
            f.write(data)

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    def delete(self) -> None:
        if self.exists():
            self.again(lambda: self.fs.delete_dir(self.path))

    def delete_file(self) -> None:
        """Remove the file if it exists."""
        if self.exists():
            self.again(lambda: self.fs.delete_file(self.path))

    def upload(self, here: Path) -> None:
        """Copy a local file, or the files of a local folder, to this place."""
        with writing(self):
            if here.is_dir():
                for name in sorted(p.name for p in here.iterdir()):
                    (self / name).upload(here / name)
            else:
                way = str(here), self.path, pafs.LocalFileSystem(), self.fs
                self.again(lambda: pafs.copy_files(*way, chunk_size=2**23))


def sync(fs: pafs.FileSystem, path: str) -> None:
    """Flush a local file's content, or a local folder's names, to the disk."""
    if isinstance(fs, pafs.LocalFileSystem):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class S3(pafs.S3FileSystem):
    """Arrow's S3 file system with more retries, which it keeps when it is pickled."""

    def __new__(cls, **options: Any) -> S3:
        return super().__new__(cls)

    def __init__(self, **options: Any) -> None:
        retries = pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        timeouts = {"connect_timeout": CONNECT_S, "request_timeout": REQUEST_S}
        super().__init__(retry_strategy=retries, allow_delayed_open=True, **timeouts, **options)
        self.options = options

    def __reduce__(self) -> tuple:
        return functools.partial(S3, **self.options), ()


@functools.lru_cache
def _s3(region: str, query: str, endpoint: str | None, scheme: str) -> S3:
    options = dict(parse_qsl(query))
    return S3(
        region=region or None,
        endpoint_override=options.get("endpoint_override", endpoint),
        scheme=options.get("scheme", scheme),
    )


def _endpoint() -> tuple[str | None, str]:
    """(host, scheme) of an S3 server other than Amazon's, from the variables of the AWS tools."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not given:
        return None, "https"
    scheme, _, host = given.rpartition("://")
    return host.rstrip("/"), scheme or "https"


def join(folder: str, name: str) -> str:
    """`name` inside `folder`; each may be a URI. An absolute `name` is returned unchanged."""
    if "://" in name or "://" not in folder:
        return name if "://" in name else str(Path(folder).expanduser() / name)
    return name if name.startswith("/") else (Folder.of(folder) / name).uri


def scratch(uri: str) -> Path:
    """This host's folder for files that grow, which an object store cannot hold: one per URI."""
    user = getattr(os, "getuid", lambda: "")()
    return Path(tempfile.gettempdir(), f"facttune-scratch-{user}", digest(uri))


@contextmanager
def staged(folder: Folder) -> Iterator[Path]:
    """A local folder whose files are in `folder` after the block: `folder` itself when it is local,
    else this host's scratch folder, which is uploaded, and kept when the block fails."""
    if folder.local:
        yield Path(folder.path)
        return
    here = scratch(folder.uri)
    here.mkdir(parents=True, exist_ok=True)
    yield here
    folder.upload(here)
    shutil.rmtree(here)


def fetched(source: Folder, files: Mapping[str, pafs.FileInfo], cache: Path) -> Path:
    """A local copy of these files of `source`, made once per host; made again when a file's size
    or modification time has changed. Raise OSError when the copy cannot be written."""

    def download(folder: Path) -> None:
        for name in files:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            (source / name).download(file)

    versions = sorted((name, info.size, info.mtime_ns) for name, info in files.items())
    return made_once(cache / digest(source.uri, versions) / Path(source.path).name, download)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, with the files that `make` writes, made once per host. The folder is atomic: one
    process makes it, the others wait."""
    import fcntl  # absent on Windows, where local paths need no copy

    unfinished = folder.with_name(f"{folder.name}.tmp")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when this process ends, even if killed
        if folder.exists():
            return folder
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
        try:
            unfinished.mkdir()
            make(unfinished)
            os.replace(unfinished, folder)
        except BaseException:  # free its space: the disk may be full
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder


# -- errors in plain words ---------------------------------------------------------------------

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
REFUSALS = {  # words in an object store's error -> cause and remedy
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
    """One line with a storage error's cause and remedy; None for an error of another kind."""
    if isinstance(error, OSError) and (hint := HINTS.get(error.errno or 0)):
        return hint
    text = str(error)
    if "No space left on device" in text:  # some libraries wrap the OSError in their own errors
        return FULL
    if isinstance(error, OSError) and error.errno is None and any(s in text for s in STORES):
        for sign, hint in REFUSALS.items():
            if sign in text:
                return hint
        line = one_line(error)
        if line.startswith("\x1b") or "ray::" in line:  # Ray added a worker's traceback
            line = one_line(getattr(error, "cause", None) or error)
        return f"the store does not answer: {line[:240]}: run the same command again: it goes on"
    return None


def outage(error: OSError) -> str | None:
    """`explain` for errors that reads raise, too: a store that does not answer, a full disk, an
    impossible path. None for other errors."""
    if error.errno not in (None, *HINTS.keys() - {errno.EEXIST}):
        return None
    named, line = re.search(r"'(/[^']+)'", str(error)), explain(error)
    return f"{named[1]}: {line}" if named and line and error.errno else line


def is_transient(error: BaseException) -> bool:
    """Whether an object store raised this error and a retry may succeed."""
    if not isinstance(error, OSError) or error.errno is not None:
        return False
    text = str(error)
    return any(s in text for s in STORES) and not any(sign in text for sign in REFUSALS)


@contextmanager
def writing(path: Folder | str) -> Iterator[None]:
    """Turn a full disk, a missing permission, a store that is down or a bad path into UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (hint := explain(error)) is None:
            raise
        raise UserError(f"cannot write {path}: {hint}") from None
