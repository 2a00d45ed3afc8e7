"""Any decoder that transformers loads as `custom_generate`: a folder, or a hub name, with Python.

    CustomSampler("models/llama", generate="decoders/dola", params={"dola_layers": "high"})

`decoders/dola/custom_generate/generate.py` holds `def generate(model, input_ids, ...)`. This code
is run, so `sampling.trust_remote_code` must be set. Prompts run one at a time, the n samples of a
prompt as one batch. torch is seeded by the prompt's seed; the decoder decides how it draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import (
    Chat,
    Sample,
    SampleRequest,
    cut,
    encode_request,
    token_counts,
)
from facttune_ray.sampling.weights import Quantize, load


class CustomSampler:
    """Holds a causal LM and its tokenizer; `sample` as in `sampling.protocol.Sampler`."""

    def __init__(
        self,
        path: str,
        *,
        generate: str,
        params: dict[str, Any] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        chat: Chat = "auto",
        quantize: Quantize = "none",
    ) -> None:
        """`generate`: folder with custom_generate/generate.py, or a hub name. `params`: extra
        arguments of the decoder. UserError when the folder has no decoder."""
        folder = Path(generate)
        if (folder.is_dir() or generate.startswith(("/", "."))) and not (
            folder / "custom_generate" / "generate.py"
        ).is_file():
            raise UserError(
                f"sampling.custom_generate={generate}: no custom_generate/generate.py in this "
                f"folder: name the folder that holds custom_generate"
            )
        self.tokenizer, self.model = load(
            path, dtype, device=device, quantize=quantize, trust_remote_code=True
        )
        self.generate, self.params, self.chat = generate, params or {}, chat

    @torch.inference_mode()
    def sample(self, request: SampleRequest) -> list[list[Sample]]:
        prefix, encoded = encode_request(self.tokenizer, request, self.chat)
        settings: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            settings |= {"temperature": request.temperature, "top_p": request.top_p}
        out = []
        for ids, limit, seed in zip(encoded, request.limits, request.seeds, strict=True):
            torch.manual_seed(seed)
            input_NT = torch.tensor([prefix + ids] * request.n, device=self.model.device)
            output_NT = self._generate(input_NT, settings | {"max_new_tokens": limit})
            new = output_NT[:, input_NT.shape[1] :].tolist()
            out.append([self._sample(tokens, request.stop) for tokens in new])
        return out

    def count_tokens(self, texts: list[str]) -> list[int]:
        return token_counts(self.tokenizer, texts)

    def _generate(self, ids_NT: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
        try:
            return self.model.generate(
                input_ids=ids_NT,
                attention_mask=torch.ones_like(ids_NT),
                pad_token_id=self.tokenizer.eos_token_id,
                custom_generate=self.generate,
                trust_remote_code=True,
                **settings,
                **self.params,
            )
        except (OSError, ValueError, TypeError) as error:
            line = " ".join(str(error).split())[:300]
            raise UserError(f"sampling.custom_generate={self.generate}: {line}") from error

    def _sample(self, tokens: list[int], stops: tuple[str, ...]) -> Sample:
        eos, length = self.tokenizer.eos_token_id, len(tokens)
        ended = eos in tokens
        if ended:
            length = tokens.index(eos) + 1
        kept = tokens[: length - ended]
        text = self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text, stopped = cut(text, stops)
        return Sample(text, length, ended or stopped)
