"""A stage that is only tried: its own code, with a stand-in for the LLM, and nothing sent.

    client = StandIn(cfg, ledger, measured)
    rows = await stage("facts").run(Trial(work, {"responses": [...]}, client), 0)
    client.need     Need(requests=31, cached=0, prompt_tokens=9120.0, completion_tokens=640.0)

It answers from the ledger where it can, by the annotator's rules otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.llm.ledger import Completion, Ledger, request_key
from facttune_ray.llm.parameters import as_sent, parameters
from facttune_ray.quickstart import rules
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work

T = TypeVar("T")


@dataclass
class Need:
    """What one stage asks for the sampled responses."""

    requests: int = 0
    cached: int = 0  # of them, in the ledger
    prompt_tokens: float = 0.0  # of those that are not
    completion_tokens: float = 0.0


class StandIn:
    """The client of a stage that is only tried: counts, and answers without asking."""

    def __init__(self, cfg: Config, ledger: Ledger, measured: dict | None) -> None:
        self.cfg, self.ledger, self.measured = cfg, ledger, measured
        self.seen: dict[bytes, Completion] = {}
        self.need = Need()

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
        if key not in self.seen:
            self.seen[key] = self._answer(key, messages)
        try:
            return parse(self.seen[key])
        except RowError:
            return parse(_said(rules.answer(messages, 0)))  # the run would ask again

    def _answer(self, key: bytes, messages: list[dict[str, str]]) -> Completion:
        self.need.requests += 1
        if known := self.ledger.find([key]).get(key):
            self.need.cached += 1
            return known
        answer = rules.answer(messages, 0)
        text = " ".join(m["content"] for m in messages)
        prompt, completion = words_to_tokens(text), words_to_tokens(answer)
        if self.measured:
            chars = sum(len(m["content"]) for m in messages)
            prompt = chars * self.measured["tokens_per_char"]
            completion = self.measured["completion_tokens"]
        self.need.prompt_tokens += prompt
        self.need.completion_tokens += completion
        return _said(answer)


def _said(text: str) -> Completion:
    return Completion(text, 0, 0, "", 1, None)


def words_to_tokens(text: str) -> float:
    """OpenAI's rule of thumb for English: 100 tokens are about 75 words."""
    return len(text.split()) * 4 / 3


class Trial(Context):
    """A context whose inputs are given and whose client is a stand-in."""

    def __init__(self, work: Work, inputs: dict[str, list[dict]], client: StandIn) -> None:
        super().__init__(work)
        self.inputs = inputs
        self.__dict__["client"] = client

    def rows(self, role: str, shard: int) -> list[dict]:
        rows = self.inputs.get(role, [])
        return [r for r in rows if r.get("split") in (None, *self.work.splits)]
