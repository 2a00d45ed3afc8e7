"""Calls to an OpenAI-compatible API: from the ledger, or paid once within limits and budget.

    client = Client(cfg.llm, ledger, endpoints)
    verdict = await client.ask(prompts.verdicts.render(...), prompts.verdicts.parse)
    texts = await client.complete_all("Question: ...", [{"seed": 3}, {"seed": 9}], choices=2)

What the ledger has is not sent. What it lacks goes through `sending.py`: budget -> permit of the
cluster's limiter -> journal -> endpoint -> ledger. What is asked for twice at the same time is sent
once. One request may bring several completions (`n`), each a row of the ledger.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from facttune_ray.config import LLMConfig
from facttune_ray.errors import EndpointError, Final, RowError, UserError
from facttune_ray.llm.batch import Batches
from facttune_ray.llm.cost import Report, Usage, Waits, counted
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.funds import Funds
from facttune_ray.llm.ledger import Completion, Ledger, request_key
from facttune_ray.llm.parameters import Prompt, as_sent, parameters
from facttune_ray.llm.refusals import Refusals
from facttune_ray.llm.replies import Reply
from facttune_ray.llm.sending import Sender

T = TypeVar("T")


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
        self.usage = Usage()
        self._batches: Batches | None = None
        if cfg.mode == "batch":
            records = ledger.folder / "batches"
            self._batches = Batches(cfg, records, endpoints[0], self._keep, self._find_again)
        self._running: dict[bytes, asyncio.Future[Completion]] = {}
        self._funds = Funds(
            cfg,
            self.usage,
            report,
            worker,
            ledger.stage,
            busy=lambda: bool(self._running),
            end=self.stop,
            waits=self._waits,
        )
        self._refusals = Refusals(
            lambda: len(self._running), lambda: self._funds.calls + self.usage.cached > 0
        )
        self._sender = Sender(cfg, ledger, endpoints, self._funds, self._refusals, self.usage)
        self._ended = asyncio.Event()  # one of those has
        self._tasks: set[asyncio.Task[None]] = set()  # that end those
        self._lookups: list[tuple[list[bytes], asyncio.Future[dict[bytes, Completion]]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def ask(
        self, messages: list[dict[str, str]], parse: Callable[[str], T], to_its_end: bool = False
    ) -> T:
        """The parsed answer. A refusal, or an answer that `parse` refuses, is asked
        again under a new sample index, `llm.reasks` times; then its RowError is raised. One that a
        filter took, or that was cut before its text began, is not asked again. `to_its_end`: nor
        is one that was cut within its text."""
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
                if completion.refusal is not None and not completion.filtered:
                    raise RowError(f"refused: {completion.refusal[:160]}")
                return parse(completion)
            except Final:
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
    ) -> list[Completion | RowError]:
        """Completions of sample indices 0, 1, ..., `each` with its own parameters; a RowError in
        the place of one that failed.

        Up to `choices` of those that the ledger lacks come from one request, which is sent with
        `n` and the parameters of the first of them. The keys are those of requests a sample, so
        what is paid is found again whatever `choices` is.
        """
        if self.cfg.mode != "online" and isinstance(prompt, str):
            raise UserError(
                f"sampling.form=completions: llm.mode={self.cfg.mode} takes chat alone: set "
                f"llm.mode=online"
            )

        async def ended(completion: asyncio.Future[Completion]) -> Completion | RowError:
            try:
                return await asyncio.shield(completion)
            except RowError as e:
                return e

        started = self._start(prompt, dict(enumerate(each)), choices)
        return list(await asyncio.gather(*map(ended, started)))

    def _start(
        self, prompt: Prompt, each: dict[int, dict], choices: int
    ) -> list[asyncio.Future[Completion]]:
        """The completions of these sample indices, as they will come; what runs, runs once."""
        new: dict[bytes, dict] = {}
        keys = []
        prompt = as_sent(self.cfg, prompt)
        for sample, own in each.items():
            params = parameters(self.cfg, sample, own)
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
        self._ended.set()
        self._refusals.settle()  # there may be nothing left that could be answered

    def hungry(self) -> bool:
        """Whether more requests are needed to keep the endpoints busy."""
        if self._batches is not None:
            return len(self._running) < self.cfg.batch_requests
        # what permits will let go soon, or those in flight make room for: what waits is in memory
        work = [e.gate.ahead_s * e.gate.requests_per_s for e in self.endpoints if e.gate.ready]
        soon = sum(min(w, 8 * self.cfg.concurrency) for w in work)
        return len(self._running) < max(2 * self.cfg.concurrency, soon)

    async def until_hungry(self) -> None:
        """Return when more requests are needed: as soon as enough of those here have ended."""
        while not self.hungry():
            self._ended.clear()
            await self._ended.wait()

    def _waits(self) -> Waits | None:
        """What the requests wait for, for the run's progress line."""
        now_s = asyncio.get_running_loop().time()
        found = [w for gate in self._gates if (w := gate.waits(now_s)) is not None]
        if not found:  # none in a queue: those that were sent wait for their answers
            return None
        what, since_s = max(found, key=lambda wait: wait[1])
        return Waits(what, now_s - since_s, self._gates[0].waiting)

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
            missing, some = list(waiting), choices if self.cfg.mode == "online" else 1
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
        request = self._sender.request(keys, prompt, params)
        if self._batches is None:
            try:
                return await self._sender.send(request)
            except EndpointError as e:
                self.stop(e)
                raise
        usd = await self._funds.take(lambda: self._sender.estimated_usd(request))
        try:
            return [await self._batches.send(keys[0], request.body)]
        finally:
            self._funds.done(usd)

    async def _keep(self, key: bytes, reply: Reply, attempts: int) -> Completion:
        """Return when the answer of a batch's line is in the ledger."""
        paid = self._sender.batched(reply, attempts)
        await self.ledger.put(key, paid)
        return paid


def _fail(waiting: Iterable[asyncio.Future], error: BaseException) -> None:
    for future in waiting:
        if not future.done() and isinstance(error, Exception):
            future.set_exception(error)
        else:
            future.cancel()  # no-op when it is done
