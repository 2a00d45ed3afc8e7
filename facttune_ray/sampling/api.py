"""Sampling by an OpenAI-compatible endpoint: nothing but HTTP, through the run's own client.

    sampler = ApiSampler(client, form="completions", choices=4)
    await sampler.sample(["Question: Where was Mara Veldt born?\\nAnswer:"], n=20, seeds=[7],
                         max_tokens=15, temperature=1.0, top_p=0.9, stop="\\n", raw=True)
    -> [[Sample(text=" Ostrava", tokens=3, finished=True), ...]]

    chat          POST chat/completions: the prompt is the user's message
    completions   POST completions: the prompt is continued as a plain model continues it

Ledger, limits, retries and budget are the client's: a sample is paid once. A sample that failed
for good has an `error` and no text. `<think>` blocks are kept apart from the text.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

from facttune_ray.errors import RowError, UserError
from facttune_ray.llm.replies import split_thoughts
from facttune_ray.sampling.protocol import Sample, check_settings
from facttune_ray.storage.schema import seed_from
from facttune_ray.text.tokens import estimated_tokens

if TYPE_CHECKING:
    from facttune_ray.llm.client import Client
    from facttune_ray.llm.ledger import Completion
    from facttune_ray.llm.parameters import Prompt


class ApiSampler:
    """`sample` as in `sampling.protocol.Sampler`, awaitable."""

    def __init__(
        self, client: Client, *, form: Literal["chat", "completions"] = "chat", choices: int = 1
    ) -> None:
        """`choices`: most samples of one request (`n`). Not every server takes more than 1."""
        self.client, self.form, self.choices = client, form, choices

    async def sample(
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
        """A prompt's samples are requests with sample indices 0..n-1 and seeds of their own.

        Sent: temperature, top_p, max_tokens, stop (if there is one), seed (31 bits), and what
        llm.params adds or, by a null, takes away. Temperature 0 is greedy: asked once, the samples
        are equal. UserError for `begun` in chat, where no beginning can be continued, and when the
        run must stop.
        """
        if begun is not None and self.form == "chat":
            raise UserError(
                "sampling.form=completions is needed for entities: a chat endpoint cannot go on "
                "from the middle of a response"
            )
        if begun is not None and prefix:
            raise ValueError("`begun` begins a response; with `prefix` put it into the prompts")
        limits = check_settings(len(prompts), n, len(seeds), max_tokens, temperature, top_p)
        begun = [""] * len(prompts) if begun is None else begun
        asked = []
        for prompt, start, limit, seed in zip(prompts, begun, limits, seeds, strict=True):
            fixed: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
            fixed |= {"max_tokens": limit} | ({"stop": stop} if stop else {})
            draws = range(n if temperature > 0 else 1)
            each = [fixed | {"seed": seed_from(seed, i) >> 32} for i in draws]
            asked.append(self._samples(FORMS[self.form](prefix, prompt, start, raw), each, stop))
        found = await asyncio.gather(*asked)
        return found if temperature > 0 else [f * n for f in found]

    async def _samples(self, prompt: Prompt, each: list[dict], stop: str | None) -> list[Sample]:
        completions = await self.client.complete_all(prompt, each, self.choices)
        return [_sample(c, stop) for c in completions]

    def count_tokens(self, texts: list[str]) -> list[int]:
        """An estimate, as there is no tokenizer: 4 tokens for 3 words, at least 1."""
        return [_estimate(text) for text in texts]


def _chat(prefix: str, prompt: str, begun: str, raw: bool) -> Prompt:
    return [{"role": "user", "content": prefix + prompt}]


def _completions(prefix: str, prompt: str, begun: str, raw: bool) -> Prompt:
    # the text whose tokens `protocol.encode_all` gives to a plain model
    text = prefix + prompt + ("" if raw or prefix else "\n")
    return (text + begun).rstrip(" ") if begun else text


FORMS = {"chat": _chat, "completions": _completions}


def _sample(completion: Completion | RowError, stop: str | None) -> Sample:
    """A refusal is what the model says. `tokens` as the server counts them; of several choices of
    one request it counts the sum, and a sample has its share by length. Estimated if it does not.
    """
    try:
        if isinstance(completion, RowError):
            raise completion
        if completion.cut and not completion.text.strip():
            raise RowError(
                "the model's thoughts took all of its tokens: raise "
                "sampling.llm.max_completion_tokens, or the stage's max_tokens"
            )
        text = completion.answer or completion.refusal or ""
    except RowError as e:
        return Sample("", 0, False, error=str(e))
    thoughts = completion.thoughts or split_thoughts(completion.text)[1]
    if thoughts:
        text = text.lstrip()
    finished = completion.finish_reason is not None and not completion.cut
    if stop and stop in text:
        text, finished = text[: text.index(stop)], True
    return Sample(text, completion.completion_tokens or _estimate(text), finished, thoughts)


def _estimate(text: str) -> int:
    return max(1, math.ceil(estimated_tokens(text)))
