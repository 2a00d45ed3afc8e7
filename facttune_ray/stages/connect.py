"""Connect a worker to the LLM: settings, ledger, endpoints, client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from facttune_ray.config import Config, EndpointConfig
from facttune_ray.errors import UserError
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, Queue
from facttune_ray.stages import STAGES
from facttune_ray.stages.work import Work
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder


def recipe(cfg: Config) -> dict:
    """The settings that change a completion. A setting of a later version is in the recipe only if
    it differs from its default, so that older tables keep their recipes."""
    keys = ["model", "temperature", "max_tokens", "params"]
    keys += ["system"] if cfg.llm.system != "message" else []
    keys += ["max_completion_tokens"] if cfg.llm.max_completion_tokens is not None else []
    return {f"llm.{key}": getattr(cfg.llm, key) for key in keys}


def ledger_folder(cfg: Config) -> Folder:
    return Folder.of(cfg.llm.ledger) if cfg.llm.ledger else Folder.of(cfg.run.out) / "ledger"


def run_id(cfg: Config) -> str:
    """The name of the run in the ledger: a digest of its folder."""
    return digest(Folder.of(cfg.run.out).path)


def open_ledger(cfg: Config, stage: str = "") -> Ledger:
    return Ledger(
        ledger_folder(cfg), cfg.llm.flush_rows, cfg.llm.flush_s, run=run_id(cfg), stage=stage
    )


def endpoints_of(cfg: Config, base_url: str) -> list[EndpointConfig]:
    """llm.endpoints with every field filled in, or the one endpoint that `llm` describes. UserError
    for several endpoints in a mode that needs one."""
    llm = cfg.llm
    limits = (llm.requests_per_minute, llm.tokens_per_minute)
    usual = EndpointConfig(base_url, llm.api_key_env, *limits)
    if not llm.endpoints:
        return [usual]
    if llm.mode != "online" and len(llm.endpoints) > 1:
        raise UserError(
            f"llm.mode={llm.mode}: give one endpoint in llm.endpoints: the answer to a request is "
            f"fetched from the endpoint that took it"
        )
    return [
        EndpointConfig(**{k: v or getattr(usual, k) for k, v in vars(e).items()})
        for e in llm.endpoints
    ]


Shared = Callable[[tuple, Callable[[], Any]], Any]  # (key, make) -> what the key has, made once


def connect(work: Work, shared: Shared = lambda key, make: make()) -> Client:
    """The client of a stage in this worker, with the cluster's limiters and the run's meter. The
    stages of a worker share their endpoints: connections, permits and llm.concurrency."""
    from facttune_ray.llm import actors

    cfg, ledger = work.cfg, open_ledger(work.cfg, work.stage)
    section, addresses = STAGES[work.stage].endpoint(cfg), endpoints_of(cfg, work.base_url)
    direct = cfg.llm.base_url == "embedded"
    key = ("endpoints", section, repr(addresses), cfg.llm.model, cfg.llm.concurrency, direct)

    def endpoints() -> list[Endpoint]:
        found, queue = [], Queue()
        for e in addresses:
            limits = Limits(e.requests_per_minute, e.tokens_per_minute)
            renew = actors.renew_at(e.base_url, cfg.llm.model, e.api_key_env, limits)
            gate = Gate(renew, cfg.llm.concurrency, ledger.writer, queue)
            address = (e.base_url, e.api_key_env, cfg.llm.timeout_s, gate)
            found.append(Endpoint(*address, section=section, direct=direct))
        return found

    report = actors.report_to(work.meter, cfg.llm.model)
    # By this name the meter knows which part of the worker's total the ledger holds already.
    return Client(cfg.llm, ledger, shared(key, endpoints), report, ledger.writer)
