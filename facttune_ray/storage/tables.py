"""Parquet tables on any `pyarrow.fs` path (a local folder, s3://, gs://).

    out/base/facts/
        _RECIPE.json            written first: the recipe of the parts
        part-00000.parquet ...  one per shard, each complete or absent
        _MANIFEST.json          written last: a table without it is unfinished

Every table of a run has the same shards, and a topic lies whole in one shard, so stages join
shard by shard, without a shuffle. The manifest holds the recipe (the values that change the
rows; never paths or hardware), its fingerprint, row and error counts, calls and cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facttune_ray.errors import RecipeMismatch, UserError
from facttune_ray.storage.folders import Folder as Folder
from facttune_ray.storage.folders import writing as writing
from facttune_ray.storage.schema import TABLES, digest

MANIFEST, RECIPE = "_MANIFEST.json", "_RECIPE.json"
Recipe = dict[str, Any]


def part(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def write_part(folder: Folder, table: str, shard: int, rows: list[dict], stats: dict) -> None:
    """Cast rows to the table's schema and write one shard, with `stats` in its metadata."""
    schema = TABLES[table]
    data = pa.Table.from_pylist(rows, schema=schema)
    data = data.replace_schema_metadata({"facttune": json.dumps(stats)})
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, compression="zstd")
    (folder / part(shard)).write_bytes(sink.getvalue().to_pybytes())


def read_part(folder: Folder, shard: int, columns: list[str] | None = None) -> pa.Table:
    """One shard of a table."""
    file = folder / part(shard)
    return file.again(
        lambda: pq.read_table(file.path, filesystem=file.fs, columns=columns, partitioning=None)
    )


def columns(folder: Folder, shard: int = 0) -> set[str]:
    """The names of the columns of one shard."""
    file = folder / part(shard)
    return file.again(lambda: set(pq.read_schema(file.path, filesystem=file.fs).names))


def rows(
    folder: Folder, shard: int | None = None, topics: Set[str] | None = None
) -> Iterator[dict]:
    """The rows of one shard, or of every shard of a finished table in order, as dicts. `topics`:
    only rows about these topics."""
    for s in (shard,) if shard is not None else range(manifest(folder)["shards"]):
        data = read_part(folder, s)
        if topics is not None:
            wanted = pa.array(sorted(topics), pa.string())
            data = data.filter(pc.is_in(data["topic"], value_set=wanted))
        for batch in data.to_batches():
            yield from batch.to_pylist()


def rows_if_finished(folder: Folder, shard: int, topics: Set[str] | None = None) -> list[dict]:
    """The rows of one shard; [] if the table is not finished."""
    return list(rows(folder, shard, topics)) if has_manifest(folder) else []


def part_stats(folder: Folder, shard: int) -> dict:
    """Counts of rows and errors, and the stats that `write_part` stored. Reads no other column."""
    file = folder / part(shard)
    return file.again(lambda: _part_stats(file))


def _part_stats(file: Folder) -> dict:
    with file.fs.open_input_file(file.path) as f:
        parquet = pq.ParquetFile(f)
        stats = json.loads(parquet.schema_arrow.metadata[b"facttune"])
        stats["rows"] = parquet.metadata.num_rows
        errors = 0
        if "error" in parquet.schema_arrow.names:
            errors = pc.sum(pc.is_valid(parquet.read(["error"])["error"])).as_py() or 0
        return stats | {"errors": errors}


def fingerprint(recipe: Recipe) -> str:
    return digest(json.dumps(recipe, sort_keys=True), chars=16)


def manifest(folder: Folder) -> dict:
    """The finished table's manifest. Raise UserError when the table is absent or unfinished."""
    stored = (folder / MANIFEST).read_json()
    if stored is None:
        raise UserError(f"{folder} is not a finished table (no {MANIFEST})")
    return stored


def has_manifest(folder: Folder) -> bool:
    return (folder / MANIFEST).exists()


def matching_manifest(folder: Folder, recipe: Recipe) -> dict | None:
    """The manifest of a finished table, None when the table is absent or unfinished.

    Raise RecipeMismatch, which names each key that differs, when another recipe made the table.
    """
    stored = (folder / MANIFEST).read_json()
    if stored is None or stored["fingerprint"] == fingerprint(recipe):
        return stored
    raise RecipeMismatch(
        f"{folder} was made by another recipe: {difference(stored['recipe'], recipe)}. "
        f"Use those values, another run.out, or delete that folder to make it again "
        f"(paid completions stay in the ledger)"
    )


def difference(old: Recipe, new: Recipe, limit: int = 4) -> str:
    """The first `limit` keys that differ: `train.lr was 1e-05, now 3e-05; ... and 2 more`."""
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    # A changed setting explains a changed input: name inputs only when no setting differs.
    keys = [k for k in keys if not k.startswith("input.")] or keys
    shown = [f"{k} was {old.get(k)!r:.60}, now {new.get(k)!r:.60}" for k in keys[:limit]]
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return "; ".join(shown) + more


def begin(folder: Folder, recipe: Recipe) -> None:
    """Start or resume a table: keep parts of the same recipe, remove parts of another one."""
    if (folder / RECIPE).read_json() != recipe:
        with writing(folder):
            folder.delete()
        (folder / RECIPE).write_json(recipe)


def present(folder: Folder, shards: int) -> set[int]:
    """The shards whose part is written."""
    names = set(folder.names())
    return {s for s in range(shards) if part(s) in names}


def write_manifest(
    folder: Folder, table: str, recipe: Recipe, parts: int | Sequence[dict], wall_s: float
) -> dict:
    """Sum the parts' stats (texts: the distinct texts), write them with the recipe as the manifest,
    and return it. `parts`: the stats of each part, or the number of parts, whose stats are then
    read."""
    stats = [part_stats(folder, s) for s in range(parts)] if isinstance(parts, int) else parts
    totals: dict[str, Any] = {}
    texts: dict[str, dict[str, None]] = {}
    for part_of in stats:
        for key, value in part_of.items():
            if isinstance(value, str):
                texts.setdefault(key, {})[value] = None
            else:
                totals[key] = totals.get(key, 0) + value
    totals |= {key: "; ".join(values) for key, values in texts.items()}
    result = {
        "table": table,
        "recipe": recipe,
        "fingerprint": fingerprint(recipe),
        "shards": len(stats),
        "wall_s": round(wall_s, 2),
        **{k: round(v, 6) if isinstance(v, float) else v for k, v in totals.items()},
    }
    for name in folder.names():  # temporary files of writers that were killed
        if name.endswith(".tmp"):
            (folder / name).delete_file()
    (folder / MANIFEST).write_json(result)
    return result
