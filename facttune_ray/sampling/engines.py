"""Make the sampler that `sampling.engine` names.

sampler = make(cfg, "models/llama")        transformers, vllm: loads the weights once
sampler = make(cfg, "", client)            api: sends requests through the run's LLM client
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from facttune_ray.config import Config, LLMConfig
from facttune_ray.sampling import templates
from facttune_ray.sampling.protocol import Sampler
from facttune_ray.storage.schema import digest

if TYPE_CHECKING:
    from facttune_ray.llm.client import Client


def make(cfg: Config, model_path: str, client: Client | None = None) -> Sampler:
    """The sampler of this worker. `client`: needed by `api`."""
    return ENGINES[cfg.sampling.engine](cfg, model_path, client)


def _transformers(cfg: Config, path: str, client: Client | None) -> Sampler:
    s = cfg.sampling
    if s.decoder == "custom":
        from facttune_ray.sampling.custom import CustomSampler

        return CustomSampler(
            path,
            generate=s.custom_generate,
            params=s.custom_params,
            chat=templates.of(cfg.model),
            dtype=cfg.model.dtype,
            device="cuda" if s.gpus else "cpu",
            quantize=s.quantize,
        )
    from facttune_ray.sampling.transformers import TransformersSampler

    return TransformersSampler(
        path,
        chat=templates.of(cfg.model),
        dtype=cfg.model.dtype,
        device="cuda" if s.gpus else "cpu",
        max_rows=s.max_rows,
        gpu_memory=s.gpu_memory,
        quantize=s.quantize,
        dola_layers=s.dola_layers if s.decoder == "dola" else "",
        trust_remote_code=s.trust_remote_code,
        respect_generation_config=s.generation_config == "respect",
    )


def _vllm(cfg: Config, path: str, client: Client | None) -> Sampler:
    from facttune_ray.sampling.vllm import VLLMSampler

    return VLLMSampler(
        path,
        chat=templates.of(cfg.model),
        dtype=cfg.model.dtype,
        gpu_memory=cfg.sampling.gpu_memory * min(1.0, cfg.sampling.gpus),  # share of the GPU
        quantize=cfg.sampling.quantize,
        tensor_parallel=cfg.sampling.tensor_parallel,
        device="cuda" if cfg.sampling.gpus else "cpu",
    )


def _api(cfg: Config, path: str, client: Client | None) -> Sampler:
    from facttune_ray.sampling.api import ApiSampler

    assert client is not None
    return ApiSampler(client, form=cfg.sampling.form, choices=cfg.sampling.choices)


ENGINES = {"transformers": _transformers, "vllm": _vllm, "api": _api}


def recipe(cfg: Config) -> dict:
    """The part of a table's recipe that names the engine and how it decodes. The stages add n,
    max_tokens, temperature and top_p."""
    s = cfg.sampling
    keys: dict = {"sampling.engine": s.engine}
    if s.engine == "api":
        keys |= {"sampling.llm.model": s.llm.model, "sampling.form": s.form}
        keys |= {"sampling.llm.system": s.llm.system} if s.llm.system != "message" else {}
        params = endpoint(cfg).params
        return keys | ({"sampling.llm.params": params} if params else {})
    if s.decoder == "dola":
        keys |= {"sampling.decoder": "dola", "sampling.dola_layers": s.dola_layers}
    if s.decoder == "custom":
        keys |= {"sampling.decoder": "custom", "sampling.custom_params": s.custom_params}
        keys |= {"sampling.custom_generate": custom_digest(s.custom_generate)}
    if s.generation_config == "ignore":
        keys["sampling.generation_config"] = "ignore"
    return keys | {"model.dtype": cfg.model.dtype, "sampling.quantize": s.quantize}


def custom_digest(folder: str) -> str:
    """The digest of a folder's generate.py, or the hub name unchanged."""
    file = Path(folder) / "custom_generate" / "generate.py"
    return digest(file.read_text(encoding="utf-8")) if file.is_file() else folder


def endpoint(cfg: Config) -> LLMConfig:
    """The endpoint of `api`. Unset fields, the ledger and the budget come from `llm`. Each request
    sets its own temperature and max_tokens; a null in the config means: send none."""
    llm = cfg.sampling.llm
    params: dict = {k: None for k in ("temperature", "max_tokens") if getattr(llm, k) is None}
    if llm.max_completion_tokens is not None:
        params |= {"max_tokens": None, "max_completion_tokens": llm.max_completion_tokens}
    return replace(
        llm,
        base_url=llm.base_url or cfg.llm.base_url,
        temperature=None,
        max_tokens=None,
        max_completion_tokens=None,
        params=params | llm.params,
        ledger=llm.ledger or cfg.llm.ledger,
        budget_usd=cfg.llm.budget_usd,
    )
