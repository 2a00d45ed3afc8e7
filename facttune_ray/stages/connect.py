"""How the stages that ask an LLM reach it."""

from __future__ import annotations

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
    """The settings that change a completion. Later ones count where they differ from the default,
    so that tables of earlier versions keep their recipes."""
    keys = ["model", "temperature", "max_tokens", "params"]
    keys += ["system"] if cfg.llm.system != "message" else []
    keys += ["max_completion_tokens"] if cfg.llm.max_completion_tokens is not None else []
    return {f"llm.{key}": getattr(cfg.llm, key) for key in keys}


def ledger_folder(cfg: Config) -> Folder:
    return Folder.of(cfg.llm.ledger) if cfg.llm.ledger else Folder.of(cfg.run.out) / "ledger"


def run_id(cfg: Config) -> str:
    """Which run paid, in the ledger: by its folder."""
    return digest(Folder.of(cfg.run.out).path)


def open_ledger(cfg: Config, stage: str = "") -> Ledger:
    return Ledger(
        ledger_folder(cfg), cfg.llm.flush_rows, cfg.llm.flush_s, run=run_id(cfg), stage=stage
    )


def endpoints_of(cfg: Config, base_url: str) -> list[EndpointConfig]:
    """llm.endpoints, or the one that the rest of `llm` describes; every field filled in."""
    llm = cfg.llm
    if not llm.endpoints:
        return [
            EndpointConfig(
                base_url, llm.api_key_env, llm.requests_per_minute, llm.tokens_per_minute
            )
        ]
    if llm.mode != "online" and len(llm.endpoints) > 1:
        raise UserError(
            f"llm.mode={llm.mode}: give one endpoint: an answer is kept where it was asked for"
        )
    return [
        EndpointConfig(
            e.base_url or base_url,
            e.api_key_env or llm.api_key_env,
            e.requests_per_minute or llm.requests_per_minute,
            e.tokens_per_minute or llm.tokens_per_minute,
        )
        for e in llm.endpoints
    ]


def connect(work: Work) -> Client:
    """This worker's client, behind the cluster's limiters and the run's meter."""
    import ray

    from facttune_ray.llm import actors

    cfg, ledger = work.cfg, open_ledger(work.cfg, work.stage)
    endpoints, queue = [], Queue()
    for e in endpoints_of(cfg, work.base_url):
        limits = Limits(e.requests_per_minute, e.tokens_per_minute)
        renew = actors.renew_at(e.base_url, cfg.llm.model, e.api_key_env, limits)
        gate = Gate(renew, cfg.llm.concurrency, ledger.writer, queue)
        endpoints.append(
            Endpoint(
                e.base_url,
                e.api_key_env,
                cfg.llm.timeout_s,
                gate,
                section=STAGES[work.stage].endpoint(cfg),
                direct=cfg.llm.base_url == "embedded",
            )
        )
    assert ray.is_initialized()
    report = actors.report_to(work.meter, cfg.llm.model)
    # the meter knows by this name what of a worker's total is in the ledger already
    return Client(cfg.llm, ledger, endpoints, report, ledger.writer)
