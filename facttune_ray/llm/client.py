"""Calls to an OpenAI-compatible API: from the ledger, or paid once within limits and budget.

    client = Client(cfg.llm, ledger, endpoints)
    verdict = await client.ask(prompts.verdicts.render(...), prompts.verdicts.parse)

A request goes: ledger -> budget -> permit of the cluster's limiter -> endpoint -> ledger. One retry
loop (tenacity; the SDK's own is off) repeats transient failures with full jitter, within
`max_attempts` and `max_elapsed_s`; a 429 is no attempt: the limiter pauses the cluster instead.
Identical requests in flight are sent once. A completion is in the ledger before it is returned.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached, RowError, UserError
from facttune_ray.llm.batch import Batches
from facttune_ray.llm.cost import Ask, MeterLost, Report, Usage, counted, price_of
from facttune_ray.llm.endpoint import Endpoint, Reply, Transient
from facttune_ray.llm.ledger import Completion, Ledger, request_key
from facttune_ray.llm.permits import permit

T = TypeVar("T")
REPORT_S = 0.5  # between two reports to the run's meter


class Client:
    """One worker's requests to one model. Lives on one event loop."""

    def __init__(
        self,
        cfg: LLMConfig,
        ledger: Ledger,
        endpoints: list[Endpoint],
        report: Report | None = None,
        worker: str = "worker",
    ) -> None:
        self.cfg, self.ledger, self.endpoints, self.worker = cfg, ledger, endpoints, worker
        self._gates = [e.gate for e in endpoints]
        self.usage, self.price = Usage(), price_of(cfg)
        self._report, self._reported = report, Usage()
        self._reporting: asyncio.Task[None] | None = None
        self._batches: Batches | None = None
        if cfg.mode == "batch":
            records = ledger.folder / "batches"
            self._batches = Batches(cfg, records, endpoints[0], self._keep, self._find_again)
        self._running: dict[bytes, asyncio.Task[Completion]] = {}
        self._lookups: dict[bytes, asyncio.Future[Completion | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._tickets = itertools.count()
        # what the tokens of a request are guessed from; trued up by every answer
        self._chars, self._prompt_tokens, self._answers, self._answer_tokens = 400, 100, 1, 64
        self._allowed_usd = float("inf") if cfg.budget_usd is None or report is None else 0.0
        self._in_flight_usd = 0.0
        self._unfunded: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._stopped: Exception | None = None  # nothing more is sent

    async def ask(self, messages: list[dict[str, str]], parse: Callable[[str], T]) -> T:
        """The parsed text of the answer. A refusal, or an answer that `parse` refuses, is asked
        again under a new sample index, `llm.reasks` times; then its RowError is raised."""
        return await self.ask_whole(messages, lambda completion: parse(completion.text))

    async def ask_whole(
        self,
        messages: list[dict[str, str]],
        parse: Callable[[Completion], T],
        params: dict[str, Any] | None = None,
    ) -> T:
        """`ask`, where `parse` sees the whole completion; `params` are sent with this request."""
        for sample in range(self.cfg.reasks + 1):
            completion = await self.complete(messages, sample, params)
            try:
                if completion.refusal is not None:
                    raise RowError(f"refused: {completion.refusal[:160]}")
                return parse(completion)
            except RowError as e:
                refused = e
        raise refused

    async def complete(
        self,
        messages: list[dict[str, str]],
        sample: int = 0,
        params: dict[str, Any] | None = None,
    ) -> Completion:
        """One completion, from the ledger or paid for now."""
        params = parameters(self.cfg, sample) | (params or {})
        key = request_key(self.cfg.model, messages, params, sample)
        if key not in self._running:
            task = asyncio.create_task(self._have(key, messages, params))
            task.add_done_callback(lambda _: self._running.pop(key))
            self._running[key] = task
        return await asyncio.shield(self._running[key])

    def hungry(self) -> bool:
        """Whether more requests are needed to keep the endpoints busy."""
        if self._batches is not None:
            return len(self._running) < self.cfg.batch_requests
        rates = [e.gate.lease.requests_per_s for e in self.endpoints if e.gate.ready]
        # two seconds of work; without a limit, what the permits in flight take soon
        work = sum(8 * self.cfg.concurrency if math.isinf(r) else 2 * r for r in rates)
        return len(self._running) < max(2 * self.cfg.concurrency, min(work, 20_000))

    async def drain(self, why: UserError) -> None:
        """Send nothing more; return when what is in flight is answered and kept."""
        self._stop(why)
        for endpoint in self.endpoints:
            endpoint.gate.shut(why)
        if self._batches is not None:
            self._batches.stop(why)
        while self._running:
            await asyncio.wait(list(self._running.values()))

    async def pause(self) -> None:
        """Report and write out everything: this loop may now stand still."""
        await self.ledger.close()
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        await self._tell()
        for endpoint in self.endpoints:
            await endpoint.gate.pause()

    async def close(self) -> None:
        await self.pause()
        for endpoint in self.endpoints:
            await endpoint.close()

    # -- one request -----------------------------------------------------------------------

    async def _have(self, key: bytes, messages: list[dict], params: dict) -> Completion:
        shard = counted.get()
        if (known := await self._look_up(key)) is not None:
            self.usage.cached += 1
            if shard is not None:
                shard.cached += 1
            return known
        paid = await self._pay(key, messages, params)
        if shard is not None:
            _count(shard, paid)
        return paid

    async def _look_up(self, key: bytes) -> Completion | None:
        """From the ledger; requests that come together are looked up together."""
        if not self._lookups:
            self._reading = asyncio.create_task(self._read())  # runs after those who ask now
        found = self._lookups[key] = asyncio.get_running_loop().create_future()
        return await found

    async def _read(self) -> None:
        lookups, self._lookups = self._lookups, {}
        try:
            found = await asyncio.to_thread(self.ledger.find, lookups)
        except Exception as e:
            for waiting in lookups.values():
                if not waiting.done():
                    waiting.set_exception(e)
            return
        for key, waiting in lookups.items():
            if not waiting.done():
                waiting.set_result(found.get(key))

    async def _find_again(self, keys: list[bytes]) -> dict[bytes, Completion]:
        """What other writers have brought to the ledger since, too."""
        await asyncio.to_thread(self.ledger.refresh)
        return await asyncio.to_thread(self.ledger.find, keys)

    async def _pay(self, key: bytes, messages: list[dict], params: dict) -> Completion:
        chars = sum(len(m["content"]) for m in messages)
        prompt, answer = self._guess(chars)
        usd = self.price.usd(prompt, answer)
        if self._report is not None and (self._reporting is None or self._reporting.done()):
            self._reporting = asyncio.create_task(self._keep_reporting())
        await self._fund(usd)
        body = {"model": self.cfg.model, "messages": messages, **params}
        try:
            if self._batches is not None:
                return await self._batches.send(key, body)
            reply, attempts, latency_s = await self._send(key, body, prompt + answer)
        finally:
            self._in_flight_usd -= usd
        return await self._keep(key, reply, attempts, latency_s, chars)

    async def _keep(
        self,
        key: bytes,
        reply: Reply,
        attempts: int,
        latency_s: float | None = None,
        chars: int = 0,
    ) -> Completion:
        """Count what was paid, and return when it is in the ledger."""
        completion = Completion(
            text=reply.text,
            refusal=reply.refusal,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            prompt_chars=chars,
            served_model=reply.model,
            cost_usd=self.price.usd(reply.prompt_tokens, reply.completion_tokens),
            attempts=attempts,
            latency_s=latency_s,
            top_logprobs=reply.top_logprobs,
        )
        _count(self.usage, completion)
        if completion.prompt_tokens and chars:  # a server may not count them
            self._chars += chars
            self._prompt_tokens += completion.prompt_tokens
            self._answers += 1
            self._answer_tokens += completion.completion_tokens
        await self.ledger.put(key, completion)
        return completion

    async def _send(
        self, key: bytes, body: dict[str, Any], tokens: float
    ) -> tuple[Reply, int, float]:
        """(reply, attempts, seconds of the last attempt)"""
        attempts, ticket, first_s = 0, next(self._tickets), 0.0
        # a server that knows this header answers a repeated key without charging again: the
        # request that was in flight when we were killed
        headers = {"Idempotency-Key": key.hex()}

        def stop(state: tenacity.RetryCallState) -> bool:
            late = time.monotonic() - first_s > self.cfg.max_elapsed_s
            return late or attempts >= self.cfg.max_attempts

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=self._pause_s,
            stop=stop,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    gate = await permit(self._gates, tokens, ticket)
                    endpoint = self.endpoints[self._gates.index(gate)]
                    sent = time.monotonic()
                    first_s = first_s or sent
                    attempts += 1
                    try:
                        reply = await endpoint.send(body, headers)
                    except Transient as e:
                        if e.status == 429:
                            attempts -= 1
                            self.usage.refused += 1
                            gate.refused(tokens, e.headers, e.retry_after_s)
                        else:
                            gate.failed(e.unreachable)
                        self.usage.retries += 1
                        raise
                    except BaseException:
                        gate.failed()
                        raise
                    latency_s = time.monotonic() - sent
                    used = reply.prompt_tokens + reply.completion_tokens
                    gate.answered(tokens, used, latency_s, reply.headers)
        except Transient as e:
            if e.unreachable:
                raise endpoint.down(attempts) from None
            raise RowError(f"{e}, {attempts} attempts") from None
        return reply, attempts, latency_s

    def _pause_s(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: none after a 429 (the gate waits), Retry-After, or
        full jitter over 0.5 * 2^attempt."""
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, Transient)
        if error.status == 429:
            return 0.0
        if error.retry_after_s is not None:
            return min(error.retry_after_s, self.cfg.max_wait_s)
        return tenacity.wait_random_exponential(multiplier=0.5, max=self.cfg.max_wait_s)(state)

    # -- estimates, usage, budget ------------------------------------------------------------

    def _guess(self, chars: int) -> tuple[float, float]:
        """(prompt, completion) tokens of a request, from what was answered so far."""
        return (
            chars * self._prompt_tokens / self._chars,
            self._answer_tokens / self._answers,
        )

    async def _fund(self, usd: float) -> None:
        """Return when the budget has this much left for us; BudgetReached when it never will."""
        if self._stopped is not None:
            raise self._stopped
        if self._unfunded or self._allowed_usd < usd:
            funded = asyncio.get_running_loop().create_future()
            self._unfunded.append((usd, funded))
            await funded
        else:
            self._spend(usd)

    def _spend(self, usd: float) -> None:
        self._allowed_usd -= usd
        self._in_flight_usd += usd

    def _stop(self, why: Exception) -> None:
        self._stopped = self._stopped or why
        while self._unfunded:
            _, funded = self._unfunded.popleft()
            if not funded.done():
                funded.set_exception(self._stopped)

    async def _keep_reporting(self) -> None:
        idle = 0
        try:
            while idle < 4:
                idle = 0 if self._running else idle + 1
                await self._tell()
                await asyncio.sleep(REPORT_S if self._allowed_usd else 0.1)
        except Exception as e:  # a bug: those who wait for funds must not wait for ever
            self._stop(e)

    async def _tell(self) -> None:
        """Report to the run's meter, and fund requests with what it allows."""
        if self._report is None:
            return
        used = self.usage - self._reported
        wanted = [usd for usd, _ in itertools.islice(self._unfunded, 4 * self.cfg.concurrency)]
        ask = Ask(
            worker=self.worker,
            stage=self.ledger.stage,
            used=used,
            in_flight_usd=self._in_flight_usd,
            wants_usd=sum(wanted),
            one_usd=wanted[0] if wanted else 0.0,
        )
        self._reported += used
        try:
            allowance = await self._report(ask)
        except MeterLost:
            self._reported -= used
            return
        if self.cfg.budget_usd is None:
            return
        if allowance.reached:
            self._stop(BudgetReached(f"llm.budget_usd={self.cfg.budget_usd:g} is reached"))
            return
        self._allowed_usd = allowance.usd
        while self._unfunded and self._unfunded[0][0] <= self._allowed_usd:
            usd, funded = self._unfunded.popleft()
            if not funded.done():
                self._spend(usd)
                funded.set_result(None)


def _count(usage: Usage, paid: Completion) -> None:
    usage.calls += 1
    usage.prompt_tokens += paid.prompt_tokens
    usage.completion_tokens += paid.completion_tokens
    usage.cost_usd += paid.cost_usd


def parameters(cfg: LLMConfig, sample: int) -> dict[str, Any]:
    """What is sent beside the model and the messages."""
    params: dict[str, Any] = {}
    if cfg.temperature is not None:
        params["temperature"] = cfg.temperature
    if cfg.max_tokens is not None:
        params["max_tokens"] = cfg.max_tokens
    params |= cfg.params
    if isinstance(params.get("seed"), int):
        params["seed"] += sample  # the same seed would give the same refusal
    return params
