"""Requests of one worker to an OpenAI-compatible API.

    client = Client(cfg.llm, ledger, endpoints)
    verdict = await client.ask(prompts.verdicts.render(...), prompts.verdicts.parse)
    completions = await client.complete_all("Question: ...", [{"seed": 3}, {"seed": 9}], choices=2)

A completion that is in the ledger is not requested again. Every other completion takes this way
(`sending.py`): budget -> permit of the cluster's limiter -> journal -> endpoint -> ledger. Equal
requests that run at the same time are sent once. One request may bring several completions (`n`);
each completion is a row of the ledger.
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
from facttune_ray.llm.cost import Reporter, Usage, shard_usage
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.funds import Funds
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.parameters import Prompt, as_sent, parameters
from facttune_ray.llm.refusals import Refusals
from facttune_ray.llm.replies import Completion
from facttune_ray.llm.sending import Sender

T = TypeVar("T")


class Client:
    """Requests of one worker to one model. A client lives on one event loop."""

    def __init__(
        self,
        cfg: LLMConfig,
        ledger: Ledger,
        endpoints: list[Endpoint],
        report: Reporter | None = None,
        worker: str = "worker",
    ) -> None:
        """`report` sends usage to the run's meter under the name `worker`; None: no meter."""
        self.cfg, self.ledger, self.endpoints = cfg, ledger, endpoints
        self.usage = Usage()
        self._running: dict[bytes, asyncio.Future[Completion]] = {}  # key -> completion to come
        gates = [e.gate for e in endpoints]
        self._funds = Funds(
            cfg, self.usage, report, worker, ledger.stage, self._running, gates, self.stop
        )
        self._refusals = Refusals(self._running, self._funds, bool(ledger.segments))
        self._sender = Sender(cfg, ledger, endpoints, self._funds, self._refusals)
        self._batches: Batches | None = None
        if cfg.mode == "batch":
            self._batches = Batches(cfg, ledger, endpoints[0], self._sender)
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio keeps no reference to a task
        self._wanted: list[bytes] = []  # keys of the next read of the ledger
        self._reading: asyncio.Task[dict[bytes, Completion]]

    async def ask(
        self, messages: list[dict[str, str]], parse: Callable[[str], T], reject_cut: bool = False
    ) -> T:
        """Return the parsed answer. Repeat a refusal, or an answer for which `parse` raises
        RowError, with a new sample index, `llm.reasks` times; then raise that RowError. An answer
        that a filter ended, or that was cut before its text began, raises Final at once. With
        `reject_cut` so does an answer that was cut within its text."""
        answer = attrgetter("whole_answer" if reject_cut else "answer")
        return await self.ask_completion(messages, lambda completion: parse(answer(completion)))

    async def ask_completion(
        self,
        messages: list[dict[str, str]],
        parse: Callable[[Completion], T],
        params: dict[str, Any] | None = None,
    ) -> T:
        """Like `ask`, but `parse` gets the completion. `params` are sent with this request."""
        for sample in range(self.cfg.reasks + 1):
            completion = await self.complete(messages, sample, params)
            try:
                if completion.refusal is not None and not completion.filtered:
                    raise RowError(f"refused: {completion.refusal[:160]}")
                return parse(completion)
            except Final:
                raise
            except RowError as e:
                error = e
        raise error

    async def complete(
        self, messages: list[dict[str, str]], sample: int = 0, params: dict[str, Any] | None = None
    ) -> Completion:
        """Return one completion, from the ledger or from a new request."""
        return await asyncio.shield(self._start(messages, {sample: params or {}}, 1)[0])

    async def complete_all(
        self, prompt: Prompt, params: Sequence[dict[str, Any]], choices: int = 1
    ) -> list[Completion | RowError]:
        """Return the completions of sample indices 0, 1, ..., one for each item of `params`. A
        completion that failed is a RowError in the list.

        A request brings up to `choices` completions that the ledger lacks: it has the parameter `n`
        and the parameters of its first sample. The keys do not depend on `choices`, so the ledger
        has a completion whatever `choices` was when it was paid.
        """
        if self.cfg.mode != "online" and isinstance(prompt, str):
            raise UserError(
                f"sampling.form=completions: llm.mode={self.cfg.mode} takes chat alone: set "
                f"llm.mode=online"
            )

        async def outcome(completion: asyncio.Future[Completion]) -> Completion | RowError:
            try:
                return await asyncio.shield(completion)
            except RowError as e:
                return e

        started = self._start(prompt, dict(enumerate(params)), choices)
        return list(await asyncio.gather(*map(outcome, started)))

    def _start(
        self, prompt: Prompt, params_of: dict[int, dict], choices: int
    ) -> list[asyncio.Future[Completion]]:
        """Return a future for each sample index of `params_of`. Start those that do not run."""
        new: dict[bytes, dict] = {}
        keys = []
        prompt = as_sent(self.cfg, prompt)
        for sample, extra in params_of.items():
            params = parameters(self.cfg, sample, extra)
            keys.append(key := request_key(self.cfg.model, prompt, params, sample))
            if key not in self._running:
                new[key] = params
                future = self._running[key] = asyncio.get_running_loop().create_future()
                future.add_done_callback(functools.partial(self._ended, key))
        futures = [self._running[key] for key in keys]
        if new:
            task = asyncio.create_task(self._bring_all(prompt, new, choices))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return futures

    def _ended(self, key: bytes, _: object) -> None:
        del self._running[key]
        self._refusals.settle()  # perhaps no request is left whose answer could be evidence

    def hungry(self) -> bool:
        """Whether more requests are needed to keep the endpoints busy."""
        if self._batches is not None:
            return len(self._running) < self.cfg.batch_requests
        # what permits will let go soon; bounded, because requests that wait take memory
        soon = sum(min(e.gate.soon, 8 * self.cfg.concurrency) for e in self.endpoints)
        return len(self._running) < max(2 * self.cfg.concurrency, soon)

    def stop(self, why: Exception) -> None:
        """Send no more requests. Every request that waits to be sent ends with this error."""
        self._funds.stop(why)
        for endpoint in self.endpoints:
            endpoint.gate.shut(why)
        if self._batches is not None:
            self._batches.stop(why)

    async def drain(self, why: Exception) -> None:
        """`stop`, then wait until every request in flight has its answer in the ledger."""
        self.stop(why)
        while self._running:
            await asyncio.wait(list(self._running.values()))

    async def pause(self) -> None:
        """Write the ledger and report to meter and limiter: the event loop may stand still now."""
        try:
            await self.ledger.close()
        finally:  # report also when the ledger cannot be written
            await self._funds.pause()
            await asyncio.gather(*(e.gate.pause() for e in self.endpoints))

    async def close(self) -> None:
        try:
            await self.pause()
        finally:
            await asyncio.gather(*(e.close() for e in self.endpoints))

    # -- one prompt ------------------------------------------------------------------------

    async def _bring_all(self, prompt: Prompt, params: dict[bytes, dict], choices: int) -> None:
        """End the futures of these keys, from the ledger or by requests of up to `choices`."""
        waiting = {key: self._running[key] for key in params}
        try:
            used = shard_usage.get()
            for key, completion in (await self._look_up(list(params))).items():
                waiting.pop(key).set_result(completion)
                self.usage.cached += 1
                if used is not None:
                    used.cached += 1
            missing, size = list(waiting), choices if self.cfg.mode == "online" else 1
            parts = [missing[i : i + size] for i in range(0, len(missing), size)]
            paying = [self._bring(prompt, {k: params[k] for k in part}, waiting) for part in parts]
            await (paying[0] if len(paying) == 1 else asyncio.gather(*paying))
        except BaseException as e:
            _fail(waiting.values(), e)
            if not isinstance(e, Exception):
                raise

    async def _bring(
        self, prompt: Prompt, params: dict[bytes, dict], waiting: dict[bytes, asyncio.Future]
    ) -> None:
        """Request these completions at once; request again those that the answer lacks."""
        keys = list(params)
        try:
            while keys:
                paid = await self._pay(keys, prompt, params[keys[0]])
                if (used := shard_usage.get()) is not None:
                    used.count(paid)
                for key, completion in zip(keys, paid, strict=False):
                    waiting[key].set_result(completion)
                keys = keys[len(paid) :]
        except Exception as e:
            _fail((waiting[key] for key in keys), e)

    async def _look_up(self, keys: list[bytes]) -> dict[bytes, Completion]:
        """The completions that the ledger has. Look-ups of one turn of the loop are one read."""
        if not self._wanted:
            self._reading = asyncio.create_task(self._read())  # runs in the loop's next turn
        self._wanted += keys
        known = await self._reading
        return {key: known[key] for key in keys if key in known}

    async def _read(self) -> dict[bytes, Completion]:
        wanted, self._wanted = self._wanted, []
        return await asyncio.to_thread(self.ledger.find, wanted)

    async def _pay(self, keys: list[bytes], prompt: Prompt, params: dict) -> list[Completion]:
        """Send one request for the completions of `keys`. Return those that it brought, in order:
        at least the first."""
        request = self._sender.request(keys, prompt, params)
        if self._batches is None:
            try:
                return await self._sender.send(request)
            except EndpointError as e:
                self.stop(e)
                raise
        usd = await self._funds.take(lambda: self._sender.estimated_usd(request))
        try:
            return [await self._batches.send(request)]
        finally:
            self._funds.done(usd)


def _fail(futures: Iterable[asyncio.Future], error: BaseException) -> None:
    for future in futures:
        if not future.done() and isinstance(error, Exception):
            future.set_exception(error)
        else:
            future.cancel()  # does nothing to a future that is done
