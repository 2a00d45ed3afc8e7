"""`facttune ledger stats|compact|verify|gc`: care of a ledger, also while runs write to it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.errors import UserError
from facttune_ray.llm.journal import attempts, unknown
from facttune_ray.llm.ledger import Ledger, crc
from facttune_ray.llm.segments import Segment, key_ranges, read_segment, rows_in
from facttune_ray.storage.tables import Folder, writing

T = TypeVar("T")
COMPACTED_ROWS = 2**18  # rows a compacted segment at most: what a compaction holds in memory


def open_ledger(folder: Folder) -> Ledger:
    if not folder.exists():
        raise UserError(f"{folder.path}: no ledger there")
    return Ledger(folder)


def _on(folder: Folder, work: Callable[[Ledger], T]) -> T:
    """Begin again when a segment is gone: a run has merged it into another meanwhile."""
    while True:
        try:
            return work(open_ledger(folder))
        except FileNotFoundError:
            continue


def stats(folder: Folder) -> list[dict]:
    """One row a stage and served model: completions, tokens, dollars, mean latency, first, last."""
    return _on(folder, _stats)


def _stats(ledger: Ledger) -> list[dict]:
    wanted = ["key", "stage", "served_model", "prompt_tokens", "completion_tokens"]
    wanted += ["cost_usd", "latency_s", "created_s", "attempts", "prompt_chars"]
    partial = []
    sums = ["prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "attempts"]
    sums += ["prompt_chars", "measured_tokens"]
    aggregates = [("key", "count"), ("latency_s", "count"), *((c, "sum") for c in sums)]
    aggregates += [("created_s", "min"), ("created_s", "max")]
    for name in ledger.segments:
        table = read_segment(ledger.folder / name, wanted)
        # prompts whose characters are not known (batches of a killed run) say nothing of a rate
        known = pc.if_else(pc.greater(table["prompt_chars"], 0), table["prompt_tokens"], 0)
        table = table.append_column("measured_tokens", known)
        partial.append(table.group_by(["stage", "served_model"]).aggregate(aggregates))
    if not partial:
        return []
    again = [(f"{c}_{how}", "sum") for c, how in aggregates if how != "min" and how != "max"]
    again += [("created_s_min", "min"), ("created_s_max", "max")]
    total = pa.concat_tables(partial).group_by(["stage", "served_model"]).aggregate(again)
    rows = []
    for row in total.sort_by([("stage", "ascending"), ("served_model", "ascending")]).to_pylist():
        timed = row["latency_s_count_sum"]
        rows.append(
            {
                "stage": row["stage"],
                "model": row["served_model"],
                "completions": row["key_count_sum"],
                "prompt_tokens": row["prompt_tokens_sum_sum"],
                "completion_tokens": row["completion_tokens_sum_sum"],
                "cost_usd": row["cost_usd_sum_sum"],
                "attempts": row["attempts_sum_sum"],
                "prompt_chars": row["prompt_chars_sum_sum"],
                "measured_tokens": row["measured_tokens_sum_sum"],  # of those characters
                "latency_s": row["latency_s_sum_sum"] / timed if timed else None,
                "first_s": row["created_s_min_min"],
                "last_s": row["created_s_max_max"],
            }
        )
    return rows


def compact(folder: Folder) -> dict[str, int]:
    """Merge every segment into few, sorted by key over all of them; of equal keys the oldest row
    stays. Readers and writers may go on: old segments are removed after the new ones are there."""
    return _on(folder, _compact)


def _compact(ledger: Ledger) -> dict[str, int]:
    old = dict(ledger.segments)
    before = sum(len(s.prefixes) for s in old.values())
    after = 0
    with writing(ledger.folder.path):
        for table in _ranges(old):
            after += table.num_rows
            ledger.add(table)
        for name in old:
            ledger.remove(name)
    return {
        "segments_before": len(old),
        "segments": len(ledger.segments),
        "rows_before": before,
        "rows": after,
        "torn": len(ledger.torn),
    }


def _ranges(segments: dict[str, Segment]) -> Iterator[pa.Table]:
    """Sorted rows without repeated keys, one key range after the other."""
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


def verify(folder: Folder) -> dict[str, int | list[str]]:
    """Read every row of every segment and check it. `torn`, `damaged`: names of segments;
    `unknown`: keys of requests that may have been billed without an answer, or are in flight;
    `stored`: of those whose answer the server keeps, and which are not fetched yet."""
    return _on(folder, _verify)


def _verify(ledger: Ledger) -> dict[str, int | list[str]]:
    rows, damaged, seen = 0, [], []
    for name, segment in ledger.segments.items():
        try:
            table = read_segment(ledger.folder / name)
            table.validate(full=True)
            bad = [r for r in table.to_pylist() if crc(r) != r["crc"]]
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            bad, table = [{}], None
        if bad or not _sorted(segment.prefixes):
            damaged.append(name)
        if table is not None:
            rows += table.num_rows
            seen.append(segment.prefixes)
    stored = {a.key for a in attempts(ledger.folder) if a.id}
    distinct = len(np.unique(np.concatenate(seen))) if seen else 0
    return {
        "segments": len(ledger.segments),
        "rows": rows,
        "repeated": rows - distinct,
        "torn": sorted(ledger.torn),
        "damaged": sorted(damaged),
        "unknown": [u.key.hex() for u in unknown(ledger.folder)],
        "stored": sorted(key.hex() for key in stored - ledger.find(stored).keys()),
    }


def _sorted(prefixes: np.ndarray) -> bool:
    return bool((prefixes[1:] >= prefixes[:-1]).all())


def gc(folder: Folder, days: float | None = None, model: str | None = None) -> dict[str, int]:
    """Remove torn segments and temporary files an hour old; with `days` completions older than
    them, too (of this served model only, if named). They would be paid again if needed."""
    removed = {"files": 0, "rows": 0}
    _on(folder, lambda ledger: _gc(ledger, days, model, removed))
    return removed


def _gc(ledger: Ledger, days: float | None, model: str | None, done: dict[str, int]) -> None:
    folder = ledger.folder
    files = [n for n in folder.names() if n.endswith(".tmp") or n in ledger.torn]
    for name in files:
        info = folder.fs.get_file_info((folder / name).path)
        if info.mtime is None or time.time() - info.mtime.timestamp() > 3600:
            (folder / name).delete_file()
            done["files"] += 1
    if days is None:
        return
    before_s = time.time() - days * 86400
    for name in folder.names():
        info = folder.fs.get_file_info((folder / name).path)
        if name.endswith(".sent") and info.mtime and info.mtime.timestamp() < before_s:
            (folder / name).delete_file()
            done["files"] += 1
    for name in list(ledger.segments):
        table = read_segment(ledger.folder / name)
        old = pc.less(table["created_s"], before_s)
        if model is not None:
            old = pc.and_(old, pc.equal(table["served_model"], model))
        kept = table.filter(pc.invert(old))
        if kept.num_rows < table.num_rows:
            with writing(folder.path):
                if kept.num_rows:
                    ledger.add(kept)
                ledger.remove(name)
            done["rows"] += table.num_rows - kept.num_rows


def main(action: str, folder: Folder, days: float | None, model: str | None) -> int:
    """Do it and print what came out. UserError for a limit that would remove all, or nothing."""
    if action != "gc" and (days is not None or model):
        raise UserError(f"ledger {action}: --days and --model are of gc")
    if model and days is None:
        raise UserError("--model: of completions older than --days, which is not given")
    if days is not None and not 0 < days < math.inf:
        raise UserError(f"--days {days:g}: must be above 0")
    if action == "stats":
        for r in stats(folder):
            latency = "" if r["latency_s"] is None else f"{r['latency_s']:.2f} s"
            days_old = f"{time.strftime('%Y-%m-%d', time.gmtime(r['first_s']))} to "
            days_old += time.strftime("%Y-%m-%d", time.gmtime(r["last_s"]))
            print(
                f"{r['stage']:<12} {r['model']:<28} {r['completions']:>10,} completions "
                f"{r['prompt_tokens']:>12,} + {r['completion_tokens']:,} tokens  "
                f"${r['cost_usd']:,.2f}  {latency}  {days_old}"
            )
    elif action == "compact":
        done = compact(folder)
        print(
            f"{done['segments_before']:,} segments -> {done['segments']:,}; "
            f"{done['rows_before']:,} rows -> {done['rows']:,}"
        )
    elif action == "gc":
        done = gc(folder, days, model)
        print(f"{done['rows']:,} completions and {done['files']:,} files removed")
    else:
        found = verify(folder)
        rows, repeated = found["rows"], found["repeated"]
        print(f"{found['segments']:,} segments, {rows:,} rows, {repeated:,} repeated")
        torn, damaged = found["torn"], found["damaged"]
        assert isinstance(torn, list) and isinstance(damaged, list)
        for name in torn:
            print(f"torn, left out: {name}")
        lost = found["unknown"]
        assert isinstance(lost, list)
        if lost:
            print(
                f"{len(lost):,} unknown: requests that were sent and whose answer never came (a "
                f"kill, a timeout): each may have been billed. Those of a run that goes on now are "
                f"in flight"
            )
        stored = found["stored"]
        assert isinstance(stored, list)
        if stored:
            print(
                f"{len(stored):,} stored: answers that the server keeps (llm.mode=background); the "
                f"run that asks for them again fetches them"
            )
        for key in lost:
            print(f"unknown: {key}")
        if damaged:
            raise UserError(
                f"{folder.path}: damaged: {', '.join(damaged)}: remove them; what they held is "
                f"paid again when it is needed"
            )
    return 0
