"""Batch mode: the Files + Batches API, for half the price and an answer within 24 hours.

    ledger/batches/6f1c....json   one record a batch: its id and its requests' keys

Requests that come together are sent as one JSONL file. The record is written before the file is
sent and the batch carries the record's name in its metadata, so a killed run finds its batches
again instead of sending them twice. Every answer of a batch goes to the ledger, also one that
nobody waits for any more; then the record is removed. Failed lines are sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import tenacity

from facttune_ray.config import LLMConfig
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.endpoint import Endpoint, Transient
from facttune_ray.llm.ledger import Completion
from facttune_ray.llm.replies import HTTPReply, Meaning, Reply
from facttune_ray.storage.tables import Folder

SETTLED_S = 0.5  # a file is closed when no request has come for so long
SENDING_S = 3600.0  # a record without a batch may so long be of a worker that is sending it
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
_URL = "/v1/chat/completions"
Keep = Callable[[bytes, Reply, int], Awaitable[Completion]]
Find = Callable[[list[bytes]], Awaitable[dict[bytes, Completion]]]


@dataclass
class _Asked:
    body: dict[str, Any]
    done: asyncio.Future[Completion]
    attempts: int = 0


class Unknown(EndpointError):
    """The endpoint has no such batch, file or path."""


class Batches:
    """One worker's batches. `keep` writes an answer to the ledger, `find` looks there again."""

    def __init__(
        self, cfg: LLMConfig, folder: Folder, endpoint: Endpoint, keep: Keep, find: Find
    ) -> None:
        self.cfg, self.folder, self.endpoint = cfg, folder, endpoint
        self.keep, self.find = keep, find
        self._asked: dict[bytes, _Asked] = {}  # not answered yet
        self._pending: dict[bytes, None] = {}  # of those, in no batch
        self._arrived_s = 0.0
        self._submitting: asyncio.Task[None] | None = None
        self._following: dict[str, asyncio.Task[None]] = {}  # record -> its poll
        self._held: dict[str, set[bytes]] = {}  # record -> keys whose lines are still to come
        self._stopped: Exception | None = None

    async def send(self, key: bytes, body: dict[str, Any]) -> Completion:
        """The answer, when the batch that holds it is done; it is in the ledger then."""
        if self._stopped is not None:
            raise self._stopped
        asked = _Asked(body, asyncio.get_running_loop().create_future())
        self._asked[key] = asked
        self._queue(key)
        return await asked.done

    def _queue(self, key: bytes) -> None:
        self._pending[key] = None
        self._arrived_s = time.monotonic()
        if self._submitting is None or self._submitting.done():
            self._submitting = self._start(self._submit())

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._failed)
        return task

    def _failed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Transient):
            error = self._stop_line(str(error))
        elif isinstance(error, Unknown):
            error = EndpointError(
                f"LLM endpoint {self.endpoint.shown}, batch: {error}: if it has no Files and "
                f"Batches API, set llm.mode=online"
            )
        self.stop(error)

    def stop(self, error: BaseException) -> None:
        """Wait for nothing more. Batches that were sent stay on record for the next run."""
        made = error if isinstance(error, Exception) else RuntimeError(str(error))
        self._stopped = self._stopped or made
        for task in (*self._following.values(), self._submitting):
            if task is not None and not task.done():
                task.cancel()
        for asked in self._asked.values():
            if not asked.done.done():
                asked.done.set_exception(made)
        self._asked.clear()
        self._pending.clear()

    # -- sending ---------------------------------------------------------------------------

    async def _submit(self) -> None:
        while self._pending:
            while time.monotonic() - self._arrived_s < SETTLED_S:
                if len(self._pending) >= self.cfg.batch_requests:
                    break
                await asyncio.sleep(SETTLED_S / 5)
            await self._adopt()
            # another worker, or a batch that ended meanwhile, may have brought some of them
            for key, known in (await self.find(list(self._pending))).items():
                self._pending.pop(key, None)
                self._answer(key, known)
            lines: dict[bytes, bytes] = {}
            size = 0
            for key in list(self._pending)[: self.cfg.batch_requests]:
                line = self._line(key)
                size += len(line)
                if lines and size > self.cfg.batch_mb * 2**20:
                    break
                lines[key] = line
                del self._pending[key]
            if lines:
                await self._create(lines)

    def _line(self, key: bytes) -> bytes:
        line = {
            "custom_id": key.hex(),
            "method": "POST",
            "url": _URL,
            "body": self._asked[key].body,
        }
        return json.dumps(line).encode() + b"\n"

    async def _adopt(self) -> None:
        """Requests that a batch on record holds, a killed run's or a lost worker's, wait for it."""
        for keys in self._held.values():
            for key in keys & self._pending.keys():
                del self._pending[key]
        for name in self.folder.names():
            if not name.endswith(".json") or name in self._following:
                continue
            record = (self.folder / name).read_json()
            if record is None or record["model"] != self.cfg.model:
                continue
            mine = [k for k in map(bytes.fromhex, record["keys"]) if k in self._pending]
            if not mine:
                continue
            if record["batch_id"] is None:  # killed while it was sent: did it arrive?
                record["batch_id"] = await self._find(name)
            if record["batch_id"] is None:
                if time.time() - record.get("created_s", 0.0) > SENDING_S:
                    (self.folder / name).delete_file()
                continue
            for key in mine:
                del self._pending[key]
            self._follow(name, record)

    async def _create(self, lines: dict[bytes, bytes]) -> None:
        """Upload one file, start its batch, and follow it."""
        digest = hashlib.sha256(b"".join(sorted(lines)) + str(time.time_ns()).encode()).hexdigest()
        name = f"{digest[:32]}.json"
        record = {
            "model": self.cfg.model,
            "batch_id": None,
            "created_s": time.time(),
            "keys": [k.hex() for k in lines],
        }
        (self.folder / name).write_json(record)
        file = await self._call(
            self.endpoint.openai.with_options(max_retries=4).files.create(
                file=("requests.jsonl", b"".join(lines.values())), purpose="batch"
            )
        )
        for asked in (self._asked[key] for key in lines if key in self._asked):
            asked.attempts += 1
        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.cfg.max_attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=self.cfg.max_wait_s),
            retry=tenacity.retry_if_exception_type(Transient),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    # an attempt that broke may have arrived: ask before sending it again
                    if attempt.retry_state.attempt_number > 1:
                        record["batch_id"] = await self._find(name)
                    if record["batch_id"] is None:
                        made = await self._call(
                            self.endpoint.openai.batches.create(
                                input_file_id=file.id,
                                endpoint=_URL,  # type: ignore[arg-type]
                                completion_window="24h",
                                metadata={"facttune": name},
                            )
                        )
                        record["batch_id"] = made.id
        except Transient as e:
            raise self._stop_line(str(e)) from None
        (self.folder / name).write_json(record)
        self._follow(name, record)

    async def _find(self, name: str) -> str | None:
        """The batch whose metadata names this record."""
        client = self.endpoint.openai.with_options(max_retries=4)
        page = await self._call(client.batches.list(limit=100))
        while True:
            for batch in page.data:
                if (batch.metadata or {}).get("facttune") == name:
                    return batch.id
            if not page.has_next_page():
                return None
            page = await self._call(page.get_next_page())

    async def _call(self, call: Awaitable[Any]) -> Any:
        """One call of the SDK; its failures in our words."""
        try:
            return await call
        except openai.NotFoundError as e:
            raise Unknown(self.endpoint.redact(str(e))[:200]) from None
        except openai.APIStatusError as e:
            reply = HTTPReply(e.status_code, e.response.headers, e.response.content)
            meaning = self.endpoint.meaning(reply, {})
            if meaning.kind in ("retry", "limit"):
                raise Transient(meaning.message) from None
            raise self.endpoint.refusal(meaning) from None
        except (openai.APIError, aiohttp.ClientError) as e:
            raise Transient(self.endpoint.redact(f"{e.__cause__ or e}")) from None

    def _stop_line(self, message: str) -> EndpointError:
        return EndpointError(
            f"LLM endpoint {self.endpoint.shown}, batch: {message}; run the same command again: "
            f"batches that were sent are picked up"
        )

    # -- results ---------------------------------------------------------------------------

    def _follow(self, name: str, record: dict) -> None:
        if name not in self._following:
            self._held[name] = set(map(bytes.fromhex, record["keys"]))
            self._following[name] = self._start(self._poll(name, record))

    def _forget(self, name: str) -> None:
        """The batch is over: what it did not answer is sent again."""
        (self.folder / name).delete_file()
        self._following.pop(name, None)
        self._held.pop(name, None)

    async def _poll(self, name: str, record: dict) -> None:
        client = self.endpoint.openai.with_options(max_retries=8)
        try:
            while True:
                batch = await self._call(client.batches.retrieve(record["batch_id"]))
                if batch.status not in RUNNING:
                    break
                await asyncio.sleep(self.cfg.batch_poll_s)
        except Unknown:
            batch = None  # too old, or of another account
        if batch is not None and batch.status == "failed":
            problem = (batch.errors.data or [None])[0] if batch.errors else None
            if problem is None or problem.code != "token_limit_exceeded":
                self._forget(name)
                said = problem.message if problem else "no reason given"
                raise self._stop_line(f"was rejected: {self.endpoint.redact(str(said))}")
            for key in self._held[name] & self._asked.keys():
                self._asked[key].attempts -= 1  # the account's queue was full: it was not tried
            await asyncio.sleep(self.cfg.batch_poll_s)
        answered = False
        refused: dict[bytes, Meaning] = {}
        for file in (batch.output_file_id, batch.error_file_id) if batch is not None else ():
            if file:
                content = await self._call(client.files.content(file))
                meanings = await self._take(content.text)
                answered |= any(m.kind == "answer" for m in meanings.values())
                refused |= {k: m for k, m in meanings.items() if m.kind in ("refused", "stop")}
        left = self._held[name]
        self._forget(name)
        for key in left & self._asked.keys():  # in neither file: it was not run
            self._again(key, f"batch {batch.status if batch is not None else 'unknown'}")
        for key, meaning in refused.items():
            if meaning.kind == "stop" or not answered:  # the same would be said to every request
                raise self.endpoint.refusal(meaning)
            self._give_up(key, RowError(meaning.message))

    async def _take(self, lines: str) -> dict[bytes, Meaning]:
        """Take the lines of an output or error file, 256 at a time. -> what each means"""
        # not splitlines(): it breaks at characters that may stand inside a line
        read = [json.loads(text) for text in lines.split("\n") if text.strip()]
        found: dict[bytes, Meaning] = {}
        for start in range(0, len(read), 256):
            some = {bytes.fromhex(line["custom_id"]): line for line in read[start : start + 256]}
            known = await self.find(list(some))  # a killed run had come so far
            for key, completion in known.items():
                self._answer(key, completion)
            left = {key: line for key, line in some.items() if key not in known}
            found |= dict.fromkeys(known, Meaning("answer"))
            meant = await asyncio.gather(*(self._take_line(k, line) for k, line in left.items()))
            found |= dict(zip(left, meant, strict=True))
            for held in self._held.values():
                held -= some.keys()
        return found

    def _answer(self, key: bytes, completion: Completion) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None and not asked.done.done():
            asked.done.set_result(completion)

    async def _take_line(self, key: bytes, line: dict) -> Meaning:
        response, asked = line.get("response") or {}, self._asked.get(key)
        if response.get("status_code") is None:  # batch_expired, batch_cancelled
            meaning = Meaning("retry", message=(line.get("error") or {}).get("message", "not run"))
        else:
            content = json.dumps(response.get("body")).encode()
            reply = HTTPReply(response["status_code"], {}, content)
            meaning = self.endpoint.meaning(reply, asked.body if asked else {})
        if meaning.kind == "answer":
            attempts = max(1, asked.attempts) if asked else 1
            self._answer(key, await self.keep(key, meaning.replies[0], attempts))
        elif meaning.kind in ("retry", "limit"):
            self._again(key, meaning.message)
        elif meaning.kind == "row error":
            self._give_up(key, RowError(meaning.message))
        return meaning

    def _again(self, key: bytes, why: str) -> None:
        asked = self._asked.get(key)
        if asked is None:
            return
        if asked.attempts >= self.cfg.max_attempts:
            self._give_up(key, RowError(f"{why}, {asked.attempts} attempts"))
        else:
            self._queue(key)

    def _give_up(self, key: bytes, error: Exception) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None and not asked.done.done():
            asked.done.set_exception(error)
