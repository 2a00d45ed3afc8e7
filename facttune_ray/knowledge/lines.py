"""Read the lines of JSONL files, plain or compressed (.gz, .bz2, .xz, .zst), in blocks.

for block in blocks(Path("wiki.jsonl.zst"), skip=0):  ->  Block(first=1, lines=512, data=b"{...")
"""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from facttune_ray.errors import UserError

BLOCK_BYTES = 2**20  # text that one process parses at once
_ENDINGS = (".jsonl", ".ndjson", ".json")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Block:
    """Whole lines of one file."""

    first: int  # number of its first line, from 1
    lines: int
    data: bytes


def files(inputs: Sequence[str | Path]) -> list[Path]:
    """The files that paths, globs and folders (their JSONL files, sorted) name. Raise UserError for
    a name without a file."""
    paths: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            names = sorted(p for p in path.rglob("*") if _is_source(p) and p.is_file())
            if not names:
                raise UserError(f"{path}: no .jsonl file in this folder (.gz, .bz2, .xz, .zst too)")
            paths += names
        elif path.exists():
            paths.append(path)
        else:
            names = [Path(p) for p in sorted(glob.glob(str(item), recursive=True))]
            if not names:
                raise UserError(f"{item}: No such file or directory")
            paths += files(names)
    return paths


def _is_source(path: Path) -> bool:
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(_ENDINGS)


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in _COMPRESSED


def blocks(path: Path, skip: int = 0, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Blocks of about `size` bytes that end at line ends, without the first `skip` lines."""
    number = 1
    rest = b""
    with _open(path) as stream:
        while True:
            read = _read(path, stream, size)
            data = rest + read
            end = data.rfind(b"\n") + 1 if read else len(data)
            data, rest = data[:end], data[end:]
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
            if lines and number + lines - 1 > skip:
                drop = max(0, skip - number + 1)
                kept = data.split(b"\n", drop)[-1] if drop else data
                yield Block(number + drop, lines - drop, kept)
            number += lines
            if not read:
                return


def _open(path: Path) -> IO[bytes] | Any:
    try:
        match path.suffix.lower():
            case ".gz":
                return gzip.open(path)
            case ".bz2":
                return bz2.open(path)
            case ".xz":
                return lzma.open(path)
            case ".zst":
                import pyarrow as pa

                return pa.input_stream(str(path), compression="zstd")
        return open(path, "rb")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from None


def _read(path: Path, stream: IO[bytes], size: int) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as e:  # pyarrow raises OSError
        raise UserError(
            f"{path}: cannot be read: {' '.join(str(e).split())}: is it truncated, or is its "
            f"compression not {path.suffix or 'none'}?"
        ) from None
