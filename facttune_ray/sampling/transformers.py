"""Sampling with transformers on one device: the engine that needs nothing else installed.

`generate(num_return_sequences=n)` runs the prompt n times and draws from one global
generator. Here a prompt (and a prefix that all prompts share) is run once, its key-value
cache is repeated n times, and every prompt draws from its own seed.

One row in and out: see `sampling/protocol.py`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import Chat, Sample, encode_prompt, encode_raw

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICK_ELEMENTS = 1 << 24  # probabilities held at a time while picking: 128 MiB of float64
NUCLEUS_TOKENS = 128


class TransformersSampler:
    """Holds a causal LM and its tokenizer; `sample` as in `sampling.protocol.Sampler`."""

    def __init__(
        self,
        path: str,
        *,
        threads: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        chat: Chat = "auto",
        max_rows: int = 512,
    ) -> None:
        """`path`: HF folder or hub name. `max_rows`: sequences decoded at a time, which bounds
        memory. `threads`: torch threads, None leaves them as they are."""
        if threads is not None:
            torch.set_num_threads(threads)
        tokenizer, model = load(path, dtype)
        self.tokenizer: Any = tokenizer
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.chat: Chat = chat
        self.max_rows = max_rows
        self._closing: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def sample(
        self,
        prompts: list[str],
        *,
        n: int,
        seeds: list[int],
        max_tokens: int,
        temperature: float,
        top_p: float,
        prefix: str = "",
        stop: str | None = None,
        raw: bool = False,
    ) -> list[list[Sample]]:
        check_settings(len(prompts), n, len(seeds), max_tokens, temperature, top_p)
        tok = self.tokenizer
        if prefix:
            # The prefix carries bos; what follows it is tokenised apart, without one.
            encoded = [tok(p, add_special_tokens=False)["input_ids"] for p in prompts]
        elif raw:
            encoded = [encode_raw(tok, p) for p in prompts]
        else:
            encoded = [encode_prompt(tok, p, self.chat) for p in prompts]
        prefix_cache = self._prefill(encode_raw(tok, prefix)) if prefix else None

        buckets: dict[int, list[int]] = defaultdict(list)  # equal lengths need no padding
        for i, ids in enumerate(encoded):
            if not ids:
                raise UserError(f"Prompt {i} is empty after tokenisation.")
            buckets[len(ids)].append(i)

        out: list[list[Sample]] = [[] for _ in prompts]
        n_pass = min(n, self.max_rows)
        for _, members in sorted(buckets.items()):
            step = max(1, self.max_rows // n_pass)
            for start in range(0, len(members), step):
                batch = members[start : start + step]
                uniforms = np.stack([_uniforms(seeds[i], n, max_tokens) for i in batch])
                for first in range(0, n, n_pass):  # more than one pass only when n > max_rows
                    u_BNT = uniforms[:, first : first + n_pass]
                    ids = [encoded[i] for i in batch]
                    rows = self._decode(ids, u_BNT, temperature, top_p, prefix_cache, stop)
                    width = u_BNT.shape[1]
                    for k, i in enumerate(batch):
                        out[i] += rows[k * width : (k + 1) * width]
        return out

    def _prefill(self, ids: list[int]) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self._forward(torch.tensor([ids], device=self.device), cache)
        return cache

    def _forward(self, tokens_BT: torch.Tensor, cache: Any) -> torch.Tensor:
        """Runs new tokens behind the cache, which grows in place; last logits [B, V], float32."""
        out = self.model(
            input_ids=tokens_BT, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1].float()

    def _decode(
        self,
        ids: list[list[int]],
        u_BNT: np.ndarray,
        temperature: float,
        top_p: float,
        prefix_cache: Any,
        stop: str | None,
    ) -> list[Sample]:
        """Samples for prompts of one length: B * N of them, a prompt's N side by side."""
        from transformers import DynamicCache

        n, max_tokens = u_BNT.shape[1:]
        if prefix_cache is None:
            cache = DynamicCache(config=self.model.config)
        else:
            cache = copy.deepcopy(prefix_cache)
            cache.batch_repeat_interleave(len(ids))
        logits_RV = self._forward(torch.tensor(ids, device=self.device), cache)
        cache.batch_repeat_interleave(n)
        logits_RV = logits_RV.repeat_interleave(n, dim=0)
        u_RT = torch.from_numpy(u_BNT.reshape(-1, max_tokens)).to(self.device)

        tokens: list[list[int]] = [[] for _ in range(u_RT.shape[0])]
        texts: dict[int, str] = {}  # rows that ended before max_tokens
        rows = np.arange(len(tokens))  # rows of the cache, finished ones included
        for t in range(max_tokens):
            next_R = pick(logits_RV, u_RT[rows, t], temperature, top_p)
            for row, token in zip(rows.tolist(), next_R.tolist(), strict=True):
                if row not in texts:
                    tokens[row].append(token)
            self._close(rows, next_R, tokens, texts, stop)
            alive = np.array([row not in texts for row in rows.tolist()])
            if not alive.any() or t + 1 == max_tokens:
                break
            # Copying the cache costs about as much as one step, so drop rows seldom.
            if alive.mean() < 0.7:
                keep = torch.from_numpy(np.flatnonzero(alive)).to(self.device)
                cache.batch_select_indices(keep)
                rows, next_R = rows[alive], next_R[keep]
            logits_RV = self._forward(next_R[:, None], cache)
        return [
            Sample(
                text=texts[row] if row in texts else self._text(got),
                tokens=len(got),
                finished=row in texts,
            )
            for row, got in enumerate(tokens)
        ]

    def _close(
        self,
        rows: np.ndarray,
        next_R: torch.Tensor,
        tokens: list[list[int]],
        texts: dict[int, str],
        stop: str | None,
    ) -> None:
        """Puts the final text of every row that ends with its newest token into `texts`."""
        eos = self._eos_ids()
        maybe_R = torch.isin(next_R.cpu(), torch.tensor(sorted(eos)))
        if stop:
            maybe_R |= self._may_end(stop)[next_R.cpu()]
        for row in rows[maybe_R.numpy()].tolist():
            if row in texts:
                continue
            got = tokens[row]
            text = self._text(got[:-1] if got[-1] in eos else got)
            if stop and stop in text:
                texts[row] = text[: text.index(stop)]
            elif got[-1] in eos:
                texts[row] = text

    def _may_end(self, stop: str) -> torch.Tensor:
        """Bool [V]: tokens that can complete `stop`. Only their rows are decoded to text."""
        if stop not in self._closing:
            vocab = self.model.config.vocab_size
            known = min(vocab, len(self.tokenizer))
            pieces = self.tokenizer.batch_decode([[i] for i in range(known)])
            flags = [stop[-1] in piece for piece in pieces] + [False] * (vocab - known)
            self._closing[stop] = torch.tensor(flags)
        return self._closing[stop]

    def _eos_ids(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        several = configured if isinstance(configured, list) else [configured]
        return {i for i in [*several, self.tokenizer.eos_token_id] if i is not None}

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def load(path: str, dtype: str) -> tuple[Any, Any]:
    """(tokenizer, causal LM) of a Hugging Face folder or hub name; UserError when it has none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise UserError(f'dtype is "{dtype}"; it is one of {", ".join(DTYPES)}.')
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        return tokenizer, AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        where = "" if Path(path).exists() else " (no such folder)"
        line = " ".join(str(error).split())[:200]
        raise UserError(f"Cannot load a model from {path}{where}: {line}") from error


def check_settings(
    prompts: int, n: int, seeds: int, max_tokens: int, temperature: float, top_p: float
) -> None:
    """UserError for settings no engine can serve."""
    if seeds != prompts:
        raise UserError(f"{prompts} prompts but {seeds} seeds: give one seed a prompt.")
    if n < 1 or max_tokens < 1:
        raise UserError(f"n is {n} and max_tokens is {max_tokens}: both must be at least 1.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"temperature is {temperature} and top_p is {top_p}: "
            "temperature must be 0 or more, top_p above 0 and at most 1."
        )


def pick(
    logits_RV: torch.Tensor,
    u_R: torch.Tensor,
    temperature: float,
    top_p: float,
    elements: int = PICK_ELEMENTS,
) -> torch.Tensor:
    """One token a row by inverse CDF: the first token whose cumulated probability passes u.

    logits [R, V] float32, u [R] uniform in [0, 1) -> token ids [R]. Temperature 0: argmax.
    top_p < 1 keeps the smallest set of most probable tokens whose mass reaches top_p
    (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751), and draws within it.
    """
    if temperature == 0:
        return logits_RV.argmax(dim=-1)
    rows = max(1, elements // logits_RV.shape[1])
    parts = [
        _pick(logits, u, temperature, top_p)
        for logits, u in zip(logits_RV.split(rows), u_R.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _pick(
    logits_RV: torch.Tensor, u_R: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    # float64: with float32 a batch's shape could move a cumulated sum across u.
    probs_RV = torch.softmax(logits_RV.double() / temperature, dim=-1)
    if top_p == 1:
        return _invert(probs_RV, u_R)
    # The most probable tokens nearly always hold the nucleus; sort all only when they do not.
    size = min(NUCLEUS_TOKENS, probs_RV.shape[1])
    sorted_RK, order_RK = probs_RV.topk(size, dim=-1)
    if size < probs_RV.shape[1] and (sorted_RK.sum(dim=-1) < top_p).any():
        sorted_RK, order_RK = probs_RV.sort(dim=-1, descending=True, stable=True)
    before_RK = sorted_RK.cumsum(dim=-1) - sorted_RK
    kept_RK = sorted_RK.masked_fill(before_RK >= top_p, 0.0)
    return order_RK.gather(1, _invert(kept_RK, u_R)[:, None])[:, 0]


def _invert(mass_RK: torch.Tensor, u_R: torch.Tensor) -> torch.Tensor:
    cdf_RK = mass_RK.cumsum(dim=-1)
    target_R1 = (u_R.to(cdf_RK.dtype) * cdf_RK[:, -1])[:, None]
    picked_R = torch.searchsorted(cdf_RK, target_R1, right=True)[:, 0]
    # u close to 1 can round up to the whole mass: stay on the last token that has any.
    last_R = (mass_RK > 0).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(picked_R, last_R)


def _uniforms(seed: int, n: int, max_tokens: int) -> np.ndarray:
    """[n, max_tokens] in [0, 1). Row k is the same whatever n is, so more samples extend fewer."""
    return np.random.Generator(np.random.PCG64(seed)).random((n, max_tokens))
