"""Sampling with vLLM: continuous batching on GPUs, every sample of a prompt kept.

    sampler = VLLMSampler("meta-llama/Llama-2-7b-hf", dtype="bfloat16", tensor_parallel=2)
    sampler.sample(["Where was Mara Veldt born?"], n=20, seeds=[7], max_tokens=15, ...)
    -> [[Sample(text="Mara Veldt was born in Ostrava.", tokens=9, finished=True), ...]]

Prompts become token ids here, by the functions that training uses, so vLLM's own templates and
special tokens play no part. A prefix that all prompts share stands first and is computed once.
vLLM is no dependency of the package: `pip install vllm`, on a machine with a GPU.
"""

from __future__ import annotations

from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import (
    Chat,
    Failed,
    Sample,
    check_settings,
    encode_all,
    encode_raw,
    token_counts,
)

QUANTIZATION = {"none": None, "4bit": "bitsandbytes"}


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
    ) -> None:
        """`path`: Hugging Face folder, its URI, or a hub name. `gpu_memory`: share of each GPU
        that weights and cache take together. `tensor_parallel`: GPUs that hold one model."""
        if quantize not in QUANTIZATION:
            raise UserError(
                f"sampling.quantize={quantize}: vLLM loads weights in 4 bits only: set 4bit or "
                f"none, or sampling.engine=transformers"
            )
        vllm = _import()
        from transformers import AutoTokenizer

        from facttune_ray.sampling.weights import local_weights

        folder = local_weights(path)
        # one machine's GPUs: vLLM must not look for others through the Ray cluster around it
        several = {"distributed_executor_backend": "mp"} if tensor_parallel > 1 else {}
        if quantize == "none":  # else bitsandbytes' own loader
            several["load_format"] = "safetensors"
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.llm = vllm.LLM(
                model=folder,
                tokenizer=folder,
                dtype=dtype,
                quantization=QUANTIZATION[quantize],
                tensor_parallel_size=tensor_parallel,
                gpu_memory_utilization=gpu_memory,
                enable_prefix_caching=True,
                seed=0,
                disable_log_stats=True,
                **several,
            )
        except (OSError, ValueError) as e:
            line = " ".join(str(e).split())[:300]
            raise UserError(f"vLLM cannot load a model from {path}: {line}") from e
        self.params, self.chat = vllm.SamplingParams, chat
        self.most_tokens = int(self.llm.llm_engine.model_config.max_model_len)

    def sample(
        self,
        prompts: list[str],
        *,
        n: int,
        seeds: list[int],
        max_tokens: int | list[int],
        temperature: float,
        top_p: float,
        prefix: str = "",
        stop: str | None = None,
        raw: bool = False,
        begun: list[str] | None = None,
    ) -> list[list[Sample]]:
        """Sample k of a prompt draws from its seed + k, whatever n is.

        A prompt that leaves no room for one token of response gives `Failed`; one that leaves less
        room than `max_tokens` gives shorter samples. vLLM's own batches change the last bits of
        probabilities, so that now and then a sample differs between two runs.
        """
        limits = check_settings(len(prompts), n, len(seeds), max_tokens, temperature, top_p)
        tok = self.tokenizer
        first = encode_raw(tok, prefix) if prefix else []
        encoded = [
            first + ids
            for ids in encode_all(tok, prompts, self.chat, prefix=prefix, raw=raw, begun=begun)
        ]
        out: list[list[Sample]] = [self._too_long(len(ids)) for ids in encoded]
        fits = [i for i, ids in enumerate(encoded) if len(ids) < self.most_tokens]
        if not fits:
            return out
        answered = self.llm.generate(
            [{"prompt_token_ids": encoded[i]} for i in fits],
            sampling_params=[
                self.params(
                    n=n if temperature > 0 else 1,  # vLLM refuses equal samples
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=min(limits[i], self.most_tokens - len(encoded[i])),
                    stop=[stop] if stop else None,
                    seed=seeds[i] % 2**62,  # it adds the sample's index, and stays in 63 bits
                    include_stop_str_in_output=False,
                    skip_special_tokens=True,
                )
                for i in fits
            ],
            use_tqdm=False,
        )
        for i, request in zip(fits, answered, strict=True):
            samples = [_sample(o) for o in sorted(request.outputs, key=lambda o: o.index)]
            out[i] = samples if temperature > 0 else samples * n
        return out

    def count_tokens(self, texts: list[str]) -> list[int]:
        return token_counts(self.tokenizer, texts)

    def _too_long(self, tokens: int) -> Failed:
        return Failed(f"the prompt has {tokens} tokens, the model takes {self.most_tokens} in all")


def _sample(output: Any) -> Sample:
    return Sample(output.text, len(output.token_ids), output.finish_reason == "stop")


def _import() -> Any:
    try:
        import vllm
    except ImportError as e:
        missing = isinstance(e, ModuleNotFoundError) and e.name == "vllm"
        why = "" if missing else f" ({' '.join(str(e).split())[:160]})"
        raise UserError(
            f"sampling.engine=vllm needs vLLM{why}: pip install vllm on the GPU machines, or set "
            f"sampling.engine=transformers"
        ) from None
    return vllm
