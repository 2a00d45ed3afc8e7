"""Sampling with vLLM: continuous batching on GPUs, or on CPUs with vLLM's build for CPUs.

    sampler = VLLMSampler("meta-llama/Llama-2-7b-hf", dtype="bfloat16", tensor_parallel=2)
    sampler.sample(SampleRequest(["Where was Mara Veldt born?"], n=20, seeds=[7], ...))
    -> [[Sample(text="Mara Veldt was born in Ostrava.", tokens=9, finished=True), ...]]

Prompts are tokenised here, by the functions that training uses, so vLLM applies no template and
adds no special token. A prefix that all prompts share comes first, so vLLM computes it once.
vLLM is not a dependency of the package: `pip install vllm` on a machine with a GPU.
"""

from __future__ import annotations

import os
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import (
    Chat,
    Sample,
    SampleRequest,
    encode_request,
    token_counts,
)

QUANTIZATION = {"none": None, "4bit": "bitsandbytes"}
CPU_CACHE_BYTES = 2 * 2**30  # keys and values of a worker on CPUs; VLLM_CPU_KVCACHE_SPACE wins


class VLLMSampler:
    """Holds a `vllm.LLM` and its tokenizer; `sample` as in `sampling.protocol.Sampler`."""

    def __init__(
        self,
        path: str,
        *,
        chat: Chat = "auto",
        dtype: str = "bfloat16",
        gpu_memory: float = 0.85,
        quantize: str = "none",
        tensor_parallel: int = 1,
        device: str = "cuda",
    ) -> None:
        """`path`: Hugging Face folder, its URI, or a hub name. `gpu_memory`: share of each GPU's
        memory for weights and cache. `tensor_parallel`: number of GPUs that hold one model.
        `device`: "cuda", or "cpu" where vLLM is its build for CPUs."""
        if quantize not in QUANTIZATION:
            raise UserError(
                f"sampling.quantize={quantize}: vLLM loads weights in 4 bits only: set 4bit or "
                f"none, or sampling.engine=transformers"
            )
        vllm = _import(device)
        from transformers import AutoTokenizer

        from facttune_ray.sampling.weights import local_weights

        folder = local_weights(path)
        # Use the GPUs of this machine only: vLLM must not ask the Ray cluster for others.
        extra: dict[str, Any] = {}
        if tensor_parallel > 1:
            extra["distributed_executor_backend"] = "mp"
        if device == "cpu":
            extra["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        else:
            extra["gpu_memory_utilization"] = gpu_memory
        if quantize == "none":  # bitsandbytes has a loader of its own
            extra["load_format"] = "safetensors"
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.llm = vllm.LLM(
                model=folder,
                tokenizer=folder,
                dtype=dtype,
                quantization=QUANTIZATION[quantize],
                tensor_parallel_size=tensor_parallel,
                enable_prefix_caching=True,
                seed=0,
                disable_log_stats=True,
                **extra,
            )
        except (OSError, ValueError) as e:
            line = " ".join(str(e).split())[:300]
            raise UserError(f"vLLM cannot load a model from {path}: {line}") from e
        self.params, self.chat = vllm.SamplingParams, chat
        self.max_tokens = int(self.llm.llm_engine.model_config.max_model_len)

    def sample(self, request: SampleRequest) -> list[list[Sample]]:
        """Sample k of a prompt draws with the seed of the prompt + k.

        If a prompt leaves no room for one token of response, its samples have an `error`; if it
        leaves less room than `max_tokens`, its samples are shorter. vLLM's batches change the last
        bits of probabilities, so a sample may differ between two runs.
        """
        prefix, ends = encode_request(self.tokenizer, request, self.chat)
        encoded = [prefix + ids for ids in ends]
        out = [self._too_long(len(ids), request.n) for ids in encoded]
        fits = [i for i, ids in enumerate(encoded) if len(ids) < self.max_tokens]
        if not fits:
            return out
        greedy = request.temperature == 0
        answered = self.llm.generate(
            [{"prompt_token_ids": encoded[i]} for i in fits],
            sampling_params=[
                self.params(
                    n=1 if greedy else request.n,  # vLLM refuses several greedy samples
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=min(request.limits[i], self.max_tokens - len(encoded[i])),
                    stop=list(request.stop) or None,
                    seed=request.seeds[i] % 2**62,  # vLLM adds the index; the sum needs 63 bits
                    include_stop_str_in_output=False,
                    skip_special_tokens=True,
                )
                for i in fits
            ],
            use_tqdm=False,
        )
        for i, answer in zip(fits, answered, strict=True):
            samples = [_sample(o) for o in sorted(answer.outputs, key=lambda o: o.index)]
            out[i] = samples * request.n if greedy else samples
        return out

    def count_tokens(self, texts: list[str]) -> list[int]:
        return token_counts(self.tokenizer, texts)

    def _too_long(self, tokens: int, n: int) -> list[Sample]:
        error = f"the prompt has {tokens} tokens, the model takes {self.max_tokens} in all"
        return [Sample("", 0, False, error=error)] * n


def _sample(output: Any) -> Sample:
    return Sample(output.text, len(output.token_ids), output.finish_reason == "stop")


def _import(device: str) -> Any:
    if device == "cpu":  # or each worker of a host binds its threads to the same cores
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    try:
        import vllm
    except ImportError as e:
        missing = isinstance(e, ModuleNotFoundError) and e.name == "vllm"
        why = "" if missing else f" ({' '.join(str(e).split())[:160]})"
        raise UserError(
            f"sampling.engine=vllm needs vLLM{why}: pip install vllm on the GPU machines, or set "
            f"sampling.engine=transformers"
        ) from None
    from vllm.platforms import current_platform

    if device == "cpu" and not current_platform.is_cpu():
        raise UserError(
            "sampling.engine=vllm: this vLLM is built for GPUs: set sampling.gpus=1, or install "
            "vLLM's build for CPUs"
        )
    return vllm
