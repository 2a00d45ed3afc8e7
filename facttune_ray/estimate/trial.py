"""Count the requests of one stage: run the stage's own code with a client that sends nothing.

    client = CountingClient(cfg, ledger, measured)
    rows = await stage("facts").run(TrialContext(work, {"responses": [...]}, client), 0)
    client.counts
    -> RequestCounts(requests=31, cached=0, prompt_tokens=9120.0, completion_tokens=640.0)

The client answers from the ledger where it can, else by the rules of the built-in annotator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.parameters import as_sent, parameters
from facttune_ray.llm.replies import Completion
from facttune_ray.quickstart import rules
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.text.tokens import estimated_tokens

T = TypeVar("T")


@dataclass
class RequestCounts:
    """The requests of one stage for the sampled responses."""

    requests: int = 0
    cached: int = 0  # requests whose completion is in the ledger
    prompt_tokens: float = 0.0  # of the other requests
    completion_tokens: float = 0.0


class CountingClient:
    """The client of a stage on trial: counts requests and answers them without sending them."""

    def __init__(self, cfg: Config, ledger: Ledger, measured: dict | None) -> None:
        """`measured`: mean `tokens_per_char` of prompts and `completion_tokens` of answers; None:
        estimate both from words."""
        self.cfg, self.ledger, self.measured = cfg, ledger, measured
        self.completions: dict[bytes, Completion] = {}  # by the key of their request
        self.counts = RequestCounts()

    async def ask(
        self, messages: list[dict[str, str]], parse: Callable[[str], T], reject_cut: bool = False
    ) -> T:
        return await self.ask_completion(messages, lambda completion: parse(completion.answer))

    async def ask_completion(
        self,
        messages: list[dict[str, str]],
        parse: Callable[[Completion], T],
        params: dict[str, Any] | None = None,
    ) -> T:
        llm = self.cfg.llm
        key = request_key(llm.model, as_sent(llm, messages), parameters(llm, 0, params), 0)
        if key not in self.completions:
            self.completions[key] = self._complete(key, messages)
        try:
            return parse(self.completions[key])
        except RowError:  # a run repeats the request; the annotator's answer can be parsed
            return parse(_completion(rules.answer(messages, 0)))

    def _complete(self, key: bytes, messages: list[dict[str, str]]) -> Completion:
        self.counts.requests += 1
        if known := self.ledger.find([key]).get(key):
            self.counts.cached += 1
            return known
        answer = rules.answer(messages, 0)
        if self.measured:
            chars = sum(len(m["content"]) for m in messages)
            self.counts.prompt_tokens += chars * self.measured["tokens_per_char"]
            self.counts.completion_tokens += self.measured["completion_tokens"]
        else:
            text = " ".join(m["content"] for m in messages)
            self.counts.prompt_tokens += estimated_tokens(text)
            self.counts.completion_tokens += estimated_tokens(answer)
        return _completion(answer)


def _completion(text: str) -> Completion:
    return Completion(text, 0, 0, "", 1, None)


class TrialContext(Context):
    """A context whose input tables are lists of rows."""

    def __init__(self, work: Work, inputs: dict[str, list[dict]], client: CountingClient) -> None:
        super().__init__(work, client=client)
        self.inputs = inputs

    def rows(self, role: str, shard: int) -> list[dict]:
        rows = self.inputs.get(role, [])
        return [r for r in rows if r.get("split") in (None, *self.work.splits)]
