"""Batch mode: the Files and Batches API, at half the price, with answers within 24 hours.

    ledger/batches/6f1c....json   one record per batch: its id and the keys of its requests

Requests that come together are sent as one JSONL file. The record is written before the file is
sent, and the metadata of the batch hold the record's name. So the next run finds the batches of a
killed run and does not send them twice. Every answer of a batch goes to the ledger, also when no
request waits for it any more; then the record is removed. Failed lines are sent again.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import openai

from facttune_ray.config import LLMConfig
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.replies import Completion, HTTPReply, Meaning
from facttune_ray.llm.sending import Request, Sender, backoff_s

SETTLED_S = 0.5  # a file is closed when no request has come for this long
SENDING_S = 3600.0  # a younger record without a batch may belong to a worker that sends its file
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
LINES = 256  # lines of a result file that are read at a time
_URL = "/v1/chat/completions"


class Transient(Exception):
    """The same call may succeed later."""


class NotFound(EndpointError):
    """The endpoint has no such batch, file or path."""


class Batches:
    """The batches of one worker. `sender` counts their answers."""

    def __init__(self, cfg: LLMConfig, ledger: Ledger, endpoint: Endpoint, sender: Sender) -> None:
        self.cfg, self.ledger, self.endpoint, self.sender = cfg, ledger, endpoint, sender
        self.folder = ledger.folder / "batches"
        self._waiting: dict[bytes, Request] = {}  # requests without an answer
        self._answers: dict[bytes, asyncio.Future[Completion]] = {}  # theirs, to come
        self._unsent: dict[bytes, None] = {}  # keys of `_waiting` that are in no batch, in order
        self._arrived_s = 0.0  # when the last of them came
        self._submitting: asyncio.Task[None] | None = None
        self._polls: dict[str, asyncio.Task[None]] = {}  # record -> task that awaits its batch
        self._held: dict[str, set[bytes]] = {}  # record -> keys whose lines are still to come
        self._stopped: Exception | None = None

    async def send(self, request: Request) -> Completion:
        """Return the answer when its batch is done; the answer is in the ledger then."""
        if self._stopped is not None:
            raise self._stopped
        (key,) = request.keys
        self._waiting[key] = request
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        self._queue(key)
        return await answer

    def _queue(self, key: bytes) -> None:
        self._unsent[key] = None
        self._arrived_s = time.monotonic()
        if self._submitting is None or self._submitting.done():
            self._submitting = asyncio.create_task(self._or_stop(self._submit))

    async def _or_stop(self, work: Callable[..., Awaitable[None]], *args: str) -> None:
        """Do this work; stop when it fails."""
        try:
            await work(*args)
        except Transient as e:
            self.stop(self._stop_line(str(e)))
        except NotFound as e:
            self.stop(
                EndpointError(
                    f"LLM endpoint {self.endpoint.shown}, batch: {e}: if it has no Files and "
                    f"Batches API, set llm.mode=online"
                )
            )
        except Exception as e:
            self.stop(e)

    def stop(self, error: Exception) -> None:
        """End every request with this error. The records of sent batches stay for the next run."""
        self._stopped = self._stopped or error
        for task in (*self._polls.values(), self._submitting):
            if task is not None and not task.done():
                task.cancel()
        for key in list(self._waiting):
            self._settle(key, error)
        self._unsent.clear()

    def _settle(self, key: bytes, outcome: Completion | Exception) -> None:
        """End a request, if it waits."""
        self._waiting.pop(key, None)
        answer = self._answers.pop(key, None)
        if answer is None or answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    # -- sending ---------------------------------------------------------------------------

    async def _submit(self) -> None:
        while self._unsent:
            while time.monotonic() - self._arrived_s < SETTLED_S:
                if len(self._unsent) >= self.cfg.batch_requests:
                    break
                await asyncio.sleep(SETTLED_S / 5)
            await self._adopt()
            # another worker, or a batch that ended meanwhile, may have brought some of them
            for key, completion in (await self._find_in_ledger(list(self._unsent))).items():
                self._unsent.pop(key, None)
                self._settle(key, completion)
            lines: dict[bytes, bytes] = {}
            size = 0
            for key in list(self._unsent)[: self.cfg.batch_requests]:
                line = self._line(key)
                size += len(line)
                if lines and size > self.cfg.batch_mb * 2**20:
                    break
                lines[key] = line
                del self._unsent[key]
            if lines:
                await self._create(lines)

    async def _find_in_ledger(self, keys: list[bytes]) -> dict[bytes, Completion]:
        """The completions that any writer has brought to the ledger by now."""
        await asyncio.to_thread(self.ledger.refresh)
        return await asyncio.to_thread(self.ledger.find, keys)

    def _line(self, key: bytes) -> bytes:
        body = self._waiting[key].body
        line = {"custom_id": key.hex(), "method": "POST", "url": _URL, "body": body}
        return json.dumps(line).encode() + b"\n"

    async def _adopt(self) -> None:
        """Leave requests to the batches on record that hold them, those of a killed run or of a
        lost worker too: such a batch is followed from now on."""
        for keys in self._held.values():
            for key in keys & self._unsent.keys():
                del self._unsent[key]
        for name in self.folder.names():
            if not name.endswith(".json") or name in self._polls:
                continue
            record = (self.folder / name).read_json()
            if record is None or record["model"] != self.cfg.model:
                continue
            held = [k for k in map(bytes.fromhex, record["keys"]) if k in self._unsent]
            if not held:
                continue
            if record["batch_id"] is None:  # killed while it was sent: it may have arrived
                record["batch_id"] = await self._find_batch(name)
            if record["batch_id"] is None:
                if time.time() - record.get("created_s", 0.0) > SENDING_S:
                    (self.folder / name).delete_file()
                continue
            for key in held:
                del self._unsent[key]
            self._follow(name, record)

    async def _create(self, lines: dict[bytes, bytes]) -> None:
        """Upload one file, create its batch, and follow the batch."""
        name = f"{uuid.uuid4().hex}.json"
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
        for waiting in (self._waiting[key] for key in lines if key in self._waiting):
            waiting.attempts += 1
        attempts = 0
        while record["batch_id"] is None:
            try:
                # a failed attempt may have arrived: look for its batch before another attempt
                if attempts:
                    record["batch_id"] = await self._find_batch(name)
                if record["batch_id"] is None:
                    created = self.endpoint.openai.batches.create(
                        input_file_id=file.id,
                        endpoint=_URL,  # type: ignore[arg-type]
                        completion_window="24h",
                        metadata={"facttune": name},
                    )
                    record["batch_id"] = (await self._call(created)).id
            except Transient:
                attempts += 1
                if attempts >= self.cfg.max_attempts:
                    raise
                await asyncio.sleep(backoff_s(attempts, self.cfg.max_wait_s))
        (self.folder / name).write_json(record)
        self._follow(name, record)

    async def _find_batch(self, record: str) -> str | None:
        """The id of the batch whose metadata name this record."""
        client = self.endpoint.openai.with_options(max_retries=4)

        async def found() -> str | None:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get("facttune") == record:
                    return batch.id
            return None

        return await self._call(found())

    async def _call(self, call: Awaitable[Any]) -> Any:
        """Await a call of the SDK. Raise NotFound, Transient, or the EndpointError of a refusal."""
        try:
            return await call
        except openai.NotFoundError as e:
            raise NotFound(self.endpoint.redact(str(e))[:200]) from None
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
        if name not in self._polls:
            self._held[name] = set(map(bytes.fromhex, record["keys"]))
            work = self._or_stop(self._poll, name, record["batch_id"])
            self._polls[name] = asyncio.create_task(work)

    def _forget(self, name: str) -> set[bytes]:
        """Remove the record of a batch that is over. Return the keys that it did not answer."""
        (self.folder / name).delete_file()
        self._polls.pop(name, None)
        return self._held.pop(name, set())

    async def _poll(self, name: str, batch_id: str) -> None:
        """Wait for a batch, take its results, and send again what it did not answer."""
        client = self.endpoint.openai.with_options(max_retries=8)
        try:
            while True:
                batch = await self._call(client.batches.retrieve(batch_id))
                if batch.status not in RUNNING:
                    break
                await asyncio.sleep(self.cfg.batch_poll_s)
        except NotFound:
            batch = None  # too old, or of another account
        if batch is not None and batch.status == "failed":
            problem = (batch.errors.data or [None])[0] if batch.errors else None
            if problem is None or problem.code != "token_limit_exceeded":
                self._forget(name)
                said = problem.message if problem else "no reason given"
                raise self._stop_line(f"was rejected: {self.endpoint.redact(str(said))}")
            for key in self._held[name] & self._waiting.keys():
                self._waiting[key].attempts -= 1  # the account's queue was full: it was not tried
            await asyncio.sleep(self.cfg.batch_poll_s)
        answered = False
        refused: dict[bytes, Meaning] = {}
        for file in (batch.output_file_id, batch.error_file_id) if batch is not None else ():
            if file:
                content = await self._call(client.files.content(file))
                meanings = await self._take(content.text)
                answered |= any(m.kind == "answer" for m in meanings.values())
                refused |= {k: m for k, m in meanings.items() if m.kind in ("refused", "stop")}
        for key in self._forget(name) & self._waiting.keys():  # in neither file: it was not run
            self._again(key, f"batch {batch.status if batch is not None else 'unknown'}")
        for key, meaning in refused.items():
            if meaning.kind == "stop" or not answered:  # every request would get the same reply
                raise self.endpoint.refusal(meaning)
            self._settle(key, RowError(meaning.message))

    async def _take(self, text: str) -> dict[bytes, Meaning]:
        """Take the lines of an output file or error file. Return the meaning of each line."""
        # not splitlines(): it breaks at characters that may stand inside a line
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        meanings: dict[bytes, Meaning] = {}
        for start in range(0, len(lines), LINES):
            group = {bytes.fromhex(x["custom_id"]): x for x in lines[start : start + LINES]}
            known = await self._find_in_ledger(list(group))  # kept before the run was killed
            for key, completion in known.items():
                self._settle(key, completion)
            new = {key: line for key, line in group.items() if key not in known}
            meanings |= dict.fromkeys(known, Meaning("answer"))
            taken = await asyncio.gather(*(self._take_line(k, line) for k, line in new.items()))
            meanings |= dict(zip(new, taken, strict=True))
            for held in self._held.values():
                held -= group.keys()
        return meanings

    async def _take_line(self, key: bytes, line: dict) -> Meaning:
        response, waiting = line.get("response") or {}, self._waiting.get(key)
        if response.get("status_code") is None:  # batch_expired, batch_cancelled
            meaning = Meaning("retry", message=(line.get("error") or {}).get("message", "not run"))
        else:
            content = json.dumps(response.get("body")).encode()
            reply = HTTPReply(response["status_code"], {}, content)
            meaning = self.endpoint.meaning(reply, waiting.body if waiting else {})
        if meaning.kind == "answer":
            attempts = max(1, waiting.attempts) if waiting else 1
            (completion,) = self.sender.count(meaning.replies[:1], attempts)
            await self.ledger.put(key, completion)
            self._settle(key, completion)
        elif meaning.kind in ("retry", "limit"):
            self._again(key, meaning.message)
        elif meaning.kind == "row error":
            self._settle(key, RowError(meaning.message))
        return meaning

    def _again(self, key: bytes, why: str) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            return
        if waiting.attempts >= self.cfg.max_attempts:
            self._settle(key, RowError(f"{why}, {waiting.attempts} attempts"))
        else:
            self._queue(key)
