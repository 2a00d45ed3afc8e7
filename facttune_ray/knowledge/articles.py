"""Articles of a knowledge source in FActScore's SQLite form.

Articles("knowledge.db").passages("Mara Veldt")  ->  ["Mara Veldt was born in ...", ...]
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.knowledge.build import SEPARATOR
from facttune_ray.scoring.verify_lexical import rarity_of

RARITY_ARTICLES = 2000  # articles that word rarities are counted in


class Articles:
    """A read-only connection. UserError when the file is missing or of another form."""

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise UserError(f"knowledge source {path} does not exist")
        self.path = path
        self.database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        try:
            self.database.execute("SELECT title, text FROM documents LIMIT 1")
        except sqlite3.DatabaseError as e:
            raise UserError(
                f"knowledge source {path}: not a database with documents(title, text): {e}"
            ) from None

    def passages(self, title: str) -> list[str] | None:
        """The article's passages; None when there is no such title, whatever its case."""
        query = "SELECT text FROM documents WHERE title = ?"
        row = self.database.execute(query, (title,)).fetchone()
        if row is None:
            spaced = title.replace("_", " ").strip()
            row = self.database.execute(query + " COLLATE NOCASE", (spaced,)).fetchone()
        return None if row is None else split(row[0])

    @functools.cached_property
    def rarity(self) -> Callable[[str], float]:
        """Weight of a word's stem: its inverse frequency over this source's first passages."""
        rows = self.database.execute(
            "SELECT text FROM documents ORDER BY rowid LIMIT ?", (RARITY_ARTICLES,)
        )
        return rarity_of(passage for (text,) in rows for passage in split(text))


def split(text: str) -> list[str]:
    """Stored text -> passages, without the sentence marks of FActScore's own databases."""
    parts = (re.sub(r"</?s>", " ", p) for p in text.split(SEPARATOR))
    return [" ".join(p.split()) for p in parts if p.strip()]
