"""Sampling by an OpenAI-compatible endpoint, over HTTP, through the run's LLM client.

    sampler = ApiSampler(client, form="completions", choices=4)
    await sampler.sample(SampleRequest(
        ["Question: Where was Mara Veldt born?\\nAnswer:"], n=20, seeds=[7], max_tokens=15,
        temperature=1.0, top_p=0.9, stop=("\\n",), raw=True))
    -> [[Sample(text=" Ostrava", tokens=3, finished=True), ...]]

    chat          POST chat/completions: the prompt is the user's message
    completions   POST completions: the endpoint continues the prompt, as a plain model does

The client does ledger, limits, retries and budget, so a sample is paid once. A sample that failed
for good has an `error` and no text. `<think>` blocks are separated from the text.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

from facttune_ray.errors import RowError, UserError
from facttune_ray.llm.replies import split_thoughts
from facttune_ray.sampling.protocol import Sample, SampleRequest, cut
from facttune_ray.storage.schema import seed_from
from facttune_ray.text.tokens import estimated_tokens

if TYPE_CHECKING:
    from facttune_ray.llm.client import Client
    from facttune_ray.llm.parameters import Prompt
    from facttune_ray.llm.replies import Completion


class ApiSampler:
    """`sample` as in `sampling.protocol.Sampler`, awaitable."""

    def __init__(
        self, client: Client, *, form: Literal["chat", "completions"] = "chat", choices: int = 1
    ) -> None:
        """`choices`: the largest `n` of one request. Some servers accept only 1."""
        self.client, self.form, self.choices = client, form, choices

    async def sample(self, request: SampleRequest) -> list[list[Sample]]:
        """Each sample of a prompt has its own seed, derived from the prompt's seed and its index.

        A request holds temperature, top_p, max_tokens, stop (if there is one), a 31-bit seed, and
        the additions and removals of llm.params. At temperature 0 all samples of a prompt are
        equal, so one is requested. UserError for `beginnings` in chat, where no beginning can be
        continued, and when the run must stop.
        """
        if request.beginnings is not None and self.form == "chat":
            raise UserError(
                "sampling.form=completions is needed for entities: a chat endpoint cannot go on "
                "from the middle of a response"
            )
        samples = await asyncio.gather(
            *(self._samples(*call, request.stop) for call in calls(self.form, request))
        )
        return [s * request.n for s in samples] if request.temperature == 0 else samples

    async def _samples(
        self, prompt: Prompt, params: list[dict], stops: tuple[str, ...]
    ) -> list[Sample]:
        completions = await self.client.complete_all(prompt, params, self.choices)
        return [_sample(c, stops) for c in completions]

    def count_tokens(self, texts: list[str]) -> list[int]:
        """An estimate, because there is no tokenizer: 4 tokens for 3 words, at least 1."""
        return [_estimate(text) for text in texts]


def calls(form: str, request: SampleRequest) -> list[tuple[Prompt, list[dict[str, Any]]]]:
    """(prompt as it is sent, parameters of each sample) of each prompt."""
    beginnings = request.beginnings or [""] * len(request.prompts)
    out = []
    for prompt, beginning, limit, seed in zip(
        request.prompts, beginnings, request.limits, request.seeds, strict=True
    ):
        fixed: dict[str, Any] = {"temperature": request.temperature, "top_p": request.top_p}
        fixed |= {"max_tokens": limit} | _stops(request)
        draws = range(1 if request.temperature == 0 else request.n)
        params = [fixed | {"seed": seed_from(seed, i) >> 32} for i in draws]
        out.append((FORMS[form](request, prompt, beginning), params))
    return out


def _stops(request: SampleRequest) -> dict[str, Any]:
    """The parameter `stop`. A single string is sent bare: the ledger's keys depend on this form."""
    stops = list(request.stop)
    return {"stop": stops if len(stops) > 1 else stops[0]} if stops else {}


def _chat(request: SampleRequest, prompt: str, beginning: str) -> Prompt:
    return [{"role": "user", "content": request.prefix + prompt}]


def _completions(request: SampleRequest, prompt: str, beginning: str) -> Prompt:
    # The text whose tokens `protocol.encode_request` gives to a plain model.
    text = request.prefix + prompt + ("" if request.raw or request.prefix else "\n")
    return (text + beginning).rstrip(" ") if beginning else text


FORMS = {"chat": _chat, "completions": _completions}


def _sample(completion: Completion | RowError, stops: tuple[str, ...]) -> Sample:
    """A refusal is a text of the model. `tokens` is the server's count, else an estimate. A server
    counts all choices of a request together; each sample gets its share of that, by length."""
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
    text, stopped = cut(text, stops)
    finished = finished or stopped
    return Sample(text, completion.completion_tokens or _estimate(text), finished, thoughts)


def _estimate(text: str) -> int:
    return max(1, math.ceil(estimated_tokens(text)))
