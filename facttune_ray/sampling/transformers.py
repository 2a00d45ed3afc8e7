"""Sampling with transformers on one device: the engine that needs nothing else installed.

`generate(num_return_sequences=n)` runs the prompt n times and draws from one global
generator. Here a prompt, and a prefix that all prompts share, is run once, its samples attend to
the one copy (`sampling/shared.py`), and every prompt draws from its own seed.

One row in and out: see `sampling/protocol.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import repeated, shared
from facttune_ray.sampling.dola import Dola
from facttune_ray.sampling.memory import free_bytes, row_bytes, rows_that_fit, too_large
from facttune_ray.sampling.pick import pick, uniforms
from facttune_ray.sampling.protocol import (
    Chat,
    Sample,
    check_settings,
    encode_all,
    encode_raw,
    end_ids,
    token_counts,
)
from facttune_ray.sampling.weights import Quantize, load

KEEP_ALL = 0.85  # share of rows that go on, from which the finished ones are carried along
NEAR = 64  # tokens by which the prompts of one pass may differ in length, or by half


class Row(NamedTuple):
    prompt: int  # index in the call's prompts
    sample: int  # 0..n-1


class Asked(NamedTuple):
    """One `sample` call: what its passes share."""

    encoded: list[list[int]]
    leads: list[list[int]]  # tokens before the samples that decoding must see, [] at a start
    limits: list[int]  # generated tokens at most, by prompt
    seeds: list[int]  # by prompt
    n: int
    temperature: float
    top_p: float
    prefix: Any  # what a run takes as prefix
    prefix_tokens: int
    stop: str | None


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
        gpu_memory: float = 0.85,
        quantize: Quantize = "none",
        dola_layers: str = "",
        trust_remote_code: bool = False,
    ) -> None:
        """`path`: HF folder, hub name, or URI of a folder. `max_rows`: sequences decoded at a
        time at most; `gpu_memory`: share of the free GPU memory that may lessen them. `threads`:
        torch threads, None leaves them as they are. `quantize`, `trust_remote_code`: see
        `weights.load`. `dola_layers`: decode by DoLa against these layers; "": as it is."""
        if threads is not None:
            torch.set_num_threads(threads)
        tokenizer, model = load(
            path, dtype, device=device, quantize=quantize, trust_remote_code=trust_remote_code
        )
        self.tokenizer: Any = tokenizer
        self.model = model.eval()
        self.device = torch.device(device)
        self.chat: Chat = chat
        self.max_rows = max_rows
        self.gpu_memory = gpu_memory
        self.shares = shared.can_share(model)
        self.dola = Dola(model, dola_layers) if dola_layers else None
        self._most_rows: int | None = None  # that did not run out of memory
        self._eos = end_ids(self.tokenizer, self.model)
        self._endings: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._prefixes: dict[tuple[int, ...], Any] = {}  # the last one

    @torch.inference_mode()
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
        limits = check_settings(len(prompts), n, len(seeds), max_tokens, temperature, top_p)
        encoded = encode_all(
            self.tokenizer, prompts, self.chat, prefix=prefix, raw=raw, begun=begun
        )
        if prefix or raw:
            leads = [ids[-1:] for ids in encoded]
        else:
            opened = begun or [""] * len(prompts)
            leads = [
                ids[-1:] if b.strip(" ") else [] for ids, b in zip(encoded, opened, strict=True)
            ]
        out: dict[Row, Sample] = {}
        with shared.attending(self.model) if self.shares else nullcontext():
            before = encode_raw(self.tokenizer, prefix) if prefix else []
            asked = Asked(
                encoded, leads, limits, seeds, n, temperature, top_p,
                self._run_prefix(before), len(before), stop,
            )  # fmt: skip
            for rows in self._passes(asked):
                self._run(rows, asked, out)
        return [[out[Row(i, k)] for k in range(n)] for i in range(len(prompts))]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return token_counts(self.tokenizer, texts)

    def _run_prefix(self, ids: list[int]) -> Any:
        """Keys and values of a prefix. The stages give the same one call after call."""
        if not ids:
            return [] if self.shares else None
        key = tuple(ids)
        if key not in self._prefixes:
            self._prefixes.clear()
            prefill = shared.prefill if self.shares else repeated.prefill
            try:
                self._prefixes[key] = prefill(self.model, ids)
            except torch.OutOfMemoryError as error:
                raise too_large(len(ids), 0) from error
        return self._prefixes[key]

    def _passes(self, asked: Asked) -> Iterator[list[Row]]:
        """All rows in passes of prompts of like length; a prompt's rows stay together if they
        can. How many fit is asked before each pass."""
        encoded, n = asked.encoded, asked.n
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), asked.limits[i]))
        waiting: list[Row] = []
        shortest = most = 0
        for i in order:
            length = len(encoded[i])
            near = length == shortest
            if self.shares:
                near = length - shortest <= NEAR or length <= 1.5 * shortest
            if waiting and (not near or len(waiting) + n > most):
                yield waiting
                waiting = []
            if not waiting:
                shortest, most = length, self._fit(length, asked)
            rows = [Row(i, k) for k in range(n)]
            while len(rows) > most:
                yield rows[:most]
                rows = rows[most:]
            waiting += rows
        if waiting:
            yield waiting

    def _fit(self, length: int, asked: Asked) -> int:
        """Rows that one pass may have."""
        most = self._most_rows or self.max_rows
        most = min(most, self.max_rows)
        if self.device.type != "cuda":
            return most
        need = row_bytes(
            self.model.config,
            self.model.dtype.itemsize,
            prefix=asked.prefix_tokens,
            prompt=length,
            new=max(asked.limits),
            n=asked.n,
            shares=self.shares,
        )
        return rows_that_fit(free_bytes(self.device), self.gpu_memory, need, most)

    def _run(self, rows: list[Row], asked: Asked, out: dict[Row, Sample]) -> None:
        """One pass, or its two halves when it runs out of memory: the samples are the same."""
        try:
            out.update(zip(rows, self._decode(rows, asked), strict=True))
            return
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                prompt = rows[0].prompt
                held = asked.prefix_tokens + len(asked.encoded[prompt])
                raise too_large(held, asked.limits[prompt]) from error
        # outside of `except`, whose traceback holds on to the tensors of the pass
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = (len(rows) + 1) // 2
        self._most_rows = min(half, self._most_rows or half)
        self._run(rows[:half], asked, out)
        self._run(rows[half:], asked, out)

    def _decode(self, rows: list[Row], asked: Asked) -> list[Sample]:
        """Samples of rows, a prompt's side by side."""
        members = list(dict.fromkeys(row.prompt for row in rows))
        place = {prompt: b for b, prompt in enumerate(members)}
        of_R = np.array([place[row.prompt] for row in rows])
        limits_R = np.array([asked.limits[row.prompt] for row in rows])
        steps = int(limits_R.max())
        numbers = np.zeros((2, len(rows), steps))
        given = [uniforms(asked.seeds[i], asked.n, asked.limits[i]) for i in members]
        for r, row in enumerate(rows):
            own = given[of_R[r]][:, row.sample]
            numbers[:, r, : own.shape[1]] = own
        uv_2RT = torch.from_numpy(numbers).to(self.device)

        kind = shared.SharedRun if self.shares else repeated.RepeatedRun
        run = kind(self.model, asked.prefix, self.dola)
        logits_BV = run.start([asked.encoded[i] for i in members], of_R, steps)
        # DoLa's are -inf outside of its head
        if not torch.isfinite(logits_BV.amax(dim=-1) if self.dola else logits_BV).all():
            raise UserError(
                "The model's logits are not finite: its weights are broken, or model.dtype is too "
                "narrow for it (bfloat16 where float16 overflows)"
            )
        logits_RV = logits_BV[torch.from_numpy(of_R).to(self.device)]
        tokens_RT = torch.zeros(len(rows), steps, dtype=torch.long, device=self.device)
        lengths_R = limits_R.copy()
        ended_R = np.zeros(len(rows), dtype=bool)  # by end mark or `stop`
        alive = np.arange(len(rows))  # rows of the run, finished ones included
        done_R = np.zeros(len(rows), dtype=bool)
        at = torch.arange(len(rows), device=self.device)
        for t in range(steps):
            u_R, v_R = uv_2RT[:, at, t]
            next_R = pick(logits_RV, u_R, v_R, asked.temperature, asked.top_p)
            tokens_RT[at, t] = next_R
            for r in self._ending(alive, next_R, tokens_RT, t, rows, asked):
                if not done_R[r]:
                    ended_R[r], lengths_R[r] = True, t + 1
            done_R |= ended_R | (limits_R <= t + 1)
            going = ~done_R[alive]
            if not going.any():
                break
            if going.mean() < KEEP_ALL:
                kept_K = torch.from_numpy(np.flatnonzero(going)).to(self.device)
                run.keep(kept_K)
                alive, at, next_R = alive[going], at[kept_K], next_R[kept_K]
            logits_RV = run.step(next_R)
        return self._samples(rows, tokens_RT, lengths_R, ended_R, asked)

    def _ending(
        self,
        alive: np.ndarray,
        next_R: torch.Tensor,
        tokens_RT: torch.Tensor,
        t: int,
        rows: list[Row],
        asked: Asked,
    ) -> list[int]:
        """Rows whose newest token is an end mark or completes `stop`."""
        sure_V, maybe_V = self._ends(asked.stop)
        found = (sure_V[next_R] | maybe_V[next_R]).nonzero()[:, 0].cpu()
        if not len(found):
            return []
        sure = sure_V[next_R[found.to(self.device)]].tolist()
        ending = []
        for r, certain in zip(alive[found.numpy()].tolist(), sure, strict=True):
            if not certain:
                ids = tokens_RT[r, : t + 1].tolist()
                certain = str(asked.stop) in self._text(ids, asked.leads[rows[r].prompt])
            if certain:
                ending.append(r)
        return ending

    def _samples(
        self,
        rows: list[Row],
        tokens_RT: torch.Tensor,
        lengths_R: np.ndarray,
        ended_R: np.ndarray,
        asked: Asked,
    ) -> list[Sample]:
        out = []
        cells = zip(rows, tokens_RT.tolist(), lengths_R.tolist(), ended_R.tolist(), strict=True)
        for row, tokens, length, ended in cells:
            got = tokens[:length]
            text = self._text(
                got[:-1] if got[-1] in self._eos and ended else got, asked.leads[row.prompt]
            )
            if ended and asked.stop:
                text = text.split(asked.stop, 1)[0]
            out.append(Sample(text, length, ended))
        return out

    def _ends(self, stop: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Bool [V] twice: tokens that end a sample, and tokens that may. Only the latter's rows
        are decoded to text at every step."""
        key = stop or ""
        if key not in self._endings:
            vocab = self.model.get_output_embeddings().weight.shape[0]
            sure, maybe = torch.zeros(2, vocab, dtype=torch.bool)
            if stop:
                known = min(vocab, len(self.tokenizer))
                pieces = self.tokenizer.batch_decode([[i] for i in range(known)])
                # "\ufffd": a piece of a character, which may be the last one of `stop`
                for i, piece in enumerate(pieces):
                    sure[i] = stop in piece
                    maybe[i] = not sure[i] and (stop[-1] in piece or "\ufffd" in piece)
            sure[[i for i in self._eos if i < vocab]] = True
            self._endings[key] = (sure.to(self.device), maybe.to(self.device))
        return self._endings[key]

    def _text(self, ids: list[int], lead: list[int]) -> str:
        """Text of generated tokens behind `lead`: some tokenizers drop a leading space."""
        settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        whole = self.tokenizer.decode([*lead, *ids], **settings)
        if lead:
            head = self.tokenizer.decode(lead, **settings)
            if whole.startswith(head):
                return whole[len(head) :]
            return self.tokenizer.decode(ids, **settings)
        return whole
