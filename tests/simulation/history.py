"""The record of a simulated run, which the checker reads. Times are virtual seconds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Attempt:
    """One request, as the server and the network saw it."""

    name: str  # Idempotency-Key, hex
    row: int
    kind: str  # of the row
    process: str
    departed_s: float
    choices: int = 1
    arrived_s: float | None = None
    status: int | None = None  # of the server's reply
    billed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0  # thoughts included
    told: str = ""  # tokens in the reply: "usage", "total" (only the sum), "none"
    usd: float = 0.0
    garbled: bool = False  # the reply's bytes were cut
    finished_s: float | None = None  # when the server had the reply
    ended_s: float | None = None  # when the client had the reply, or gave up
    failed: str = ""  # without a reply: "refused", "reset", "timeout"


@dataclass
class Row:
    """One row in one life of a worker."""

    row: int
    kind: str
    process: str
    asked_s: float
    keys: list[str] = field(default_factory=list)  # of its completions, by sample
    ended_s: float | None = None
    outcome: str = ""  # "answer", "row error", "stop"
    said: str = ""


@dataclass
class Death:
    """The end of a process by a kill or a crash of its host."""

    process: str
    at_s: float
    crash: bool = False


@dataclass
class History:
    settings: dict  # the scenario's fields
    attempts: list[Attempt] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)  # process -> when it ended by itself
    starts: list[float] = field(default_factory=list)  # when the command was started
    crashes: list[float] = field(default_factory=list)  # when a host crashed
    troubles: list[tuple[float, str]] = field(default_factory=list)  # (when, fault)
    limits: list[tuple[float, float | None, float | None]] = field(default_factory=list)
    openings: list[tuple[str, float]] = field(default_factory=list)  # of a ledger: (process, when)
    files: dict[str, bytes] = field(default_factory=dict)  # at the end
    written: dict[str, float] = field(default_factory=dict)  # when each file appeared
    removed: list[float] = field(default_factory=list)  # when a segment of the ledger was removed
    stuck: str = ""  # why the run was given up; "": it was not
    ended_s: float = 0.0
    stops: list[str] = field(default_factory=list)  # errors that stopped the run
    errors: list[str] = field(default_factory=list)  # uncaught exceptions
    crashed: list[str] = field(default_factory=list)  # workers that ended by a bug
