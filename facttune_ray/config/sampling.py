"""The engine that samples from the base model: the config section `sampling`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from facttune_ray.config.llm import LLMConfig
from facttune_ray.config.setting import setting


@dataclass(frozen=True)
class SamplingConfig:
    """The engine that samples responses, answers and entities, and asks for P(True)."""

    engine: Literal["transformers", "vllm", "api"] = setting(
        "transformers",
        "Library that samples. vllm: on GPUs, or on CPUs with vLLM's build for CPUs; api: the "
        "endpoint of the section sampling.llm.",
    )
    decoder: Literal["plain", "dola", "custom"] = setting(
        "plain",
        "engine=transformers. dola: contrasts layers (Chuang et al.); custom: the code of "
        "sampling.custom_generate.",
    )
    dola_layers: str = setting(
        "high", 'decoder=dola: layers to contrast with: low, high, or numbers such as "0,2,4".'
    )
    custom_generate: str = setting(
        "", "decoder=custom: folder or hub id whose custom_generate/generate.py is run."
    )
    custom_params: dict[str, Any] = setting({}, "decoder=custom: arguments of its function.")
    trust_remote_code: bool = setting(
        False, "Allow the Python code of the model's folder, or of custom_generate, to run."
    )
    generation_config: Literal["respect", "ignore"] = setting(
        "respect",
        "engine=transformers: respect or ignore top_k, penalties and suppressed tokens of the "
        "model's generation_config.json.",
    )
    gpus: float = setting(
        0.0, "GPUs of a worker; 0.5: two workers share a GPU; 0: CPU.", unit="GPUs", ge=0
    )
    accelerator: str = setting(
        "", "GPU type by Ray's name, such as L4, A100-80G, H100; empty: any."
    )
    max_rows: int = setting(
        512, "Most sequences decoded at a time; fewer where GPU memory is short.", unit="rows", ge=1
    )
    gpu_memory: float = setting(
        0.85, "Share of a worker's GPU memory that sampling may take.", gt=0, le=1
    )
    quantize: Literal["none", "8bit", "4bit"] = setting(
        "none", "Quantise the weights by bitsandbytes; needs a GPU."
    )
    tensor_parallel: int = setting(1, "engine=vllm: GPUs that hold one model.", "GPUs", ge=1)
    form: Literal["chat", "completions"] = setting("chat", "engine=api: which endpoint to use.")
    choices: int = setting(
        1, "engine=api: most samples of one request (`n`); 1: one request a sample.", ge=1
    )
    llm: LLMConfig = field(default_factory=lambda: LLMConfig(base_url="", model=""))
