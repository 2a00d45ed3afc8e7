"""The sampler that a stage uses, by `sampling.engine`.

sampler = make(cfg, "models/llama")            transformers, vllm: loads the weights once
sampler = make(cfg, "", client)                api: asks through the run's LLM client
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from facttune_ray.config import Config, LLMConfig
from facttune_ray.sampling.protocol import Sampler

if TYPE_CHECKING:
    from facttune_ray.llm.client import Client


def make(cfg: Config, model_path: str, client: Client | None = None) -> Sampler:
    """A sampler of this worker. `client`: for `api`."""
    return ENGINES[cfg.sampling.engine](cfg, model_path, client)


def _transformers(cfg: Config, path: str, client: Client | None) -> Sampler:
    from facttune_ray.sampling.transformers import TransformersSampler

    return TransformersSampler(
        path,
        chat=cfg.model.chat,
        dtype=cfg.model.dtype,
        device="cuda" if cfg.sampling.gpus else "cpu",
        max_rows=cfg.sampling.max_rows,
        gpu_memory=cfg.sampling.gpu_memory,
        quantize=cfg.sampling.quantize,
    )


def _vllm(cfg: Config, path: str, client: Client | None) -> Sampler:
    from facttune_ray.sampling.vllm import VLLMSampler

    return VLLMSampler(
        path,
        chat=cfg.model.chat,
        dtype=cfg.model.dtype,
        gpu_memory=cfg.sampling.gpu_memory * min(1.0, cfg.sampling.gpus),  # of the whole card
        quantize=cfg.sampling.quantize,
        tensor_parallel=cfg.sampling.tensor_parallel,
    )


def _api(cfg: Config, path: str, client: Client | None) -> Sampler:
    from facttune_ray.sampling.api import ApiSampler

    assert client is not None
    return ApiSampler(client, form=cfg.sampling.form, choices=cfg.sampling.choices)


ENGINES = {"transformers": _transformers, "vllm": _vllm, "api": _api}


def recipe(cfg: Config) -> dict:
    """What decides the samples of a prompt, beside the settings of the draw itself."""
    s = cfg.sampling
    found = {"sampling.engine": s.engine}
    if s.engine == "api":
        params = {"sampling.llm.params": s.llm.params} if s.llm.params else {}
        return found | {"sampling.llm.model": s.llm.model, "sampling.form": s.form} | params
    return found | {"model.dtype": cfg.model.dtype, "sampling.quantize": s.quantize}


def endpoint(cfg: Config) -> LLMConfig:
    """`api`: where samples are asked for; ledger and budget are those of the run's other LLM."""
    llm = cfg.sampling.llm
    return replace(
        llm,
        base_url=llm.base_url or cfg.llm.base_url,
        temperature=None,  # each call brings its own
        max_tokens=None,
        ledger=llm.ledger or cfg.llm.ledger,
        budget_usd=cfg.llm.budget_usd,
    )
