"""A run as `facttune watch` shows it: the report of its finished tables, and its state now.

    watched = Watched.of_config(cfg)       or Watched.of_folder("runs/bio")
    watched.fragment()  ->  "<div id="live">..."      the state, read again every few seconds
    watched.page()      ->  "<!doctype html>..."      the report, made again every 30 s and more

It reads files only: it takes no lock, starts no Ray, and writes nothing. It reads when it is asked,
and what it reads is bounded: new parts, the last line of a training log, a few responses.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from facttune_ray.commands.excerpts import first_error, first_responses
from facttune_ray.commands.look import FINISHED, MAKING, WAITING, Look, TableState, last_line
from facttune_ray.commands.status import age, money, progress
from facttune_ray.config import Config
from facttune_ray.errors import UserError, one_line
from facttune_ray.evaluation.partial import partial
from facttune_ray.evaluation.report.live import State, TableRow, render
from facttune_ray.evaluation.report.text import duration
from facttune_ray.llm.spending import Spending, Spent
from facttune_ray.runtime import settings
from facttune_ray.runtime.run_lock import driver
from facttune_ray.secrets import redact
from facttune_ray.stages import connect
from facttune_ray.storage.schema import digest

STATE_S = {True: 2.0, False: 15.0}  # between two looks at a local folder, or at a store
PAGE_S = 30.0  # between two reports
SHARE = 0.05  # of the time that looks, and reports, may take
CURVES = ("loss", "reward_accuracy", "margin")
AWAY = (UserError, OSError, pa.ArrowException)  # a file that has just gone, or is damaged


class Watched:
    """One run. Threads of a server may call its methods at the same time."""

    def __init__(self, look: Look, cfg: Config) -> None:
        self.look, self.cfg, self.root = look, cfg, look.root
        self._spending = Spending(connect.ledger_folder(cfg), connect.run_id(cfg))
        self._lock = threading.Lock()
        self._rates: list[tuple[float, int]] = []  # (time, rows of all tables) of the last minute
        self._found: list[TableState] = []  # of the last look
        self._state, self._report = _Made(), _Made()
        self._version = ""  # of the tables that the report shows
        self._small: dict[tuple, Any] = {}  # what was read for one version of a file

    @staticmethod
    def of_config(cfg: Config) -> Watched:
        return Watched(Look.of_config(cfg), cfg)

    @staticmethod
    def of_folder(run: str) -> Watched:
        """UserError if there is no such folder."""
        look = Look.of_folder(run)
        return Watched(look, settings.of_folder(look.root))

    def fragment(self) -> str:
        """The element #live, at most some seconds old."""
        with self._lock:
            return render(self._current())

    def page(self) -> str:
        """The report of the finished run, or that of the tables that are finished so far."""
        with self._lock:
            state = self._current()
            if state.finished and (report := self._finished_report()):
                return report
            if self._report.value is None or state.version != self._version:
                self._version = state.version
                self._report.make(self._partial)
            shown = dataclasses.replace(self._current(), version=self._version)
            return self._report.value.replace(PLACE, render(shown), 1)

    def part(self, path: str) -> str | None:
        """A file beside the report, such as report_data/9b2e.js; None without it."""
        file = self.root / path
        return file.read_bytes().decode() if file.exists() else None

    # -- the state ---------------------------------------------------------------------------

    def _current(self) -> State:
        least_s = STATE_S[self.root.local]
        if self._state.value is None or self._state.due(least_s):
            self._state.make(self._read_state)
        return self._state.value

    def _read_state(self) -> State:
        shown = STATE_S[self.root.local]
        try:
            found = self.look.tables()
        except AWAY as e:
            problem = f"The tables cannot be read just now: {redact(one_line(e))}"
            return State("The run cannot be read", False, self._version, shown, problem=problem)
        self._found = found
        now_s = time.time()
        finished, headline = self._headline(found, now_s)
        problem = ""
        try:
            spent = self._spending.look(now_s)
        except AWAY as e:
            spent, problem = Spent(), f"The ledger cannot be read: {redact(one_line(e))}"
        return State(
            headline,
            finished,
            "finished" if finished else self._next_version(found),
            shown,
            facts=self._facts(found, spent, now_s),
            scopes=self._scopes(found),
            errors=self._errors(found),
            responses=self._responses(found),
            problem=problem,
        )

    def _headline(self, found: Sequence[TableState], now_s: float) -> tuple[bool, str]:
        """(whether the run is finished, what it does)"""
        there = [t for t in found if t.state != WAITING]
        done = sum(t.state == FINISHED for t in found)
        count = f"{done} of {len(found)} tables are finished"
        held = driver(self.root)
        if not there and not held:
            return False, "The run has not begun"
        if held:
            return False, f"Running: {count}"
        if done == len(found) and (self.root / "summary.json").exists():
            return True, f"Finished: {count}"
        changed_s = max((t.changed_s for t in there if t.changed_s), default=now_s)
        count += f"; the last change was {age(now_s - changed_s)} ago"
        if held is None:
            return False, count
        return False, (
            f"No command that makes this run was found on this machine: {count}. A command that "
            f"has failed says why in its last line, and goes on when it is run again"
        )

    def _next_version(self, found: Sequence[TableState]) -> str:
        """The version of the figures that can be shown now. It stays while the report is young, so
        that the report is not made too often."""
        if self._report.value and not self._report.due(PAGE_S):
            return self._version
        logs = [(t.name, t.parts) for t in found if t.table == "train"]
        made = [
            (t.name, (t.manifest or {}).get("fingerprint")) for t in found if t.state == FINISHED
        ]
        return digest(repr((made, logs)), chars=12)

    def _facts(
        self, found: Sequence[TableState], spent: Spent, now_s: float
    ) -> list[tuple[str, str]]:
        rows = sum(t.rows for t in found)
        self._rates = [(s, n) for s, n in self._rates if s > now_s - 60] + [(now_s, rows)]
        first_s, first = self._rates[0]
        per_s = max(0, rows - first) / (now_s - first_s) if now_s > first_s else 0.0
        cost_usd = max(spent.cost_usd, sum(t.cost_usd for t in found))
        budget = self.cfg.llm.budget_usd
        changed_s = max((t.changed_s for t in found if t.changed_s), default=None)
        out = [
            ("paid", money(cost_usd) + (f" of {money(budget)}" if budget else "")),
            ("requests a second", f"{spent.calls_per_s:,.1f}"),
            ("tokens a second", f"{spent.tokens_per_s:,.0f}"),
            ("rows a second", f"{per_s:,.1f}"),
            ("failed rows", f"{sum(t.errors for t in found):,}"),
        ]
        return out + ([("last change", f"{age(now_s - changed_s)} ago")] if changed_s else [])

    def _scopes(self, found: Sequence[TableState]) -> list[tuple[str, list[TableRow]]]:
        scopes: dict[str, list[TableRow]] = {}
        for t in found:
            share = min(1.0, t.parts / t.shards) if t.state == MAKING and t.shards else None
            row = TableRow(
                t.table,
                t.state,
                progress(t).strip() if t.state != WAITING else "",
                share,
                self._training(t),
                t.errors,
                t.calls,
                money(t.cost_usd) if t.cost_usd else "",
                duration(t.wall_s) if t.wall_s is not None else "",
            )
            scopes.setdefault(t.scope, []).append(row)
        return list(scopes.items())

    def _training(self, t: TableState) -> str:
        """The last figures of a training."""
        if t.table != "train" or t.state != MAKING:
            return ""
        last = last_line(self.root / t.name / "train.jsonl") or {}
        shown = ((k, last[k]) for k in CURVES if isinstance(last.get(k), int | float))
        return ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in shown)

    def _errors(self, found: Sequence[TableState]) -> list[dict[str, Any]]:
        return [
            {"table": t.name, "rows": t.errors, "why": self._first_error(t)}
            for t in found
            if t.errors
        ]

    def _first_error(self, t: TableState) -> str:
        key = (t.name, "error", t.errors, t.parts)
        return self._once(key, lambda: first_error(self.root / t.name, t.shards), "-")

    def _responses(self, found: Sequence[TableState]) -> list[dict[str, Any]]:
        """Some responses of the last model that has any, with their facts once they are judged."""
        begun = [t for t in found if t.table == "responses" and t.parts]
        if not begun:
            return []
        scope = begun[-1].scope
        parts = {t.table: t.parts for t in found if t.scope == scope}
        key = (scope, *(parts.get(k, 0) for k in ("responses", "facts", "verdicts")))
        return self._once(key, lambda: first_responses(self.root, scope), [])

    def _once(self, key: tuple, read: Callable[[], Any], otherwise: Any) -> Any:
        if key not in self._small:
            if len(self._small) > 1000:
                self._small.clear()
            try:
                self._small[key] = read()
            except AWAY:
                return otherwise
        return self._small[key]

    # -- the report --------------------------------------------------------------------------

    def _finished_report(self) -> str:
        try:
            return (self.root / "report.html").read_bytes().decode()
        except (OSError, UserError, ValueError):
            return ""

    def _partial(self) -> str:
        """The report so far. If a table goes away meanwhile, the last report stays."""
        names = [t.name for t in self._found if t.state == FINISHED]
        trainings = [t.name for t in self._found if t.table == "train" and t.state != WAITING]
        trained = dict.fromkeys(n.partition("/round_")[0] for n in trainings if "/round_" in n)
        try:
            return partial(self.root, self.cfg, PLACE, names, list(trained))
        except AWAY:
            return self._report.value or partial(self.root, self.cfg, PLACE, [])


PLACE = "<!-- the state of the run -->"


class _Made:
    """A value, when it was made, and how long that took."""

    def __init__(self) -> None:
        self.value: Any = None
        self._at_s = self._took_s = 0.0

    def make(self, make: Callable[[], Any]) -> None:
        began_s = time.monotonic()
        self.value = make()
        self._at_s = time.monotonic()
        self._took_s = self._at_s - began_s

    def due(self, least_s: float) -> bool:
        """Whether it is older than `least_s`, and than its making allows."""
        return time.monotonic() - self._at_s > max(least_s, self._took_s / SHARE)
