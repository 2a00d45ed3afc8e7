"""Async calls to an OpenAI-compatible endpoint, each paid once.

    client = Client(cfg.llm, Ledger(folder), base_url)
    verdict = await client.ask(prompts.verdicts.render(...), prompts.verdicts.parse)

One retry loop (tenacity; the SDK's own is off): 408, 409, 429, 5xx, timeouts and broken
connections are tried again with full jitter; Retry-After is obeyed. 400, 401, 403, 404 and an
exhausted quota stop the run with one line. A completion is in the ledger before it is returned.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
import tenacity

from facttune_ray.config import LLMConfig, one_line
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.ledger import Completion, Ledger, request_key

T = TypeVar("T")
_RETRIED_STATUS = {408, 409, 429}


@dataclass
class Usage:
    """Counters of one client."""

    calls: int = 0  # requests answered and paid
    cached: int = 0  # answers taken from the ledger
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class Client:
    """One worker's connection: bounded requests in flight, identical requests sent once."""

    def __init__(self, cfg: LLMConfig, ledger: Ledger, base_url: str) -> None:
        self.cfg, self.ledger, self.usage = cfg, ledger, Usage()
        self.base_url = base_url
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            # local endpoints take any key, but the SDK insists on one
            api_key=os.environ.get(cfg.api_key_env) or "none",
            max_retries=0,
            timeout=cfg.timeout_s,
            http_client=openai.DefaultAioHttpClient(),
        )
        self._slots = asyncio.Semaphore(cfg.concurrency)
        self._running: dict[str, asyncio.Task[Completion]] = {}

    async def ask(self, messages: list[dict[str, str]], parse: Callable[[str], T]) -> T:
        """The parsed answer. An answer that `parse` refuses is asked again under a new sample
        index, `llm.reasks` times; then its RowError is raised."""
        for sample in range(self.cfg.reasks + 1):
            completion = await self.complete(messages, sample)
            try:
                return parse(completion.text)
            except RowError as e:
                refused = e
        raise refused

    async def complete(self, messages: list[dict[str, str]], sample: int = 0) -> Completion:
        """One completion, from the ledger or paid for now."""
        params = {"temperature": self.cfg.temperature, "max_tokens": self.cfg.max_tokens}
        key = request_key(self.cfg.model, messages, params, sample)
        if (known := self.ledger.get(key)) is not None:
            self.usage.cached += 1
            return known
        if key not in self._running:
            task = asyncio.create_task(self._pay(key, messages, params))
            task.add_done_callback(lambda _: self._running.pop(key))
            self._running[key] = task
        return await self._running[key]

    async def _pay(self, key: str, messages: list[dict], params: dict[str, Any]) -> Completion:
        attempts = 0
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=self._pause,
            stop=tenacity.stop_after_attempt(self.cfg.max_attempts),
            reraise=True,
        )
        async with self._slots:
            try:
                async for attempt in retrying:
                    with attempt:
                        attempts += 1
                        started = time.monotonic()
                        # a server that knows this header answers a repeated key without
                        # charging again: the request that was in flight when we were killed
                        try:
                            reply = await self._openai.chat.completions.create(
                                model=self.cfg.model,
                                messages=messages,  # type: ignore[arg-type]
                                extra_headers={"Idempotency-Key": key},
                                **params,
                            )
                        except json.JSONDecodeError as e:  # the SDK lets it through
                            raise BrokenReply(f"HTTP 200 with a broken body: {e}") from None
                        text = _text(reply)
                        latency_s = time.monotonic() - started
            except (openai.APIError, BrokenReply) as e:
                raise self._explain(e, attempts) from None
        used = reply.usage
        completion = Completion(
            text=text,
            prompt_tokens=used.prompt_tokens if used else 0,
            completion_tokens=used.completion_tokens if used else 0,
            served_model=reply.model,
            attempts=attempts,
            latency_s=latency_s,
        )
        self.ledger.put(key, completion)
        self._count(completion)
        return completion

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: Retry-After, or full jitter over 0.5 * 2^attempt."""
        self.usage.retries += 1
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, openai.APIStatusError):
            try:
                return min(float(error.response.headers["retry-after"]), self.cfg.max_wait_s)
            except (KeyError, ValueError):
                pass
        return tenacity.wait_random_exponential(multiplier=0.5, max=self.cfg.max_wait_s)(state)

    def _count(self, completion: Completion) -> None:
        self.usage.calls += 1
        self.usage.prompt_tokens += completion.prompt_tokens
        self.usage.completion_tokens += completion.completion_tokens
        self.usage.cost_usd += (
            completion.prompt_tokens * self.cfg.usd_per_million_input
            + completion.completion_tokens * self.cfg.usd_per_million_output
        ) / 1e6

    def _explain(self, error: Exception, attempts: int) -> Exception:
        """A rejected or unreachable endpoint stops the run; other failures are the row's."""
        # the aiohttp transport reports a refused connection as a ConnectTimeout
        if type(error.__cause__).__name__ in ("ConnectTimeout", "ConnectError"):
            return EndpointError(
                f"LLM endpoint {self.base_url} is down ({attempts} attempts): start it, or set "
                f"llm.base_url; then run the same command again"
            )
        if isinstance(error, openai.APITimeoutError):
            return RowError(f"no answer within {self.cfg.timeout_s:g} s, {attempts} attempts")
        if isinstance(error, openai.APIStatusError) and not is_transient(error):
            hint = {
                401: f"set {self.cfg.api_key_env}",
                403: f"check the rights of {self.cfg.api_key_env}",
                404: "check llm.model and llm.base_url",
                429: "the account's quota is used up",
            }.get(error.status_code, "check llm.model and its parameters")
            message = one_line(error)[:200]
            return EndpointError(f"LLM endpoint {self.base_url} refused: {message}: {hint}")
        return RowError(f"{one_line(error)[:160]}, {attempts} attempts")

    async def close(self) -> None:
        await self._openai.close()
        self.ledger.close()


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, openai.APIStatusError):
        if error.code == "insufficient_quota":
            return False
        return error.status_code in _RETRIED_STATUS or error.status_code >= 500
    # no status: a timeout, a broken connection, or a body that is not the API's JSON
    return isinstance(error, openai.APIError | BrokenReply)


class BrokenReply(Exception):
    """HTTP 200 without a usable choice: a truncated or foreign body."""


def _text(reply: Any) -> str:
    try:
        text = reply.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise BrokenReply("HTTP 200 without choices[0].message.content")
    return text
