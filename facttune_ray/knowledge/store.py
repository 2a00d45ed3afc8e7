"""Write the tables of a knowledge source in bulk; a killed writer resumes from its last commit.

documents  title PRIMARY KEY, text      FActScore's own form, which FActScore can open
titles     key, title, kind             other spellings: see knowledge/titles.py
spans      first, document, at          passage `first` is the document's passage `at`, and so on
passages   FTS5 over title and passage  contentless: it does not store the text again
common     word, passages               frequent words, and the number of their passages
meta       key, value                   titles, passages, skipped, version

For 10,000 articles the index took 0.65 s and 0.8 times the text's size. Without positions
(detail=column) it took 0.5 s and half the text's size, but then FTS5 counts words from the content,
which a contentless table lacks, and every BM25 score is 0.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.knowledge import titles
from facttune_ray.knowledge.passages import SEPARATOR, split
from facttune_ray.storage.memory import release_memory

VERSION = 2
TITLE, REDIRECT, BASE = 0, 1, 2  # titles.kind: an article's title, a redirect, without "(…)"
Key = tuple[str, str, int]  # a row of `titles`
_COMMON_LEAST, _COMMON_SHARE = 1000, 1000  # common: in 1,000 passages and in one of 1,000
_WAIT_S = 0.5  # how long to wait for another writer
_COMMIT_ROWS = 20_000  # rows between commits while indexing a database
Entry = tuple[str, list[str]]  # a title and its passages

_PRAGMAS = (
    "locking_mode = EXCLUSIVE",  # a second writer is refused
    "page_size = 8192",
    "journal_mode = TRUNCATE",  # new pages are not journalled: nearly free, and safe when killed
    "synchronous = NORMAL",
    "cache_size = -65536",  # KiB
    "temp_store = FILE",
)
_DOCUMENTS = "CREATE TABLE documents (title PRIMARY KEY, text)"
_TABLES = (
    "CREATE TABLE titles (key, title, kind)",
    "CREATE TABLE spans (first INTEGER PRIMARY KEY, document, at)",
    "CREATE TABLE common (word PRIMARY KEY, passages) WITHOUT ROWID",
    "CREATE TABLE meta (key PRIMARY KEY, value)",
    "CREATE TABLE progress (file PRIMARY KEY, lines)",
    "CREATE VIRTUAL TABLE passages USING fts5(title, text, content='', "
    "tokenize='unicode61 remove_diacritics 2')",
    "INSERT INTO passages (passages, rank) VALUES ('hashsize', 33554432)",  # bytes in memory
    "INSERT INTO passages (passages, rank) VALUES ('automerge', 0)",  # segments merge by 16
)


class Store:
    """An unfinished database beside `out`; `finish` renames it to `out`."""

    def __init__(self, out: str | Path, recipe: str, *, documents: bool = True) -> None:
        """Resume an unfinished database of the same recipe, or start one. `documents`: whether it
        holds the texts, too."""
        self.out = Path(out)
        self.unfinished = self.out.with_name(self.out.name + ".tmp")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            if not self._resumes(recipe):
                self._remove()
                self.database = self._open()
                self._create(recipe, documents)
        except sqlite3.OperationalError as e:
            busy = "locked" in str(e)
            hint = "is another build of it running?" if busy else "check the folder"
            raise UserError(f"cannot write {self.out}: {e}: {hint}") from None
        except OSError as e:
            raise UserError(f"cannot write {self.out}: {e.strerror}") from None
        (last,) = self.database.execute("SELECT MAX(id) FROM passages_docsize").fetchone()
        self.passages = last or 0
        self.skipped = int(self.meta("skipped") or 0)
        self._spans: list[tuple[int, int | None, int]] = []
        self._searchable: list[tuple[int, str, str]] = []

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.unfinished, isolation_level=None, timeout=_WAIT_S)
        try:
            for pragma in _PRAGMAS:
                database.execute(f"PRAGMA {pragma}")
        except sqlite3.DatabaseError:
            database.close()
            raise
        return database

    def _create(self, recipe: str, documents: bool) -> None:
        database = self.database
        database.execute("BEGIN EXCLUSIVE")
        for table in [_DOCUMENTS] * documents + list(_TABLES):
            database.execute(table)
        values = {"recipe": recipe, "version": VERSION}
        database.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        database.execute("COMMIT")
        database.execute("BEGIN EXCLUSIVE")

    def _resumes(self, recipe: str) -> bool:
        try:
            self.database = self._open()
        except sqlite3.OperationalError:  # locked, or a folder that cannot be written
            raise
        except sqlite3.DatabaseError:  # damaged, say by a crash of the machine
            return False
        try:
            self.database.execute("BEGIN EXCLUSIVE")
            if self.meta("recipe") == recipe and self.meta("version") == VERSION:
                return True
        except sqlite3.OperationalError as e:
            if "no such table" not in str(e):
                raise
        self.database.close()
        return False

    def _remove(self) -> None:
        for ending in ("", "-journal", "-wal", "-shm"):
            self.unfinished.with_name(self.unfinished.name + ending).unlink(missing_ok=True)

    def meta(self, key: str) -> Any:
        row = self.database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def progress(self) -> dict[str, int]:
        """File -> number of its committed lines."""
        return dict(self.database.execute("SELECT file, lines FROM progress"))

    def add(self, entries: Iterable[Entry], keys: Iterable[Key]) -> None:
        """Add articles in order. Passages of an existing title are appended to its passages."""
        run = self.database.execute
        for title, parts in entries:
            text = SEPARATOR.join(parts)
            added = run("INSERT OR IGNORE INTO documents VALUES (?, ?)", (title, text))
            if added.rowcount:
                self.index(added.lastrowid, 0, title, parts)
                continue
            query = "SELECT rowid, text FROM documents WHERE title = ?"
            document, before = run(query, (title,)).fetchone()
            joined = before + SEPARATOR + text
            run("UPDATE documents SET text = ? WHERE rowid = ?", (joined, document))
            self.index(document, before.count(SEPARATOR) + 1, title, parts)
        self.add_keys(keys)
        self.flush()

    def add_keys(self, keys: Iterable[Key]) -> None:
        self.database.executemany("INSERT INTO titles VALUES (?, ?, ?)", keys)

    def index(self, document: int | None, at: int, title: str, parts: Sequence[str]) -> None:
        """Index passages at, at + 1 ... of a document, with the next `flush`."""
        first = self.passages + 1
        self.passages += len(parts)
        self._spans.append((first, document, at))
        self._searchable += [(first + i, title, part) for i, part in enumerate(parts)]

    def flush(self) -> None:
        run = self.database.executemany
        run("INSERT INTO spans VALUES (?, ?, ?)", self._spans)
        run("INSERT INTO passages (rowid, title, text) VALUES (?, ?, ?)", self._searchable)
        self._spans, self._searchable = [], []

    def commit(self, progress: Iterable[tuple[str, int]] = ()) -> None:
        """Commit everything since the last commit, together with `progress`: (file, lines)."""
        self.flush()
        self.database.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?)", progress)
        self.note("skipped", self.skipped)
        self.database.execute("COMMIT")
        self.database.execute("BEGIN EXCLUSIVE")

    def finish(self, count: int) -> None:
        """Index the keys, then rename the database to `out`. `count`: number of its titles."""
        self.commit()
        run = self.database.execute
        run("COMMIT")
        run("PRAGMA synchronous = FULL")  # everything is on disk before the rename
        run("BEGIN EXCLUSIVE")
        run("CREATE INDEX titles_key ON titles (key, kind, title)")
        run("DROP TABLE progress")
        run("DELETE FROM meta WHERE key = 'recipe'")
        run("CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, passages, row)")
        least = max(_COMMON_LEAST, self.passages // _COMMON_SHARE)
        run("INSERT INTO common SELECT term, doc FROM temp.words WHERE doc >= ?", (least,))
        run("DROP TABLE temp.words")
        self.note("titles", count)
        self.note("passages", self.passages)
        run("COMMIT")
        run("PRAGMA journal_mode = DELETE")
        self.database.close()
        os.replace(self.unfinished, self.out)

    def abandon(self) -> None:
        """Remove the unfinished database."""
        self.close()
        self._remove()

    def close(self) -> None:
        """Close the database. Committed rows stay for the next attempt."""
        self.database.close()
        release_memory()  # SQLite's cache

    def note(self, key: str, value: object) -> None:
        self.database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def keys(title: str) -> list[Key]:
    """The rows of table `titles` for an article's title."""
    rows = [(titles.key(title), title, TITLE)]
    without = titles.base(title)
    return rows if without is None else [*rows, (titles.key(without), title, BASE)]


def add_index(path: str | Path) -> Path:
    """Make the index PATH.fts.db beside a database without index, such as FActScore's own.

    Read the database once, as a stream, and do not change it; a killed run resumes. Return the file
    with the index, which Articles(path) uses. Raise UserError without a table
    documents(title, text).
    """
    source = Path(path).resolve()
    if not source.is_file():
        raise UserError(f"knowledge source {path} does not exist")
    texts = sqlite3.connect(source.as_uri() + "?mode=ro", uri=True)
    try:
        if has_index(texts, "main"):
            return source
        version = fingerprint(texts, source)
        store = Store(source.with_name(source.name + ".fts.db"), version, documents=False)
        try:
            _index_all(store, texts)
            store.note("source", version)
            (count,) = store.database.execute("SELECT COUNT(*) FROM spans").fetchone()
            store.finish(count)
        finally:
            store.close()
    except sqlite3.DatabaseError as e:
        raise UserError(f"cannot index {path}: {e}") from None
    finally:
        texts.close()
    return store.out


def _index_all(store: Store, texts: sqlite3.Connection) -> None:
    (done,) = store.database.execute("SELECT MAX(document) FROM spans").fetchone()
    query = "SELECT rowid, title, text FROM documents WHERE rowid > ? ORDER BY rowid"
    for n, (document, title, text) in enumerate(texts.execute(query, (done or 0,)), 1):
        if isinstance(title, str) and isinstance(text, str):
            store.index(document, 0, title, split(text))
            store.add_keys(keys(title))
        if n % 500 == 0:
            store.flush()
        if n % _COMMIT_ROWS == 0:
            store.commit()


def has_index(database: sqlite3.Connection, schema: str) -> bool:
    query = f"SELECT COUNT(*) FROM {schema}.sqlite_master WHERE name IN (?, ?, ?, ?)"
    names = ("titles", "spans", "passages", "common")
    return database.execute(query, names).fetchone() == (4,)


def fingerprint(database: sqlite3.Connection, path: Path) -> str:
    """Size in bytes and last row, which identify the database of an index without reading it."""
    (last,) = database.execute("SELECT MAX(rowid) FROM documents").fetchone()
    return f"{path.stat().st_size} bytes, last row {last}"
