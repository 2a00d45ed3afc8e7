"""The state of a run, read from its folder while it is made or afterwards.

    look = Look.of_config(cfg)        every table of the run, also those that are not begun
    look = Look.of_folder("runs/bio") the tables that are there
    look.tables()  ->  [TableState("base/tune/facts", "being made", parts=3, shards=8, ...), ...]

A part never changes, so its counts are read once, however often `tables` is called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.stages import STEPS
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.scopes import SECOND, run_folder

FINISHED, MAKING, WAITING = "finished", "being made", "not begun"
SUMS = ("rows", "errors", "calls", "cached", "tokens", "cost_usd")  # of the parts of a table


@dataclass(frozen=True)
class TableState:
    """A table, or an artifact such as a model, of a run."""

    name: str  # "base/tune/facts"
    state: str  # FINISHED | MAKING | WAITING
    parts: int = 0  # finished parts; of a training: optimizer steps
    shards: int = 0  # all parts; 0: unknown, or no table of parts
    rows: int = 0  # in finished parts
    expected_rows: int | None = None  # by the finished parts; None: not known yet
    errors: int = 0
    calls: int = 0
    cached: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    wall_s: float | None = None  # of a finished table
    changed_s: float | None = None  # Unix time at which its files last changed
    manifest: dict | None = None

    @property
    def scope(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def table(self) -> str:
        return self.name.rpartition("/")[2]

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "manifest"}


class Look:
    """A run's folder and what has been read of it. It reads only."""

    def __init__(self, root: Folder, planned: Sequence[str] = (), shards: int = 0) -> None:
        """`planned`: names of the tables that the config asks for, in the order of the loop;
        `shards`: the number of parts of each."""
        self.root, self.planned, self.shards = root, planned, shards
        self._read: dict[tuple, Any] = {}  # (path, size, time) -> what the file says

    @staticmethod
    def of_config(cfg: Config) -> Look:
        return Look(Folder.of(cfg.run.out), *plan(cfg))

    @staticmethod
    def of_folder(run: str) -> Look:
        """UserError if there is no such folder."""
        return Look(run_folder(run))

    def tables(self) -> list[TableState]:
        """Every table in the order of the pipeline. UserError for a damaged manifest."""
        infos = self.root.infos()
        found: dict[str, list[str]] = {}  # table -> its files
        for path in infos:
            name, _, file = path.rpartition("/")
            if file in (tables.MANIFEST, tables.RECIPE) or file.startswith("part-"):
                found.setdefault(name, []).append(path)
            elif file == "train.jsonl" and name.endswith("/train"):
                found.setdefault(name, []).append(path)
        there = {(path, info.size, info.mtime_ns) for path, info in infos.items()}
        self._read = {k: v for k, v in self._read.items() if k in there}
        known = [self._state(name, files, infos) for name, files in found.items()]
        shards = self.shards or max((t.shards for t in known if t.state == FINISHED), default=0)
        states = {t.name: _with_shards(t, shards) for t in known}
        for name in ordered(self.planned, states):
            states.setdefault(name, TableState(name, WAITING, shards=shards))
        return [states[name] for name in ordered(self.planned, states)]

    def _state(self, name: str, files: Sequence[str], infos: Mapping[str, Any]) -> TableState:
        changed_s = max(i.mtime.timestamp() if (i := infos[f]).mtime else 0.0 for f in files)
        stored = f"{name}/{tables.MANIFEST}"
        manifest = self._once(stored, infos, lambda file: file.read_json())
        if manifest is not None:
            sums = {k: manifest.get(k, 0) for k in SUMS}
            shards = manifest.get("shards", 0)
            made = {"parts": shards, "shards": shards, "wall_s": manifest.get("wall_s")}
            return TableState(
                name, FINISHED, **made, **sums, changed_s=changed_s, manifest=manifest
            )
        log = f"{name}/train.jsonl"
        if log in infos:
            last = self._once(log, infos, last_line) or {}
            steps = {"parts": last.get("step", 0), "shards": last.get("steps", 0)}
            return TableState(name, MAKING, **steps, changed_s=changed_s)
        stats = [
            counted
            for f in files
            if f.endswith(".parquet")
            if (counted := self._once(f, infos, _part_stats)) is not None
        ]
        sums = {k: sum(s.get(k, 0) for s in stats) for k in SUMS}
        return TableState(name, MAKING, parts=len(stats), **sums, changed_s=changed_s)

    def _once(self, path: str, infos: Mapping[str, Any], read: Any) -> Any:
        """What `read` says of this version of the file; None without the file."""
        if path not in infos:
            return None
        key = (path, infos[path].size, infos[path].mtime_ns)
        if key not in self._read:
            if (says := read(self.root / path)) is None:  # away just now: ask again
                return None
            self._read[key] = says
        return self._read[key]


def _with_shards(t: TableState, shards: int) -> TableState:
    """The state with the run's number of parts, and the rows that the table will have."""
    if t.state != MAKING or t.shards or t.table not in tables.TABLES:
        return t
    share = t.parts / shards if shards else 0.0
    expected = round(t.rows / share) if share else None
    return TableState(**{**vars(t), "shards": shards, "expected_rows": expected})


def _part_stats(file: Folder) -> dict | None:
    """Counts of a part; None if it has gone meanwhile or is no finished part."""
    folder, _, name = file.path.rpartition("/")
    try:
        shard = int(name.removeprefix("part-").removesuffix(".parquet"))
        return tables.part_stats(Folder(file.fs, folder), shard)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_line(file: Folder) -> dict | None:
    """The last whole line of a JSONL file that grows; None if it has none."""
    try:
        with file.fs.open_input_file(file.path) as f:
            size = f.size()
            text = f.read_at(min(size, 2**16), max(0, size - 2**16))
    except OSError:
        return None
    for line in reversed(text.split(b"\n")):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            continue
    return None


# --- the order of the pipeline


def plan(cfg: Config) -> tuple[list[str], int]:
    """(names of all tables of the run in the order of the loop, the number of parts of each).
    ([], 0) if the loop cannot be followed, as when an input file is absent."""
    if cfg.data.groups not in ("", None):  # preferences from files: no loop
        return [], 0
    from facttune_ray.loop.dry_run import DryRun
    from facttune_ray.loop.facttune import facttune
    from facttune_ray.loop.run import Run

    try:
        dry = DryRun(cfg)
        run = Run(dry)
        facttune(run)
    except (UserError, OSError):
        return [], 0
    return list(run.recipes), dry.cfg.run.shards


def ordered(planned: Sequence[str], there: Iterable[str]) -> list[str]:
    """Planned names and those that are there, in the order of the pipeline. The plan measures each
    model's last round; if another round alone was measured, the tables of that round replace
    them."""
    there = list(there)
    names = dict.fromkeys([*planned, *there])
    measured = {n.partition("/test/")[0] for n in there if "/test/" in n}
    chosen = {_owner(n): n.partition("/test/")[0] for n in there if "/test/" in n}
    by_plan: dict[str, tuple] = {}
    for i, name in enumerate(planned):
        scope, test, table = name.partition("/test/")
        if test and scope not in measured and (other := chosen.get(_owner(name))):
            del names[name]
            name = f"{other}/test/{table}"
            names[name] = None
        by_plan[name] = (i,)
    if not planned:
        return sorted(names, key=_usual_place)
    last = len(planned)
    return sorted(names, key=lambda n: by_plan.get(n) or (last, *_usual_place(n)))


def _owner(name: str) -> str:
    """The tuned model, or the other model, that a table of test topics is about."""
    return name.partition("/test/")[0].partition("/round_")[0]


def _usual_place(name: str) -> tuple:
    """Where a table stands in the pipeline of any run: phase, model, round, tables within."""
    scope, _, table = name.rpartition("/")
    steps = list(STEPS)
    step = steps.index(table) if table in steps else len(steps)
    model, _, rest = scope.partition("/")
    number, _, inner = rest.removeprefix("round_").partition("/")
    if not scope or table == "pretrain":
        return 0, "", 0, bool(scope), step, name
    if inner.startswith("test") or number.startswith("test"):
        second = SECOND in scope or table == "judgements"
        return 3 + second, model != "base", model, 0, step, name
    if number.isdecimal():
        return 2, model, int(number), inner == "tune", step, name
    return (2 if rest == "sft" else 1), model, 0, 0, step, name
