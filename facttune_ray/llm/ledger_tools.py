"""`facttune ledger stats|compact|verify|gc`: care of a ledger, also while runs write to it."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.errors import UserError
from facttune_ray.llm.journal import attempts, unknown
from facttune_ray.llm.ledger import Ledger, crc, while_merged
from facttune_ray.llm.segments import Segment, key_ranges, read_segment, rows_in
from facttune_ray.storage.tables import Folder, writing

P = ParamSpec("P")
T = TypeVar("T")
COMPACTED_ROWS = 2**18  # most rows of a compacted segment, which a compaction holds in memory
TEMPORARY_S = 3600.0  # an older temporary file or torn segment belongs to no writer


def open_ledger(folder: Folder) -> Ledger:
    if not folder.exists():
        raise UserError(f"{folder.path}: no ledger there")
    return Ledger(folder)


def _of_folder(
    work: Callable[Concatenate[Ledger, P], T],
) -> Callable[Concatenate[Folder, P], T]:
    """Open the ledger of a folder for `work`; begin again when a run has merged a segment that
    `work` was about to read."""

    @functools.wraps(work)
    def begin(folder: Folder, *args: P.args, **options: P.kwargs) -> T:
        return while_merged(lambda: work(open_ledger(folder), *args, **options))

    return begin


@_of_folder
def stats(ledger: Ledger) -> list[dict]:
    """One row per stage and served model: completions, tokens, dollars, mean latency in seconds,
    first and last Unix time."""
    columns = ["key", "stage", "served_model", "prompt_tokens", "completion_tokens", "cost_usd"]
    columns += ["latency_s", "created_s", "attempts", "prompt_chars"]
    sums = ["prompt_tokens", "completion_tokens", "cost_usd", "attempts", "prompt_chars"]
    sums += ["measured_tokens", "latency_s"]
    aggregates = [("key", "count"), ("latency_s", "count"), *((c, "sum") for c in sums)]
    aggregates += [("created_s", "min"), ("created_s", "max")]
    totals: dict[tuple[str, str], dict] = {}
    for name in ledger.segments:
        table = read_segment(ledger.folder / name, columns)
        # the tokens of those prompts whose characters are known: a batch of a killed run has none
        measured = pc.if_else(pc.greater(table["prompt_chars"], 0), table["prompt_tokens"], 0)
        table = table.append_column("measured_tokens", measured)
        for part in table.group_by(["stage", "served_model"]).aggregate(aggregates).to_pylist():
            total = totals.setdefault((part.pop("stage"), part.pop("served_model")), {})
            for column, value in part.items():
                add = {"min": min, "max": max}.get(column[-3:], lambda a, b: (a or 0) + (b or 0))
                total[column] = add(total[column], value) if column in total else value
    rows = []
    for (stage, model), total in sorted(totals.items()):
        row = {"stage": stage, "model": model, "completions": total["key_count"]}
        row |= {column: total[f"{column}_sum"] for column in sums}
        timed = total["latency_s_count"]
        row["latency_s"] = row["latency_s"] / timed if timed else None
        rows.append(row | {"first_s": total["created_s_min"], "last_s": total["created_s_max"]})
    return rows


@_of_folder
def compact(ledger: Ledger) -> dict[str, int]:
    """Merge all segments into few, sorted by key across segments. Of rows with equal keys the
    oldest stays. Runs may go on: a segment is removed after its rows stand in a new one."""
    old = dict(ledger.segments)
    rows = 0
    with writing(ledger.folder.path):
        for table in _sorted_rows(old):
            rows += table.num_rows
            ledger.add(table)
        for name in old:
            ledger.remove(name)
    return {
        "segments_before": len(old),
        "segments": len(ledger.segments),
        "rows_before": sum(len(s.prefixes) for s in old.values()),
        "rows": rows,
        "torn": len(ledger.torn),
    }


def _sorted_rows(segments: dict[str, Segment]) -> Iterator[pa.Table]:
    """The rows sorted by key and without repeated keys, one key range after the other."""
    total = sum(len(s.prefixes) for s in segments.values())
    for low, high in key_ranges(total, COMPACTED_ROWS):
        spans = [(s, rows_in(s.prefixes, low, high)) for s in segments.values()]
        tables = [t for s, rows in spans if (t := s.read(rows.start, rows.stop)).num_rows]
        if tables:
            rows = pa.concat_tables(tables)
            rows = rows.sort_by([("key", "ascending"), ("created_s", "ascending")])
            keys = rows["key"].combine_chunks()
            new = [True, *pc.not_equal(keys[1:], keys[:-1]).to_pylist()]
            yield rows.filter(pa.array(new))


class Verified(TypedDict):
    segments: int
    rows: int
    repeated: int  # rows whose key another row has
    torn: list[str]  # segments
    damaged: list[str]  # segments
    unknown: list[str]  # keys of requests that may have been billed without an answer
    stored: list[str]  # keys of requests whose answer the server keeps and no run has fetched


@_of_folder
def verify(ledger: Ledger) -> Verified:
    """Read and check every row of every segment, and list the open attempts of the journals."""
    rows, damaged, prefixes = 0, [], []
    for name, segment in ledger.segments.items():
        try:
            table = read_segment(ledger.folder / name)
            table.validate(full=True)
            intact = all(crc(r) == r["crc"] for r in table.to_pylist())
            rows += table.num_rows
            prefixes.append(segment.prefixes)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            intact = False
        if not intact or (segment.prefixes[1:] < segment.prefixes[:-1]).any():
            damaged.append(name)
    stored = {a.key for a in attempts(ledger.folder) if a.id}
    distinct = len(np.unique(np.concatenate(prefixes))) if prefixes else 0
    return {
        "segments": len(ledger.segments),
        "rows": rows,
        "repeated": rows - distinct,
        "torn": sorted(ledger.torn),
        "damaged": sorted(damaged),
        "unknown": [u.key.hex() for u in unknown(ledger.folder)],
        "stored": sorted(key.hex() for key in stored - ledger.find(stored).keys()),
    }


def gc(folder: Folder, days: float | None = None, model: str | None = None) -> dict[str, int]:
    """Remove torn segments and temporary files that are an hour old. With `days`, remove journals
    and completions that are older, too; with `model`, only completions of this served model. A run
    that needs a removed completion pays for it again."""
    removed = {"files": 0, "rows": 0}
    _gc(folder, days, model, removed)
    return removed


@_of_folder
def _gc(ledger: Ledger, days: float | None, model: str | None, removed: dict[str, int]) -> None:
    folder, now_s = ledger.folder, time.time()
    before_s = -math.inf if days is None else now_s - days * 86400
    for name in folder.names():
        temporary = name.endswith(".tmp") or name in ledger.torn
        if temporary or name.endswith(".sent"):
            mtime = folder.fs.get_file_info((folder / name).path).mtime
            limit_s = now_s - TEMPORARY_S if temporary else before_s
            if mtime.timestamp() < limit_s if mtime else temporary:
                (folder / name).delete_file()
                removed["files"] += 1
    if days is None:
        return
    for name in list(ledger.segments):
        table = read_segment(folder / name)
        old_rows = pc.less(table["created_s"], before_s)
        if model is not None:
            old_rows = pc.and_(old_rows, pc.equal(table["served_model"], model))
        kept = table.filter(pc.invert(old_rows))
        if kept.num_rows < table.num_rows:
            with writing(folder.path):
                if kept.num_rows:
                    ledger.add(kept)
                ledger.remove(name)
            removed["rows"] += table.num_rows - kept.num_rows


def main(
    action: str, folder: Folder, days: float | None, model: str | None, as_json: bool = False
) -> int:
    """Run the command and print its result. UserError for options that do not fit the command."""
    if action != "gc" and (days is not None or model):
        raise UserError(f"ledger {action}: --days and --model are options of gc")
    if model and days is None:
        raise UserError("--model: give --days, too: only completions older than that are removed")
    if days is not None and not 0 < days < math.inf:
        raise UserError(f"--days {days:g}: must be above 0")
    if action == "gc":
        removed = gc(folder, days, model)
        shown: Any = removed
        lines = [f"{removed['rows']:,} completions and {removed['files']:,} files removed"]
    elif action == "stats":
        shown = stats(folder)
        lines = [_stats_line(row) for row in shown]
    elif action == "compact":
        shown = compact(folder)
        lines = [
            f"{shown['segments_before']:,} segments -> {shown['segments']:,}; "
            f"{shown['rows_before']:,} rows -> {shown['rows']:,}"
        ]
    else:
        shown = verify(folder)
        lines = list(_verify_lines(shown))
    for line in [json.dumps(shown, indent=1)] if as_json else lines:
        print(line)
    if action == "verify" and shown["damaged"]:
        raise UserError(
            f"{folder.path}: damaged: {', '.join(shown['damaged'])}: remove them; a run that "
            f"needs their completions pays for them again"
        )
    return 0


def _stats_line(row: dict) -> str:
    latency = "" if row["latency_s"] is None else f"{row['latency_s']:.2f} s"
    days_of = (time.strftime("%Y-%m-%d", time.gmtime(row[k])) for k in ("first_s", "last_s"))
    return (
        f"{row['stage']:<12} {row['model']:<28} {row['completions']:>10,} completions "
        f"{row['prompt_tokens']:>12,} + {row['completion_tokens']:,} tokens  "
        f"${row['cost_usd']:,.2f}  {latency}  {' to '.join(days_of)}"
    )


def _verify_lines(checked: Verified) -> Iterator[str]:
    unknown, stored = checked["unknown"], checked["stored"]
    yield (
        f"{checked['segments']:,} segments, {checked['rows']:,} rows, "
        f"{checked['repeated']:,} repeated"
    )
    yield from (f"torn, left out: {name}" for name in checked["torn"])
    if unknown:
        yield (
            f"{len(unknown):,} unknown: requests that were sent and got no answer (a kill, a "
            f"timeout): each may have been billed. Requests of a running run are in flight"
        )
    if stored:
        yield (
            f"{len(stored):,} stored: answers that the server keeps (llm.mode=background): the run "
            f"that needs them fetches them"
        )
    yield from (f"unknown: {key}" for key in unknown)
