"""The part of the live page that changes while a run is made: progress, money, errors, responses.

    render(state)  ->  "<section id=live>...", for the top of the page or for a later refresh of it

Every text is escaped. The script `live.js` asks the page's server for `live` and replaces the
elements; it never runs a script of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from facttune_ray.evaluation.report.page import environment


@dataclass(frozen=True)
class TableRow:
    """A table as the page shows it."""

    table: str
    state: str  # finished | being made | not begun
    progress: str  # "1,204 of about 3,210 rows, 3/8 parts"
    share: float | None  # of its parts that are finished; None: unknown
    figures: str = ""  # of a training: "loss 0.52"
    errors: int = 0
    calls: int = 0
    cost: str = ""
    time: str = ""


@dataclass(frozen=True)
class State:
    """What the live part shows."""

    headline: str  # "Running: 12 of 34 tables are finished"
    finished: bool
    version: str  # of the figures below; when it changes, the page can show later figures
    every_s: float  # seconds between two refreshes
    facts: list[tuple[str, str]] = field(default_factory=list)  # name -> figure
    scopes: list[tuple[str, list[TableRow]]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)  # {"table", "rows", "why"}
    # {"scope", "topic", "text", "facts": [{"fact", "supported"}]}
    responses: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""  # why the state cannot be read just now


def render(state: State) -> str:
    """The HTML of the element #live."""
    return environment().get_template("live.html").render(s=state)
