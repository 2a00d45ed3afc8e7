"""Sampling with transformers on one device: the engine that needs no other package.

transformers' `generate(num_return_sequences=n)` runs the prompt n times and draws from one global
generator. Here a prompt runs once, and so do the lines with which all prompts begin, such as worked
examples; the samples attend to that one copy (`sampling/shared.py`). Every prompt draws from its
own seed.

Input and output: see `sampling/protocol.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import shared
from facttune_ray.sampling.dola import Dola
from facttune_ray.sampling.generation import Asked
from facttune_ray.sampling.memory import free_bytes, row_bytes, rows_that_fit, too_large
from facttune_ray.sampling.paths import PATHS, Paths
from facttune_ray.sampling.pick import pick, uniforms
from facttune_ray.sampling.probe import ANY_LENGTH, Way
from facttune_ray.sampling.protocol import (
    Chat,
    Sample,
    SampleRequest,
    cut,
    encode_request,
    end_ids,
    token_counts,
)
from facttune_ray.sampling.weights import Quantize, load
from facttune_ray.telemetry import say

KEEP_ALL = 0.85  # if at least this share of rows is unfinished, finished rows are not dropped
SHARED = 16  # tokens: a shorter beginning of all prompts is run with each prompt
NEAR = 64  # prompts of one pass may differ by this many tokens, or by half of the shortest


class Row(NamedTuple):
    prompt: int  # index in the request's prompts
    sample: int  # 0..n-1


class Encoded(NamedTuple):
    """A request as tokens, for all of its passes."""

    request: SampleRequest
    limits: list[int]  # the largest number of generated tokens, by prompt
    prompts: list[list[int]]
    leads: list[list[int]]  # the token before the samples, for decoding; [] where a response starts
    prefix: Any  # keys and values of the prefix
    prefix_ids: list[int]


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
        respect_generation_config: bool = True,
    ) -> None:
        """`path`: HF folder, hub name, or URI of a folder. `max_rows`: the largest number of
        sequences decoded at a time; `gpu_memory`: share of the free GPU memory that they may take.
        `threads`: torch threads; None changes nothing. `quantize`, `trust_remote_code`: see
        `weights.load`. `dola_layers`: decode by DoLa against these layers; "": without DoLa.
        `respect_generation_config`: see `sampling/generation.py`."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.tokenizer, self.model = load(
            path, dtype, device=device, quantize=quantize, trust_remote_code=trust_remote_code
        )
        self.path, self.device = path, torch.device(device)
        self.chat: Chat = chat
        self.max_rows = max_rows
        self.gpu_memory = gpu_memory
        self.paths, self.way = Paths(self.model), Way("")  # the way of the last request
        self.positions = self.paths.positions
        self.dola = Dola(self.model, dola_layers) if dola_layers else None
        self._rows_that_fitted: int | None = None  # set when a pass ran out of memory
        self._eos = end_ids(self.tokenizer, self.model)
        self.asked = Asked(self.model.generation_config, self._eos, respect_generation_config)
        if self.asked.text:
            say(f"generation_config of {path}: {self.asked.text}")
        self._endings: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._prefixes: dict[tuple[int, ...], Any] = {}  # the last prefix alone

    @torch.inference_mode()
    def sample(self, request: SampleRequest) -> list[list[Sample]]:
        """UserError if the tokenizer does not belong to the model, or no way to decode is right.

        If learned positions leave no room for one token behind a prompt, its samples have an
        `error`; if they leave less room than `max_tokens`, its samples are shorter.
        """
        prefix, prompts = encode_request(self.tokenizer, request, self.chat)
        self._check_vocabulary(max((i for ids in (prefix, *prompts) for i in ids), default=0))
        if request.prefix or request.raw:
            continued = [True] * len(prompts)
        else:
            continued = [bool(b.strip(" ")) for b in request.beginnings or [""] * len(prompts)]
        leads = [ids[-1:] if c else [] for ids, c in zip(prompts, continued, strict=True)]
        if not prefix:
            prefix, prompts = self._common(prompts)
        lengths = [len(prefix) + len(ids) for ids in prompts]
        limits = [min(a, b) for a, b in zip(request.limits, self._rooms(lengths), strict=True)]
        out: dict[Row, Sample] = {}
        if any(limit > 0 for limit in limits):
            self._choose(max(a + max(b, 0) for a, b in zip(lengths, limits, strict=True)))
            with shared.attending(self.model) if self.shares else nullcontext():
                states = self._run_prefix(prefix)
                encoded = Encoded(request, limits, prompts, leads, states, prefix)
                for rows in self._passes(encoded):
                    self._run(rows, encoded, out)
        return [
            [out.get(Row(i, k)) or self._too_long(lengths[i]) for k in range(request.n)]
            for i in range(len(prompts))
        ]

    @property
    def shares(self) -> bool:
        """Whether rows share the states of their prompt and prefix."""
        return self.way.path == "fast"

    def _choose(self, longest: int) -> None:
        """Choose the way for sequences of up to `longest` tokens."""
        way = self.paths.at(longest)
        if way.path != self.way.path:
            self._prefixes.clear()
        self.way = way

    def _check_vocabulary(self, highest: int) -> None:
        known = self.model.get_input_embeddings().weight.shape[0]
        if highest >= known:
            raise UserError(
                f"{self.path}: its tokenizer gives token {highest}, its model knows {known:,} "
                f"tokens: use the model's own tokenizer"
            )

    def _rooms(self, lengths: list[int]) -> list[int]:
        """Tokens that learned positions leave behind each prompt, with its prefix."""
        most = ANY_LENGTH if self.positions is None else self.positions
        return [most - length for length in lengths]

    def _too_long(self, tokens: int) -> Sample:
        error = (
            f"the prompt has {tokens} tokens, the model takes {self.positions} in all: shorten it"
        )
        return Sample("", 0, False, error=error)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return token_counts(self.tokenizer, texts)

    def _common(self, prompts: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        """(the tokens with which all prompts begin, the rest of each prompt). The common tokens end
        with a line, so that they are the same for every shard whose prompts have one template."""
        shortest = min(map(len, prompts), default=1) - 1  # every prompt keeps a token
        size = next((t for t in range(shortest) if len({p[t] for p in prompts}) > 1), shortest)
        while size >= SHARED and "\n" not in self.tokenizer.decode(prompts[0][size - 1 : size]):
            size -= 1
        if size < SHARED:
            return [], prompts
        return prompts[0][:size], [p[size:] for p in prompts]

    def _run_prefix(self, ids: list[int]) -> Any:
        """Keys and values of a prefix, kept because the stages send the same prefix every time."""
        if not ids:
            return None
        key = tuple(ids)
        if key not in self._prefixes:
            self._prefixes.clear()
            try:
                self._prefixes[key] = PATHS[self.way.path].prefill(self.model, ids)
            except torch.OutOfMemoryError as error:
                raise too_large(len(ids), 0) from error
        return self._prefixes[key]

    def _passes(self, encoded: Encoded) -> Iterator[list[Row]]:
        """All rows, in passes of prompts of similar length. The rows of a prompt stay in one pass
        if they fit. The memory is checked before each pass."""
        prompts, n = encoded.prompts, encoded.request.n
        fits = (i for i in range(len(prompts)) if encoded.limits[i] > 0)
        order = sorted(fits, key=lambda i: (len(prompts[i]), encoded.limits[i]))
        waiting: list[Row] = []
        shortest = max_rows = 0
        for i in order:
            length = len(prompts[i])
            near = length == shortest
            if PATHS[self.way.path].unequal and not self.asked.reads_ids:
                near = length - shortest <= NEAR or length <= 1.5 * shortest
            if waiting and (not near or len(waiting) + n > max_rows):
                yield waiting
                waiting = []
            if not waiting:
                shortest, max_rows = length, self._max_rows(length, encoded)
            rows = [Row(i, k) for k in range(n)]
            while len(rows) > max_rows:
                yield rows[:max_rows]
                rows = rows[max_rows:]
            waiting += rows
        if waiting:
            yield waiting

    def _max_rows(self, length: int, encoded: Encoded) -> int:
        """The largest number of rows of one pass, for prompts of this length."""
        limit = min(self._rows_that_fitted or self.max_rows, self.max_rows)
        if self.device.type != "cuda":
            return limit
        row = row_bytes(
            self.model.config,
            self.model.dtype.itemsize,
            prefix=len(encoded.prefix_ids),
            prompt=length,
            new=max(encoded.limits),
            n=encoded.request.n,
            shares=self.shares,
        )
        return rows_that_fit(free_bytes(self.device), self.gpu_memory, row, limit)

    def _run(self, rows: list[Row], encoded: Encoded, out: dict[Row, Sample]) -> None:
        """One pass, or its two halves if it runs out of memory. The samples are the same."""
        try:
            out.update(zip(rows, self._decode(rows, encoded), strict=True))
            return
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                prompt = rows[0].prompt
                tokens = len(encoded.prefix_ids) + len(encoded.prompts[prompt])
                raise too_large(tokens, encoded.limits[prompt]) from error
        # Outside of `except`, because the traceback keeps the tensors of the pass alive.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = (len(rows) + 1) // 2
        self._rows_that_fitted = min(half, self._rows_that_fitted or half)
        self._run(rows[:half], encoded, out)
        self._run(rows[half:], encoded, out)

    def _decode(self, rows: list[Row], encoded: Encoded) -> list[Sample]:
        """The sample of each row. The rows of a prompt are adjacent."""
        request = encoded.request
        members = list(dict.fromkeys(row.prompt for row in rows))
        place = {prompt: b for b, prompt in enumerate(members)}
        of_R = np.array([place[row.prompt] for row in rows])
        limits_R = np.array([encoded.limits[row.prompt] for row in rows])
        steps = int(limits_R.max())
        numbers = np.zeros((2, len(rows), steps))
        by_prompt = [uniforms(request.seeds[i], request.n, encoded.limits[i]) for i in members]
        for r, row in enumerate(rows):
            of_row = by_prompt[of_R[r]][:, row.sample]
            numbers[:, r, : of_row.shape[1]] = of_row
        uv_2RT = torch.from_numpy(numbers).to(self.device)

        run = PATHS[self.way.path].run(self.model, encoded.prefix, self.dola)
        logits_BV = run.start([encoded.prompts[i] for i in members], of_R, steps)
        # The logits of DoLa are -inf for tokens that it excludes.
        if not torch.isfinite(logits_BV.amax(dim=-1) if self.dola else logits_BV).all():
            raise UserError(
                "The model's logits are not finite: its weights are broken, or model.dtype is too "
                "narrow for it (bfloat16 where float16 overflows)"
            )
        logits_RV = logits_BV[torch.from_numpy(of_R).to(self.device)]
        tokens_RT = torch.zeros(len(rows), steps, dtype=torch.long, device=self.device)
        lengths_R = limits_R.copy()
        ended_R = np.zeros(len(rows), dtype=bool)  # by end mark or `stop`
        alive = np.arange(len(rows))  # rows that the run still holds, finished rows included
        done_R = np.zeros(len(rows), dtype=bool)
        at = torch.arange(len(rows), device=self.device)
        tokens = len(encoded.prefix_ids) + len(encoded.prompts[rows[0].prompt])
        rules = self.asked.rules(tokens, request.temperature)
        starts_RT = tokens_RT[:, :0]  # of each row: what stands before its sample
        if self.asked.reads_ids:
            starts = [[*encoded.prefix_ids, *encoded.prompts[row.prompt]] for row in rows]
            starts_RT = torch.tensor(starts, device=self.device)
        for t in range(steps):
            u_R, v_R = uv_2RT[:, at, t]
            if rules:
                so_far_RT = starts_RT[at]
                if self.asked.reads_ids:
                    so_far_RT = torch.cat([so_far_RT, tokens_RT[at, :t]], dim=1)
                logits_RV = rules(so_far_RT, logits_RV)
            next_R = pick(logits_RV, u_R, v_R, request.temperature, request.top_p)
            tokens_RT[at, t] = next_R
            for r in self._ending(alive, next_R, tokens_RT, t, rows, encoded):
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
        return self._samples(rows, tokens_RT, lengths_R, ended_R, encoded)

    def _ending(
        self,
        alive: np.ndarray,
        next_R: torch.Tensor,
        tokens_RT: torch.Tensor,
        t: int,
        rows: list[Row],
        encoded: Encoded,
    ) -> list[int]:
        """Rows whose newest token is an end mark or completes a `stop`."""
        stops = encoded.request.stop
        sure_V, maybe_V = self._ends(stops)
        candidates = (sure_V[next_R] | maybe_V[next_R]).nonzero()[:, 0].cpu()
        if not len(candidates):
            return []
        sure = sure_V[next_R[candidates.to(self.device)]].tolist()
        ending = []
        for r, certain in zip(alive[candidates.numpy()].tolist(), sure, strict=True):
            if not certain:
                ids = tokens_RT[r, : t + 1].tolist()
                certain = cut(self._text(ids, encoded.leads[rows[r].prompt]), stops)[1]
            if certain:
                ending.append(r)
        return ending

    def _samples(
        self,
        rows: list[Row],
        tokens_RT: torch.Tensor,
        lengths_R: np.ndarray,
        ended_R: np.ndarray,
        encoded: Encoded,
    ) -> list[Sample]:
        out, stops = [], encoded.request.stop
        cells = zip(rows, tokens_RT.tolist(), lengths_R.tolist(), ended_R.tolist(), strict=True)
        for row, tokens, length, ended in cells:
            ids = tokens[:length]
            if ended and ids[-1] in self._eos:
                ids = ids[:-1]
            text = self._text(ids, encoded.leads[row.prompt])
            if ended:
                text = cut(text, stops)[0]
            out.append(Sample(text, length, ended))
        return out

    def _ends(self, stops: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens that end a sample, tokens that may end it), bool [V] each. Only rows with a
        token that may end them are decoded to text at every step."""
        if stops not in self._endings:
            head = self.model.get_output_embeddings()
            text = self.model.config.get_text_config(decoder=True)
            vocab = text.vocab_size if head is None else head.weight.shape[0]
            sure, maybe = torch.zeros(2, vocab, dtype=torch.bool)
            if stops:
                known = min(vocab, len(self.tokenizer))
                pieces = self.tokenizer.batch_decode([[i] for i in range(known)])
                # "\ufffd": a part of a character, which may be the last character of a stop.
                for i, piece in enumerate(pieces):
                    sure[i] = any(stop in piece for stop in stops)
                    last = "\ufffd" in piece or any(stop[-1] in piece for stop in stops)
                    maybe[i] = last and not sure[i]
            sure[[i for i in self._eos if i < vocab]] = True
            self._endings[stops] = (sure.to(self.device), maybe.to(self.device))
        return self._endings[stops]

    def _text(self, ids: list[int], lead: list[int]) -> str:
        """Text of generated tokens. They are decoded behind `lead`, because some tokenizers drop
        the space at the start of a text."""
        settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        text = self.tokenizer.decode([*lead, *ids], **settings)
        head = self.tokenizer.decode(lead, **settings) if lead else ""
        return (
            text[len(head) :] if text.startswith(head) else self.tokenizer.decode(ids, **settings)
        )
