"""Services that a run starts when a table needs them: the embedded endpoint, and the meter of
costs.

    with contextlib.closing(Services(cfg, root, embedded)) as services:
        services.base_url(cfg.llm)      the endpoint's address; starts the embedded one
        services.meter()                (name, handle) of the meter actor

Each service is started once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from facttune_ray.config import Config, LLMConfig
from facttune_ray.runtime import cluster, preflight
from facttune_ray.storage import folders
from facttune_ray.storage.folders import Folder
from facttune_ray.telemetry import say

# (address to listen on, journal file) -> context manager that yields the base URL
Embedded = Callable[[str, str], AbstractContextManager[str]]


class Services:
    """The services of one run."""

    def __init__(self, cfg: Config, root: Folder, embedded: Embedded) -> None:
        self.cfg, self.root, self._embedded = cfg, root, embedded
        self._open = contextlib.ExitStack()
        self._base_url = ""
        self._meter: tuple[str, Any] | None = None
        self._ending = False

    def base_url(self, llm: LLMConfig) -> str:
        """The endpoint's URL. `embedded` starts the quickstart's endpoint, once in a run."""
        if llm.endpoints and all(e.base_url for e in llm.endpoints):
            return llm.endpoints[0].base_url
        if llm.base_url != "embedded":
            return llm.base_url
        preflight.check_embedded(llm)
        if not self._base_url:
            if self.cfg.data.source != "world":
                say("llm.base_url=embedded: the quickstart's annotator judges, by simple rules")
            folder = self.root / "annotator"
            here = Path(folder.path) if folder.local else folders.scratch(folder.uri)
            journal = str(here / "journal.jsonl")
            started = self._embedded(cluster.own_address(), journal)
            self._base_url = self._open.enter_context(started)
        return self._base_url

    def meter(self) -> tuple[str, Any]:
        """(name, handle) of this run's meter actor, which begins at what the run has paid
        before."""
        if self._meter is None:
            from facttune_ray.llm import actors
            from facttune_ray.stages import connect

            name = f"facttune-meter-{connect.run_id(self.cfg)}-{time.time_ns()}"
            budget, ledger = self.cfg.llm.budget_usd, connect.ledger_folder(self.cfg)
            handle = actors.start_meter(name, budget, ledger, connect.run_id(self.cfg))
            self._meter = (name, handle)
            if self._ending:
                handle.stop.remote()
        return self._meter

    def end_asking(self) -> None:
        """Make the stages that ask an endpoint end: the meter tells their workers."""
        self._ending = True
        if self._meter is not None:
            self._meter[1].stop.remote()

    def close(self) -> None:
        self._open.close()
