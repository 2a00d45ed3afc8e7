"""`facttune status`: the tables of a run as a tree, with progress, errors and dollars."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from facttune_ray.commands.look import FINISHED, MAKING, WAITING, Look, TableState
from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.runtime.remarks import remarks
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import run_folder


def status(cfg: Config | None, folder: str = "") -> list[TableState]:
    """The tables of a run by its config or its folder. UserError if it has none."""
    look = Look.of_config(cfg) if cfg else Look.of_folder(folder)
    run_folder(look.root.uri)
    found = look.tables()
    if not any(t.state != WAITING for t in found):
        advice = "name a run's folder in run.out" if cfg else "name the folder of a run"
        raise UserError(f"{look.root}: no table there: {advice}")
    return found


MARKS = {FINISHED: "✓", MAKING: "▸", WAITING: "·"}
PAINT = {FINISHED: "32", MAKING: "33", WAITING: "2"}


def show(name: str, states: Sequence[TableState], ledger: str = "", paint: bool = False) -> str:
    """The tables as a tree of scopes, with progress, errors and dollars. `name`: of the run;
    `ledger`: the folder of its ledger."""
    finished = sum(t.state == FINISHED for t in states)
    changed_s = max((t.changed_s for t in states if t.changed_s), default=None)
    head = f"{name}  {finished} of {len(states)} tables, {money(sum(t.cost_usd for t in states))}"
    if changed_s and finished < len(states):
        head += f", last change {age(time.time() - changed_s)} ago"
    lines = [_painted(head, "1", paint)]
    scopes: dict[str, list[TableState]] = {}
    for t in states:
        scopes.setdefault(t.scope, []).append(t)
    for i, (scope, members) in enumerate(scopes.items()):
        end = i == len(scopes) - 1
        if scope:
            lines.append(f"{'└─' if end else '├─'} {scope}")
        for j, t in enumerate(members):
            last = j == len(members) - 1
            stem = ("   " if end else "│  ") + ("└─ " if last else "├─ ")
            if not scope:
                stem = "└─ " if end and last else "├─ "
            lines.append(stem + _line(t, 27 - len(stem), paint, ledger))
    return "\n".join(lines)


def _line(t: TableState, width: int, paint: bool, ledger: str) -> str:
    colour = PAINT[t.state]
    label = _painted(f"{MARKS[t.state]} {t.table:<{width}}", colour, paint)
    if t.state == WAITING:
        return f"{label}{_painted('not begun', '2', paint)}"
    if t.state == MAKING and t.shards:
        done = round(12 * min(1.0, t.parts / t.shards))
        label += f"{'█' * done}{'░' * (12 - done)} "
    parts = [progress(t)]
    if t.wall_s is not None:
        parts.append(f"{t.wall_s:>8,.1f} s")
    told = remarks(t.manifest or asdict(t), ledger)
    parts += [_painted(text, "31", paint) if text.endswith(" errors") else text for text in told]
    return label + "  ".join(parts)


def progress(t: TableState) -> str:
    """ "1,204 of about 3,210 rows, 3/8 parts"; "1,204 rows" of a finished table; steps of a
    training."""
    if t.state == FINISHED:
        return f"{t.rows:>9,} rows"
    if t.table == "train":
        return f"step {t.parts:,} of {t.shards:,}" if t.shards else "begun"
    if t.table not in tables.TABLES:
        return "begun"
    rows = (
        f"{t.rows:,} of about {t.expected_rows:,} rows" if t.expected_rows else f"{t.rows:,} rows"
    )
    return f"{rows}, {t.parts}/{t.shards} parts" if t.shards else f"{rows}, {t.parts} parts"


def money(usd: float) -> str:
    """ "$0.31", "$0.0042": at least two digits that say something."""
    return f"${usd:,.2f}" if usd >= 0.1 or not usd else f"${usd:.2g}"


def age(seconds: float) -> str:
    """ "4 s", "12 min", "3.2 h"."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _painted(text: str, code: str, paint: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if paint else text


def is_run(word: str) -> bool:
    """Whether a word of the command line is the folder of a run rather than a preset."""
    if not word or "=" in word.partition("?")[0] or word.endswith((".yaml", ".yml")):
        return False
    return "://" in word or Path(word).expanduser().is_dir()
