"""What happened in a simulated run, as the checker reads it. Times are the world's, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Attempt:
    """One request as the server and the network know it."""

    name: str  # Idempotency-Key, hex
    row: int
    kind: str  # of the row
    process: str
    departed_s: float
    choices: int = 1
    arrived_s: float | None = None
    status: int | None = None  # that the server answered
    billed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0  # thoughts included
    told: str = ""  # of these tokens: "usage", "total" (only the sum), "none"
    usd: float = 0.0
    garbled: bool = False  # the answer's bytes were
    finished_s: float | None = None  # the server was done with it
    ended_s: float | None = None  # the client had the answer, or gave it up
    failed: str = ""  # what the client saw instead of the answer: "refused", "reset", "timeout"


@dataclass
class Row:
    """One row of one worker's life: asked until it ended, or for ever."""

    row: int
    kind: str
    process: str
    asked_s: float
    keys: list[str] = field(default_factory=list)  # of its completions, sample by sample
    ended_s: float | None = None
    outcome: str = ""  # "answer", "row error", "stop"
    said: str = ""


@dataclass
class Death:
    """A process that was killed, or a host that crashed."""

    process: str
    at_s: float
    crash: bool = False


@dataclass
class History:
    settings: dict  # what the scenario was: plain numbers and names
    attempts: list[Attempt] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)  # a process that came to its end, when
    starts: list[float] = field(default_factory=list)  # of the run: its command was given
    crashes: list[float] = field(default_factory=list)  # of the host, when
    troubles: list[tuple[float, str]] = field(default_factory=list)  # faults, when
    limits: list[tuple[float, float | None, float | None]] = field(default_factory=list)
    openings: list[tuple[str, float]] = field(default_factory=list)  # a writer: (process, when)
    files: dict[str, bytes] = field(default_factory=dict)  # of the ledger, at the end
    written: dict[str, float] = field(default_factory=dict)  # when each appeared
    stuck: str = ""  # why the run was given up: "deadlock", "late", ""
    ended_s: float = 0.0
    stops: list[str] = field(default_factory=list)  # what runs said that stopped
    errors: list[str] = field(default_factory=list)  # exceptions that nobody caught
    crashed: list[str] = field(default_factory=list)  # workers that ended by a bug
