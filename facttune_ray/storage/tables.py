"""Parquet tables on any `pyarrow.fs` path (a local folder, s3://, gs://).

    out/base/facts/
        _RECIPE.json            written first: what the parts are being made by
        part-00000.parquet ...  one a shard, each complete or absent
        _MANIFEST.json          written last: a table without it is unfinished

Every table of a run has the same shards and a topic lies whole in one of them, so stages join
shard by shard, without a shuffle. The manifest holds the recipe (the values that change the
rows; never paths or hardware), its fingerprint, row and error counts, calls and cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    """Cast rows to the table's schema and write one shard. `stats` travel in its metadata."""
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


def read(folder: Folder, columns: list[str] | None = None) -> pa.Table:
    """A whole finished table, shards in order. For the small ones: reports, not stages."""
    shards = range(manifest(folder)["shards"])
    return pa.concat_tables([read_part(folder, s, columns) for s in shards])


def rows(folder: Folder, shard: int) -> Iterator[dict]:
    """The rows of one shard as dicts."""
    for batch in read_part(folder, shard).to_batches():
        yield from batch.to_pylist()


def part_stats(folder: Folder, shard: int) -> dict:
    """Rows, errors and the stats that `write_part` stored, without reading the rows."""
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
    """The finished table's manifest; UserError when the table is absent or unfinished."""
    found = (folder / MANIFEST).read_json()
    if found is None:
        raise UserError(f"{folder} is not a finished table (no {MANIFEST})")
    return found


def has_manifest(folder: Folder) -> bool:
    return (folder / MANIFEST).exists()


def matching_manifest(folder: Folder, recipe: Recipe) -> dict | None:
    """The manifest when the table is there and made by this recipe, None when there is none.

    RecipeMismatch when another recipe made it: the line names each key that differs.
    """
    found = (folder / MANIFEST).read_json()
    if found is None:
        return None
    if found["fingerprint"] == fingerprint(recipe):
        return found
    raise RecipeMismatch(
        f"{folder} was made by another recipe: {difference(found['recipe'], recipe)}. "
        f"Use those values, another run.out, or delete that folder to make it again "
        f"(paid completions stay in the ledger)"
    )


def difference(old: Recipe, new: Recipe, most: int = 4) -> str:
    """`train.lr was 1e-05, now 3e-05; ...`"""
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    # what the user set explains what follows from it: inputs are named only when alone
    keys = [k for k in keys if not k.startswith("input.")] or keys
    shown = [f"{k} was {old.get(k)!r:.60}, now {new.get(k)!r:.60}" for k in keys[:most]]
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return "; ".join(shown) + more


def begin(folder: Folder, recipe: Recipe) -> None:
    """Start or resume a table: parts left by the same recipe stay, others are removed."""
    if (folder / RECIPE).read_json() != recipe:
        with writing(folder):
            folder.delete()
        (folder / RECIPE).write_json(recipe)


def present(folder: Folder, shards: int) -> set[int]:
    """Shards whose part is already written."""
    names = set(folder.names())
    return {s for s in range(shards) if part(s) in names}


def write_manifest(folder: Folder, table: str, recipe: Recipe, shards: int, wall_s: float) -> dict:
    """Write the manifest from the parts' stats, and return it."""
    totals: dict[str, float] = {}
    for shard in range(shards):
        for key, value in part_stats(folder, shard).items():
            totals[key] = totals.get(key, 0) + value
    made = {
        "table": table,
        "recipe": recipe,
        "fingerprint": fingerprint(recipe),
        "shards": shards,
        "wall_s": round(wall_s, 2),
        **{k: round(v, 6) if isinstance(v, float) else v for k, v in totals.items()},
    }
    for name in folder.names():  # of writers that were killed
        if name.endswith(".tmp"):
            (folder / name).delete_file()
    (folder / MANIFEST).write_json(made)
    return made
