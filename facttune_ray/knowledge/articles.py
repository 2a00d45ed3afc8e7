"""Find articles by title, and passages by words, in a knowledge source of FActScore's SQLite form.

Articles("knowledge.db").find("mara veldt")
    ->  Article(title="Mara Veldt", passages=["Mara Veldt was born in ...", ...], how="case")
Articles("knowledge.db").search("cellist born in Lyon", 1)
    ->  [Hit(title="Mara Veldt", passage="Mara Veldt was born in ...", score=11.3)]
"""

from __future__ import annotations

import functools
import json
import shutil
import sqlite3
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from facttune_ray.errors import UserError
from facttune_ray.knowledge import titles
from facttune_ray.knowledge.local import local_copy
from facttune_ray.knowledge.passages import sound, split
from facttune_ray.knowledge.store import BASE, REDIRECT, TITLE, fingerprint, has_index
from facttune_ray.text.words import rarity_of

RARITY_ARTICLES = 2000  # articles whose passages give the word rarities
TITLE_WEIGHT = 2.0  # weight of a word in the title; a word in the passage has 1
_REDIRECTS = 4  # largest number of redirects that are followed
_TERMS = 64  # largest number of words of a query
POSTINGS = 300_000  # passages that a search may score, so that it takes about a second at most
How = Literal["exact", "case", "redirect", "normalised", "disambiguation"]
# words of most passages: ranking by them is slow and useless
_STOP = frozenset(
    "a an and are as at be been but by did do does for from had has have he her his in into is it "
    "its of on or she that the their they this to was were what when where which who with".split()
)


@dataclass(frozen=True)
class Article:
    """An article, found by a title."""

    title: str  # the stored title
    passages: list[str]
    how: How  # how the title matched: exactly, in another case, by a redirect ...


@dataclass(frozen=True)
class Hit:
    """A passage, found by a search."""

    title: str
    passage: str
    score: float  # BM25, higher is better


class Articles:
    """A knowledge source, read-only, for any number of threads. Raise UserError for a missing file
    and for a file of another form."""

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise UserError(f"knowledge source {path} does not exist")
        self.path = path
        self._file = Path(path).resolve()
        self._side = self._file.with_name(self._file.name + ".fts.db")
        self._of_thread = threading.local()
        try:
            self.database.execute("SELECT rowid, title, text FROM documents LIMIT 1").fetchall()
            self._index = self._find_index()  # the schema with the tables titles and passages
        except sqlite3.DatabaseError as e:
            raise UserError(
                f"knowledge source {path}: not a database with documents(title, text): {e}"
            ) from None

    @property
    def database(self) -> sqlite3.Connection:
        """This thread's own connection."""
        if not hasattr(self._of_thread, "database"):
            database = sqlite3.connect(
                self._file.as_uri() + "?mode=ro", uri=True, check_same_thread=False
            )
            if self._side.is_file():
                try:
                    database.execute("ATTACH ? AS side", (self._side.as_uri() + "?mode=ro",))
                except sqlite3.DatabaseError as e:
                    hint = "remove it, then make it again"
                    raise UserError(f"{self._side}: not an index: {e}: {hint}") from None
            self._of_thread.database = database
        return self._of_thread.database

    def _find_index(self) -> str | None:
        if has_index(self.database, "main"):
            return "main"
        if not self._side.is_file():
            return None
        query = "SELECT value FROM side.meta WHERE key = 'source'"
        row = has_index(self.database, "side") and self.database.execute(query).fetchone()
        return "side" if row and row[0] == fingerprint(self.database, self._file) else None

    def find(self, title: str) -> Article | None:
        """The article of a title; None for no article and for several equally good articles.

        Tried in order: the exact title; blanks for underscores; another case; other accents; a
        redirect; "Name" for the only "Name (…)", and the reverse. In a database without our index
        a few likely spellings are looked up by its own index on titles.
        """
        match = self._resolve(sound(title))
        if match is None:
            return None
        stored, how = match
        text = self._text(stored)
        return None if text is None else Article(stored, split(text), how)

    def passages(self, title: str) -> list[str] | None:
        """The passages of `find`'s article."""
        article = self.find(title)
        return None if article is None else article.passages

    def _text(self, title: str) -> str | None:
        row = self.database.execute(
            "SELECT text FROM documents WHERE title = ?", (title,)
        ).fetchone()
        return None if row is None else row[0] or ""

    def _resolve(self, title: str) -> tuple[str, How] | None:
        if self._text(title) is not None:
            return title, "exact"
        spaced = titles.spaced(title)
        if not spaced:
            return None
        if self._text(spaced) is not None:
            return spaced, "normalised"
        if self._index is None:
            return self._by_variants(title, spaced)
        return self._by_key(spaced)

    def _keyed(self, title: str, kind: int) -> list[str]:
        """The stored titles that share the key of `title`, sorted."""
        query = (
            f"SELECT DISTINCT title FROM {self._index}.titles WHERE key = ? AND kind = ? "
            "ORDER BY title LIMIT 100"
        )
        return [t for (t,) in self.database.execute(query, (titles.key(title), kind))]

    def _by_key(self, title: str, hops: int = _REDIRECTS) -> tuple[str, How] | None:
        same = self._keyed(title, TITLE)
        if same:
            cased = [t for t in same if titles.cased(t) == titles.cased(title)]
            chosen = _only(cased or same, title)
            how: How = "case" if cased else "normalised"
            return None if chosen is None else (chosen, how)
        targets = self._keyed(title, REDIRECT)
        if targets:
            ends = {end for t in targets if (end := self._end(t, hops)) is not None}
            return (ends.pop(), "redirect") if len(ends) == 1 else None
        base = titles.base(title)
        others = self._keyed(base or title, BASE)
        if base is None:
            return (others[0], "disambiguation") if len(others) == 1 else None
        plain = self._keyed(base, TITLE)
        return (plain[0], "disambiguation") if len(plain) == 1 and not others else None

    def _end(self, title: str, hops: int) -> str | None:
        """The title of the article at the end of a redirect."""
        if self._text(title) is not None:
            return title
        match = self._by_key(titles.spaced(title), hops - 1) if hops else None
        return match and match[0]

    def _by_variants(self, title: str, spaced: str) -> tuple[str, How] | None:
        for variant in titles.variants(title):
            if self._text(variant) is not None:
                same = titles.cased(variant) == titles.cased(title)
                return variant, "case" if same else "normalised"
        base = titles.base(spaced)
        for name in dict.fromkeys(titles.variants(base or spaced)):
            others = self._bracketed(name)
            if base is None and others:
                return (others[0], "disambiguation") if len(others) == 1 else None
            if base is not None and self._text(name) is not None:
                return (name, "disambiguation") if not others else None
        return None

    def _bracketed(self, name: str) -> list[str]:
        """Up to two titles "name (…)", read from a range of the titles' index, without a scan."""
        query = "SELECT title FROM documents WHERE title >= ? AND title < ? LIMIT 1000"
        rows = self.database.execute(query, (f"{name} (", f"{name} )"))
        return [t for (t,) in rows if titles.base(t) == name][:2]

    def search(self, query: str, k: int, *, postings: int = POSTINGS) -> list[Hit]:
        """The k passages of all articles with the highest BM25 score, best first.

        Any text is a query: quotes and operators have no meaning. A hit has at least one of the
        words. Only the rarest words count, as many as occur in `postings` passages together, which
        bounds the time. Raise UserError without a full-text index.
        """
        if self._index is None:
            raise UserError(
                f"knowledge source {self.path} has no full-text index"
                + (" that fits it" if self._side.is_file() else "")
                + f": make one beside it: facttune knowledge index {self.path}"
            )
        terms = self._affordable(_terms(query), postings)
        if not terms or k < 1:
            return []
        rows = self.database.execute(
            f"SELECT rowid, -rank FROM {self._index}.passages WHERE passages MATCH ? "
            f"AND rank MATCH 'bm25({TITLE_WEIGHT}, 1.0)' ORDER BY rank, rowid LIMIT ?",
            (" OR ".join(f'"{t}"' for t in terms), k),
        ).fetchall()
        return [self._hit(passage, score) for passage, score in rows]

    def _affordable(self, terms: list[str], postings: int) -> list[str]:
        """The rarest terms that occur in at most `postings` passages together; at least one."""
        query = f"SELECT passages FROM {self._index}.common WHERE word = ?"
        rows = {t: self.database.execute(query, (titles.key(t),)).fetchone() for t in terms}
        counts = {t: row[0] if row else 0 for t, row in rows.items()}
        kept: list[str] = []
        left = postings
        for term in sorted(terms, key=counts.__getitem__):
            left -= counts[term]
            if kept and left < 0:
                break
            kept.append(term)
        return kept

    def _hit(self, passage: int, score: float) -> Hit:
        first, document, at = self.database.execute(
            f"SELECT first, document, at FROM {self._index}.spans WHERE first <= ? "
            "ORDER BY first DESC LIMIT 1",
            (passage,),
        ).fetchone()
        title, text = self.database.execute(
            "SELECT title, text FROM documents WHERE rowid = ?", (document,)
        ).fetchone()
        return Hit(title, split(text)[at + passage - first], score)

    @functools.cached_property
    def rarity(self) -> Callable[[str], float]:
        """Weight of a stem: its inverse frequency in the passages of the first articles."""
        rows = self.database.execute(
            "SELECT text FROM documents ORDER BY rowid LIMIT ?", (RARITY_ARTICLES,)
        )
        return rarity_of(passage for (text,) in rows for passage in split(text))


def main_search(db: str, query: str, k: int, as_json: bool = False) -> int:
    """The command `knowledge search`: print titles, scores and beginnings, or whole passages as
    JSON. Return the exit code."""
    if k < 1:
        raise UserError(f"-k {k}: must be at least 1")
    width = min(shutil.get_terminal_size().columns, 100)
    hits = Articles(local_copy(db)).search(query, k)
    if as_json:
        print(json.dumps([vars(hit) for hit in hits], indent=1))
        return 0
    for hit in hits:
        print(f"{hit.title}  ({hit.score:.1f})")
        text = textwrap.shorten(hit.passage, 4 * (width - 4), placeholder=" ...")
        print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))
    if not hits:
        print("no passage has any of these words")
    return 0


def _only(candidates: list[str], title: str) -> str | None:
    """The only candidate; of several, `title` with a capital first letter; else None."""
    if len(candidates) == 1:
        return candidates[0]
    capital = title[:1].upper() + title[1:]
    return capital if capital in candidates else None


def _terms(query: str) -> list[str]:
    """Distinct words of a query, split as in the index; stop words only if there are no others."""
    words = dict.fromkeys(_words(query))
    content = [w for w in words if w not in _STOP]
    return (content or list(words))[:_TERMS]


def _words(text: str) -> Iterator[str]:
    """Runs of letters, digits and accents, which are the words of FTS5's tokenizer unicode61."""
    yield from "".join(c if _in_word(c) else " " for c in text.lower()).split()


def _in_word(c: str) -> bool:
    return unicodedata.category(c)[0] in "LN" or "\u0300" <= c <= "\u0331"
