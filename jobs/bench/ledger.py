"""Looking up paid completions when a run starts: this project's ledger beside other stores.

Every store holds the same rows. A fresh process opens the store and looks up the same keys, of
which half are in it. The figures are its wall time and its peak memory.

    python -m bench.ledger sqlite FOLDER 1000000 100000
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.machine import peak_mb
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.replies import Completion
from facttune_ray.storage.tables import Folder

BATCH = 50_000


def key(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def text(i: int) -> str:
    """An answer of about three facts: 200 characters that hardly compress."""
    words = hashlib.sha512(str(i).encode()).hexdigest()
    return f"- Mara Veldt was born in {words[:50]}.\n- She {words[50:90]}.\n- She {words[90:]}."


def wanted(rows: int, keys: int) -> list[bytes]:
    """Keys to look up; every second key is in the store."""
    step = max(1, rows // keys)
    return [key(i * step if i % 2 else -1 - i) for i in range(keys)]


def fill_segments(folder: Path, rows: int) -> None:
    async def put() -> None:
        ledger = Ledger(Folder.of(str(folder)), flush_s=0.01, run="r", stage="facts")
        for start in range(0, rows, BATCH):
            batch = range(start, min(rows, start + BATCH))
            await asyncio.gather(*(ledger.put(key(i), _completion(i)) for i in batch))
        await ledger.close()

    asyncio.run(put())


def _completion(i: int) -> Completion:
    return Completion(text(i), 220, 40, "gpt-4o-mini-2024-07-18", 1, 0.31)


def find_segments(folder: Path, keys: list[bytes]) -> int:
    return len(Ledger(Folder.of(str(folder))).find(keys))


def fill_sqlite(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("CREATE TABLE cache (key BLOB PRIMARY KEY, value TEXT)")
        for start in range(0, rows, BATCH):
            batch = range(start, min(rows, start + BATCH))
            values = ((key(i), json.dumps(vars(_completion(i)))) for i in batch)
            database.executemany("INSERT INTO cache VALUES (?, ?)", values)


def find_sqlite(folder: Path, keys: list[bytes]) -> int:
    found = {}
    with sqlite3.connect(folder / "cache.db") as database:
        for start in range(0, len(keys), 500):
            batch = keys[start : start + 500]
            marks = ",".join("?" * len(batch))
            query = f"SELECT key, value FROM cache WHERE key IN ({marks})"
            found.update(
                {k: Completion(**json.loads(v)) for k, v in database.execute(query, batch)}
            )
    return len(found)


def fill_pickle(folder: Path, rows: int) -> None:
    """One dict in one file, as FActScore and FactTune's scripts keep it."""
    folder.mkdir(parents=True)
    with open(folder / "cache.pkl", "wb") as f:
        pickle.dump({key(i): vars(_completion(i)) for i in range(rows)}, f)


def find_pickle(folder: Path, keys: list[bytes]) -> int:
    with open(folder / "cache.pkl", "rb") as f:
        cache = pickle.load(f)
    return len({k: Completion(**cache[k]) for k in keys if k in cache})


Fill = Callable[[Path, int], None]
Find = Callable[[Path, list[bytes]], int]
STORES: dict[str, tuple[Fill, Find]] = {
    "facttune_ray": (fill_segments, find_segments),
    "sqlite": (fill_sqlite, find_sqlite),
    "pickle": (fill_pickle, find_pickle),
}


def look_up(name: str, folder: Path, rows: int, keys: int) -> dict[str, float | None]:
    """Seconds, peak memory and number of keys found, in this process."""
    looked_up = wanted(rows, keys)
    started = time.monotonic()
    found = STORES[name][1](folder, looked_up)
    wall_s = time.monotonic() - started
    return {"look_up_s": round(wall_s, 3), "peak_mb": peak_mb(), "found": found}


if __name__ == "__main__":
    name, path, rows, keys = sys.argv[1:]
    print(json.dumps(look_up(name, Path(path), int(rows), int(keys))))
