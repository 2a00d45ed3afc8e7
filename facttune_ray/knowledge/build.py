"""Build a knowledge source from articles: FActScore's SQLite form, and a full-text index.

in   {"title": "Mara Veldt", "text": ["Mara Veldt was born in ...", "..."]}   (or one string)
     {"title": "M. Veldt", "redirect": "Mara Veldt"}                          another name
     rows of Parquet, JSONL, JSON or CSV files, here or on an object store (storage/records.py)
out  table documents(title PRIMARY KEY, text), passages joined by SEPARATOR; see knowledge/store.py

Several processes parse the files and cut passages; this process writes them in the files' order.
The database gets its name only when it is complete. A killed build resumes from its last commit
when it is started again with the same files and settings. A repeated title gets both texts.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.knowledge import titles
from facttune_ray.knowledge.passages import PASSAGE_TOKENS, SEPARATOR, passages, sound
from facttune_ray.knowledge.store import REDIRECT, Entry, Key, Store, add_index, keys
from facttune_ray.storage import records
from facttune_ray.storage.folders import Folder

__all__ = ["SEPARATOR", "build", "main_build", "main_index", "passages", "write"]

COMMIT_S = 5.0  # seconds between commits: the work that a killed build loses
_POOL_BYTES = 4 * 2**20  # below this size one process is faster than starting a pool
_SQLITE = b"SQLite format 3\0"  # the first bytes of every SQLite database
COLUMNS = ("title", "text")


@dataclass
class Parsed:
    """The articles and redirects of one block of rows."""

    file: str
    last: int  # number of its last row
    entries: list[Entry] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    skipped: int = 0  # rows with an empty title or text
    error: str | None = None  # of the first bad row, at which parsing stopped


def build(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    workers: int = 0,
    passage_tokens: int = PASSAGE_TOKENS,
    commit_s: float = COMMIT_S,
    columns: tuple[str, str] = COLUMNS,
) -> int:
    """Build the database `out` from row files, folders or globs. Return the number of titles.

    `workers`: processes that parse (0: one per CPU). `passage_tokens`: largest length of a passage,
    see knowledge/passages.py. `commit_s`: seconds between commits. `columns`: the columns of titles
    and texts. Raise UserError with file and row of a bad row, or with the reason why `out` cannot
    be written.
    """
    if workers < 0:
        raise UserError(f"--workers {workers}: must be at least 0")
    _check_free(Path(out))
    files = records.files(inputs)
    store = Store(out, _recipe(files, passage_tokens, columns))
    workers = workers or os.cpu_count() or 1
    try:
        _fill(
            store, files, workers, partial(parse, limit=passage_tokens, columns=columns), commit_s
        )
        return _finish(store)
    except sqlite3.OperationalError as e:
        raise UserError(f"cannot write {out}: {e}") from None
    except BrokenProcessPool:
        raise UserError(
            f"cannot build {out}: a process of the build ended: killed for memory (run the same "
            f"command again with fewer workers: it resumes), or called from a script without "
            f'if __name__ == "__main__"'
        ) from None
    finally:
        store.close()


def _check_free(out: Path) -> None:
    """Raise UserError when `out` is a folder, or a file that is no database (say, an input)."""
    if out.is_dir():
        raise UserError(f"cannot write {out}: a folder: name the database's file")
    if out.exists():
        with open(out, "rb") as file:
            start = file.read(len(_SQLITE))
        if start not in (b"", _SQLITE):
            raise UserError(f"cannot write {out}: it exists and is no database: name another OUT")


def write(articles: Iterable[Mapping[str, Any]], out: str | Path, least: int = 1) -> int:
    """Stream articles into a new database. Return the number of titles. Raise UserError for fewer
    than `least` titles."""
    store = Store(out, f"articles {os.getpid()} {time.time_ns()}")
    try:
        for number, article in enumerate(articles, 1):
            parsed = Parsed("articles", number)
            _add_row(parsed, article, f"article {number}", PASSAGE_TOKENS, COLUMNS)
            store.add(parsed.entries, parsed.keys)
            store.skipped += parsed.skipped
        return _finish(store, least)
    except sqlite3.OperationalError as e:
        raise UserError(f"cannot write {out}: {e}") from None
    except BaseException:
        store.abandon()
        raise
    finally:
        store.close()


def main_build(
    inputs: Sequence[str | Path],
    out: str | Path,
    workers: int = 0,
    columns: tuple[str, str] = COLUMNS,
) -> int:
    """The command `knowledge build`: print one line of figures. Return the exit code."""
    started = time.monotonic()
    count = build(inputs, out, workers=workers, columns=columns)
    wall_s = time.monotonic() - started
    with sqlite3.connect(Path(out).resolve().as_uri() + "?mode=ro", uri=True) as database:
        meta = dict(database.execute("SELECT key, value FROM meta"))
    database.close()
    skipped = f", {meta['skipped']:,} rows skipped (empty)" if meta["skipped"] else ""
    print(
        f"{out}: {count:,} titles, {meta['passages']:,} passages{skipped}, "
        f"{wall_s:.1f} s, {count / max(wall_s, 1e-9):,.0f} articles/s"
    )
    return 0


def main_index(db: str | Path) -> int:
    """The command `knowledge index`. Return the exit code."""
    started = time.monotonic()
    print(f"{add_index(db)}: ready after {time.monotonic() - started:.1f} s")
    return 0


def _finish(store: Store, least: int = 1) -> int:
    (count,) = store.database.execute("SELECT COUNT(*) FROM documents").fetchone()
    if count < least:
        store.abandon()
        raise UserError(f"cannot build {store.out}: the input has no article")
    store.finish(count)
    return count


def _recipe(files: Sequence[str], passage_tokens: int, columns: tuple[str, str]) -> str:
    """Settings and versions of the files. A build resumes an unfinished build of equal recipe."""
    infos = [(f, f.fs.get_file_info(f.path)) for f in map(Folder.of, files)]
    versions = [(file.uri, info.size, info.mtime_ns) for file, info in infos]
    settings = {"passage_tokens": passage_tokens, "columns": columns}
    return json.dumps(settings | {"files": versions})


def _fill(
    store: Store, files: list[str], workers: int, parser: partial[Parsed], commit_s: float
) -> None:
    done: dict[str, int] = {}
    committed = time.monotonic()
    for parsed in _parsed(files, store.progress(), workers, parser):
        if parsed.error:
            raise UserError(parsed.error)
        store.add(parsed.entries, parsed.keys)
        store.skipped += parsed.skipped
        done[parsed.file] = parsed.last
        if time.monotonic() - committed >= commit_s:
            store.commit(done.items())
            done, committed = {}, time.monotonic()
    store.commit(done.items())


def _parsed(
    files: list[str], done: dict[str, int], workers: int, parser: partial[Parsed]
) -> Iterator[Parsed]:
    """The parsed blocks that are not done yet, in order."""
    places = list(map(Folder.of, files))
    size = sum(place.fs.get_file_info(place.path).size for place in places)
    # A file given twice is read twice, so its position is part of its name.
    names = [f"{i} {place.uri}" for i, place in enumerate(places)]
    columns = (*parser.keywords["columns"], "redirect")
    todo = (
        partial(parser, block, name)
        for file, name in zip(files, names, strict=True)
        for block in records.blocks(file, "IN", done.get(name, 0), columns)
    )
    if workers == 1 or size < _POOL_BYTES:
        yield from (work() for work in todo)
        return
    # Spawn, because a fork would copy locks that the caller's threads hold.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
        running: deque[Future[Parsed]] = deque()
        try:
            for work in todo:
                running.append(pool.submit(work))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when the build's main process ends, even if killed; else it would wait
    forever. Ignore Ctrl-C, which the main process handles; else each worker prints a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def parse(block: records.Block, name: str, *, limit: int, columns: tuple[str, str]) -> Parsed:
    """The articles of a block. `name`: of its file, for progress."""
    parsed = Parsed(name, block.first + block.count - 1)
    try:
        for where, row in block.rows():
            _add_row(parsed, row, where, limit, columns)
    except UserError as e:
        parsed.error = str(e)
    return parsed


def _add_row(parsed: Parsed, row: Any, where: str, limit: int, columns: tuple[str, str]) -> None:
    """Add an article or a redirect to `parsed`. Raise UserError for a row of another kind."""
    title_column, text_column = columns
    if not isinstance(row, Mapping) or not isinstance(row.get(title_column), str):
        raise UserError(f'{where}: needs "{title_column}": a string{_others(row)}')
    title = sound(row[title_column]).strip()
    redirect: Any = row.get("redirect")
    text: Any = row.get(text_column)
    if isinstance(redirect, str):
        target = sound(redirect).strip()
        if title and target:
            parsed.keys.append((titles.key(title), target, REDIRECT))
        else:
            parsed.skipped += 1
        return
    listed = isinstance(text, list | tuple) and all(isinstance(p, str) for p in text)
    if not isinstance(text, str) and not listed:
        raise UserError(
            f'{where}: needs "{text_column}": a string or a list of strings{_others(row)}'
        )
    parts = passages(text, limit)
    if title and parts:
        parsed.entries.append((title, parts))
        parsed.keys += keys(title)
    else:
        parsed.skipped += 1


def _others(row: Any) -> str:
    """The columns of a row, for the error of a missing column."""
    names = ", ".join(map(str, row)) if isinstance(row, Mapping) else ""
    return (
        f": the row has {names} (`facttune knowledge build` has --title-column, --text-column)"
        if names
        else ""
    )
