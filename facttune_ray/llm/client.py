"""Calls to an OpenAI-compatible API: from the ledger, or paid once within limits and budget.

    client = Client(cfg.llm, ledger, endpoints)
    verdict = await client.ask(prompts.verdicts.render(...), prompts.verdicts.parse)
    texts = await client.complete_all("Question: ...", [{"seed": 3}, {"seed": 9}], choices=2)

A request goes: ledger -> budget -> permit of the cluster's limiter -> endpoint -> ledger. One retry
loop (tenacity; the SDK's own is off) repeats transient failures with full jitter; a 429 is no
attempt: the limiter pauses the cluster instead. Asked for twice at the same time, sent once. A
completion is in the ledger before it is returned; one request may bring several (`n`), each a row.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import tenacity

from facttune_ray.config import LLMConfig
from facttune_ray.errors import Cut, RowError, UserError
from facttune_ray.llm.batch import Batches
from facttune_ray.llm.cost import Report, Usage, counted, price_of
from facttune_ray.llm.endpoint import Endpoint, Reply, Transient
from facttune_ray.llm.funds import Funds
from facttune_ray.llm.ledger import Completion, Ledger, request_key
from facttune_ray.llm.permits import permit

T = TypeVar("T")
Prompt = list[dict[str, str]] | str  # messages of a chat, or the text that `completions` continues


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
        self.cfg, self.ledger, self.endpoints = cfg, ledger, endpoints
        self._gates = [e.gate for e in endpoints]
        self.usage, self.price = Usage(), price_of(cfg)
        self._batches: Batches | None = None
        if cfg.mode == "batch":
            records = ledger.folder / "batches"
            self._batches = Batches(cfg, records, endpoints[0], self._keep, self._find_again)
        self._running: dict[bytes, asyncio.Future[Completion]] = {}
        self._funds = Funds(
            cfg, self.usage, report, worker, ledger.stage, lambda: bool(self._running), self.stop
        )
        self._tasks: set[asyncio.Task[None]] = set()  # that end those
        self._lookups: list[tuple[list[bytes], asyncio.Future[dict[bytes, Completion]]]] = []
        self._reading: asyncio.Task[None] | None = None
        self._tickets = itertools.count()
        # what the tokens of a request are guessed from; trued up by every answer
        self._chars, self._prompt_tokens, self._answers, self._answer_tokens = 400, 100, 1, 64

    async def ask(
        self, messages: list[dict[str, str]], parse: Callable[[str], T], to_its_end: bool = False
    ) -> T:
        """The parsed answer. A refusal, or an answer that `parse` refuses, is asked
        again under a new sample index, `llm.reasks` times; then its RowError is raised.
        `to_its_end`: one that was cut at llm.max_tokens is an error, too, and not asked again."""
        answer = attrgetter("whole_answer" if to_its_end else "answer")
        return await self.ask_whole(messages, lambda completion: parse(answer(completion)))

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
            except Cut:
                raise
            except RowError as e:
                refused = e
        raise refused

    async def complete(
        self, messages: list[dict[str, str]], sample: int = 0, params: dict[str, Any] | None = None
    ) -> Completion:
        """One completion, from the ledger or paid for now."""
        return await asyncio.shield(self._start(messages, {sample: params or {}}, 1)[0])

    async def complete_all(
        self, prompt: Prompt, each: Sequence[dict[str, Any]], choices: int = 1
    ) -> list[Completion]:
        """Completions of sample indices 0, 1, ..., `each` with its own parameters.

        Up to `choices` of those that the ledger lacks come from one request, which is sent with
        `n` and the parameters of the first of them. The keys are those of requests a sample, so
        what is paid is found again whatever `choices` is. RowError when all have ended and one of
        them failed; the others are in the ledger then.
        """
        if self._batches is not None and isinstance(prompt, str):
            raise UserError("sampling.form=completions: batches take chat alone: llm.mode=online")

        async def ended(completion: asyncio.Future[Completion]) -> Completion | RowError:
            try:
                return await asyncio.shield(completion)
            except RowError as e:
                return e

        started = self._start(prompt, dict(enumerate(each)), choices)
        found = []
        for completion in await asyncio.gather(*map(ended, started)):
            if isinstance(completion, RowError):
                raise completion
            found.append(completion)
        return found

    def _start(
        self, prompt: Prompt, each: dict[int, dict], choices: int
    ) -> list[asyncio.Future[Completion]]:
        """The completions of these sample indices, as they will come; what runs, runs once."""
        new: dict[bytes, dict] = {}
        keys = []
        for sample, own in each.items():
            params = parameters(self.cfg, sample) | own
            keys.append(key := request_key(self.cfg.model, prompt, params, sample))
            if key not in self._running:
                new[key] = params
                made = self._running[key] = asyncio.get_running_loop().create_future()
                made.add_done_callback(functools.partial(self._over, key))
        started = [self._running[key] for key in keys]
        if new:
            task = asyncio.create_task(self._have(prompt, new, choices))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return started

    def _over(self, key: bytes, _: object) -> None:
        del self._running[key]

    def hungry(self) -> bool:
        """Whether more requests are needed to keep the endpoints busy."""
        if self._batches is not None:
            return len(self._running) < self.cfg.batch_requests
        # what permits will let go soon, or those in flight make room for: what waits is in memory
        work = [e.gate.ahead_s * e.gate.requests_per_s for e in self.endpoints if e.gate.ready]
        soon = sum(min(w, 8 * self.cfg.concurrency) for w in work)
        return len(self._running) < max(2 * self.cfg.concurrency, soon)

    def stop(self, why: Exception) -> None:
        """Send nothing more: whoever waits to be sent gets this error."""
        self._funds.stop(why)
        for endpoint in self.endpoints:
            endpoint.gate.shut(why)
        if self._batches is not None:
            self._batches.stop(why)

    async def drain(self, why: Exception) -> None:
        """`stop`, and return when what is in flight is answered and kept."""
        self.stop(why)
        while self._running:
            await asyncio.wait(list(self._running.values()))

    async def pause(self) -> None:
        """Report and write out everything: this loop may now stand still."""
        try:
            await self.ledger.close()
        finally:  # also where it cannot be written
            await self._funds.pause()
            await asyncio.gather(*(e.gate.pause() for e in self.endpoints))

    async def close(self) -> None:
        try:
            await self.pause()
        finally:
            await asyncio.gather(*(e.close() for e in self.endpoints))

    # -- one request -----------------------------------------------------------------------

    async def _have(self, prompt: Prompt, wanted: dict[bytes, dict], choices: int) -> None:
        """End the futures of these keys, from the ledger or by requests of up to `choices`."""
        waiting = {key: self._running[key] for key in wanted}
        try:
            shard = counted.get()
            for key, known in (await self._look_up(list(wanted))).items():
                waiting.pop(key).set_result(known)
                self.usage.cached += 1
                if shard is not None:
                    shard.cached += 1
            missing, some = list(waiting), 1 if self._batches is not None else choices
            parts = [missing[i : i + some] for i in range(0, len(missing), some)]
            paying = [self._bring(prompt, {k: wanted[k] for k in part}, waiting) for part in parts]
            await (paying[0] if len(paying) == 1 else asyncio.gather(*paying))
        except BaseException as e:
            _fail(waiting.values(), e)
            if not isinstance(e, Exception):
                raise

    async def _bring(
        self, prompt: Prompt, part: dict[bytes, dict], waiting: dict[bytes, asyncio.Future]
    ) -> None:
        """Pay for completions that one request can bring; again for those that it did not."""
        keys = list(part)
        try:
            while keys:
                paid = await self._pay(keys, prompt, part[keys[0]])
                if (shard := counted.get()) is not None:
                    shard.count(paid)
                for key, completion in zip(keys, paid, strict=False):
                    waiting[key].set_result(completion)
                keys = keys[len(paid) :]
        except Exception as e:
            _fail((waiting[key] for key in keys), e)

    async def _look_up(self, keys: list[bytes]) -> dict[bytes, Completion]:
        """From the ledger; requests that come together are looked up together."""
        if not self._lookups:
            self._reading = asyncio.create_task(self._read())  # runs after those who ask now
        found = asyncio.get_running_loop().create_future()
        self._lookups.append((keys, found))
        return await found

    async def _read(self) -> None:
        lookups, self._lookups = self._lookups, []
        wanted = [key for keys, _ in lookups for key in keys]
        try:
            found = await asyncio.to_thread(self.ledger.find, wanted)
        except Exception as e:
            _fail((waiting for _, waiting in lookups), e)
            return
        for keys, waiting in lookups:
            if not waiting.done():
                waiting.set_result({key: found[key] for key in keys if key in found})

    async def _find_again(self, keys: list[bytes]) -> dict[bytes, Completion]:
        """What other writers have brought to the ledger since, too."""
        await asyncio.to_thread(self.ledger.refresh)
        return await asyncio.to_thread(self.ledger.find, keys)

    async def _pay(self, keys: list[bytes], prompt: Prompt, params: dict) -> list[Completion]:
        """One request for as many completions as there are keys. -> those it brought, in order"""
        n = len(keys)
        texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
        chars = sum(map(len, texts))
        prompt_tokens, answer = self._guess(chars)
        usd = self.price.usd(prompt_tokens, n * answer)
        await self._funds.take(usd)
        form = "prompt" if isinstance(prompt, str) else "messages"
        body = {"model": self.cfg.model, form: prompt, **params}
        if n > 1:
            body["n"] = n
        try:
            if self._batches is not None:
                return [await self._batches.send(keys[0], body)]
            # of several, a name of them all: the same choices are asked for again, or it is new
            name = keys[0] if n == 1 else hashlib.sha256(b"".join(keys)).digest()
            replies, attempts, latency_s = await self._send(name, body, prompt_tokens + n * answer)
        finally:
            self._funds.done(usd)
        paid = self._paid(replies[:n], attempts, latency_s, chars)
        await self.ledger.put_all(dict(zip(keys, paid, strict=False)))
        return paid

    async def _keep(self, key: bytes, reply: Reply, attempts: int) -> Completion:
        """Return when the answer of a batch's line is in the ledger."""
        (paid,) = self._paid([reply], attempts)
        await self.ledger.put(key, paid)
        return paid

    def _paid(
        self, replies: list[Reply], attempts: int, latency_s: float | None = None, chars: int = 0
    ) -> list[Completion]:
        """Count one answer. Its rows: what is the request's, not a choice's, stands in the first,
        so that sums over rows are right."""
        paid = [
            Completion(
                text=reply.text,
                refusal=reply.refusal,
                finish_reason=reply.finish_reason,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                prompt_chars=0 if i else chars,
                served_model=reply.model,
                cost_usd=self.price.usd(reply.prompt_tokens, reply.completion_tokens),
                attempts=0 if i else attempts,
                latency_s=None if i else latency_s,
                top_logprobs=reply.top_logprobs,
            )
            for i, reply in enumerate(replies)
        ]
        self.usage.count(paid)
        if paid[0].prompt_tokens and chars:  # a server may not count them
            self._chars += chars
            self._prompt_tokens += paid[0].prompt_tokens
            self._answers += len(paid)
            self._answer_tokens += sum(p.completion_tokens for p in paid)
        return paid

    async def _send(
        self, key: bytes, body: dict[str, Any], tokens: float
    ) -> tuple[list[Reply], int, float]:
        """(choices, attempts, seconds of the last attempt)"""
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
                        replies = await endpoint.send(body, headers)
                    except Transient as e:
                        if (e.retry_after_s or 0) > self.cfg.max_elapsed_s:
                            gate.failed()  # nobody is told: the next run asks again
                            raise endpoint.closed_for(e.retry_after_s or 0) from None
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
                    used = sum(r.prompt_tokens + r.completion_tokens for r in replies)
                    gate.answered(tokens, used, latency_s, replies[0].headers)
        except Transient as e:
            if e.unreachable:
                raise endpoint.down(attempts) from None
            raise RowError(f"{e}, {attempts} attempts") from None
        return replies, attempts, latency_s

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

    def _guess(self, chars: int) -> tuple[float, float]:
        """(prompt, completion) tokens of a request, from what was answered so far."""
        return (
            chars * self._prompt_tokens / self._chars,
            self._answer_tokens / self._answers,
        )


def _fail(waiting: Iterable[asyncio.Future], error: BaseException) -> None:
    for future in waiting:
        if not future.done() and isinstance(error, Exception):
            future.set_exception(error)
        else:
            future.cancel()  # no-op when it is done


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
