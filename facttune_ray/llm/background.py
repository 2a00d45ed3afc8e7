"""Background mode: the server generates and keeps answers, which are fetched by id.

    background = Background(ledger_folder, journal, max_s=900)
    meaning = await background.send(endpoint, attempt, key, as_response(body), headers)

`POST /responses` returns an id before the answer is generated. The id goes to the journal before
the answer is awaited, so the next run fetches the answer of a killed run and does not pay again. A
kill before the id came leaves the request as unknown in the journal. A response is translated into
a chat completion and read as such.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from facttune_ray.errors import UserError
from facttune_ray.llm import journal
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.journal import Journal
from facttune_ray.llm.replies import HTTPReply, Meaning
from facttune_ray.storage.folders import Folder

POLL_S, MOST_POLL_S = 0.5, 10.0  # first and longest pause between two polls of a response
JOURNALS_S = 10.0  # between two reads of all journals: another worker may have been killed
# parameters of chat completions that the Responses API lacks
ABSENT = (
    "n stop seed logit_bias presence_penalty frequency_penalty modalities audio prediction "
    "functions function_call stream stream_options"
).split()
_UNFINISHED = ("queued", "in_progress")
# why a response is incomplete -> the finish reason of a chat completion
_FINISHED = {"max_output_tokens": "length", "content_filter": "content_filter"}


class Background:
    """The responses of one worker. A response that takes longer than `max_s` seconds fails its
    row, and the next run fetches it."""

    def __init__(self, folder: Folder, journal: Journal, max_s: float) -> None:
        self._folder, self._journal, self._max_s = folder, journal, max_s
        self._stored: dict[bytes, str] = {}  # key -> id of a response in any journal
        self._used: set[str] = set()  # ids that this worker has taken over
        self._read_s, self._reading = -JOURNALS_S, asyncio.Lock()

    async def send(
        self, endpoint: Endpoint, attempt: int, key: bytes, asked: dict, headers: dict[str, str]
    ) -> Meaning:
        """One attempt at a completion. If a killed writer has sent the request, fetch that
        response."""
        if (id := await self._stored_elsewhere(key)) is not None:
            await self._journal.store(attempt, id)
            return await self._follow(endpoint, attempt, id, asked)
        reply = await endpoint.exchange("POST", "/responses", asked, headers)
        if isinstance(reply, Meaning):
            return reply
        response = _response_in(reply)
        if response is None:
            return endpoint.meaning(reply, asked)
        if response.get("status") not in _UNFINISHED:
            return endpoint.meaning(as_chat(reply, response), asked)
        await self._journal.store(attempt, response["id"])
        return await self._follow(endpoint, attempt, response["id"], asked)

    async def _stored_elsewhere(self, key: bytes) -> str | None:
        """The id of this request's response, when another writer has sent the request."""
        clock = asyncio.get_running_loop().time
        async with self._reading:
            if clock() - self._read_s >= JOURNALS_S:
                open_attempts = await asyncio.to_thread(journal.attempts, self._folder)
                self._stored = {
                    a.key: a.id for a in open_attempts if a.id and a.id not in self._used
                }
                self._read_s = clock()
        id = self._stored.pop(key, None)
        if id is not None:
            self._used.add(id)
        return id

    async def _follow(
        self, endpoint: Endpoint, attempt: int, id: str, asked: dict[str, Any]
    ) -> Meaning:
        """Poll the response until it has ended, and return what it means. A response that does not
        end in time stays in the journal."""
        clock, pause_s = asyncio.get_running_loop().time, POLL_S
        give_up_s = clock() + self._max_s
        problem = "it is not finished"
        while clock() < give_up_s:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(MOST_POLL_S, 1.5 * pause_s)
            reply = await endpoint.exchange("GET", f"/responses/{quote(id, safe='')}", None, {})
            if isinstance(reply, Meaning):
                problem = reply.message
                continue
            response = _response_in(reply)
            if response is not None and response.get("status") in _UNFINISHED:
                continue
            if reply.status == 404:
                await self._journal.store(attempt, "")  # the answer may have been billed
                message = f"the server no longer has response {id}"
                return Meaning("retry", message=message, unknown=True)
            if response is not None:
                return endpoint.meaning(as_chat(reply, response), asked)
            meaning = endpoint.meaning(reply, asked)
            if meaning.kind not in ("retry", "limit"):
                return replace(meaning, unknown=True)
            problem, pause_s = meaning.message, max(pause_s, meaning.retry_after_s or 0.0)
        message = f"response {id} after {self._max_s:g} s: {problem}: the next run fetches it"
        return Meaning("retry", message=message, unknown=True)


def _response_in(reply: HTTPReply) -> dict[str, Any] | None:
    """The response object in an HTTP reply, or None."""
    try:
        body = json.loads(reply.content) if reply.status < 300 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("object") != "response":
        return None
    return body if isinstance(body.get("id"), str) and body["id"] else None


def as_chat(reply: HTTPReply, response: Mapping[str, Any]) -> HTTPReply:
    """The reply of an ended response, as a chat completion or an error."""
    if response.get("status") in ("failed", "cancelled"):
        error = response.get("error") or {"message": f"the response is {response['status']}"}
        return replace(reply, content=json.dumps({"error": error}).encode())
    try:
        return replace(reply, content=json.dumps(_chat(response)).encode())
    except (AttributeError, KeyError, TypeError):  # no response, although `object` says so
        return reply


def _chat(response: Mapping[str, Any]) -> dict[str, Any]:
    parts, refusals, thoughts, logprobs = [], [], [], []
    for item in response.get("output") or ():
        content = item.get("content") or []
        if item.get("type") == "reasoning":
            thoughts += [p.get("text") or "" for p in [*(item.get("summary") or ()), *content]]
        elif item.get("type") == "message" and item.get("phase") != "commentary":
            parts += [p for p in content if p.get("type") == "output_text"]
            refusals += [p["refusal"] for p in content if p.get("refusal")]
            logprobs += [token for p in content for token in p.get("logprobs") or ()]
    finish = "stop"
    if response.get("status") == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason")
        finish = _FINISHED.get(str(reason), str(reason))
    message = {"content": parts, "refusal": "\n".join(refusals) or None}
    choice = {
        "message": message | {"reasoning": "\n".join(thoughts)},
        "finish_reason": finish,
        "logprobs": {"content": logprobs},
    }
    return {"model": response.get("model"), "usage": response.get("usage"), "choices": [choice]}


def as_response(body: Mapping[str, Any], section: str = "llm") -> dict[str, Any]:
    """The body for /responses that makes the same request as this body for /chat/completions.
    Raise UserError for a parameter that the Responses API lacks."""
    asked: dict[str, Any] = {"background": True, "store": True, "text": {}, "include": []}
    for name, value in body.items():
        if name in ABSENT:
            raise UserError(
                f"{section}.mode=background: the Responses API has no parameter {name}: set "
                f"{section}.params.{name}=null, or {section}.mode=online"
            )
        if name == "messages":
            asked["input"] = value
        elif name in ("max_tokens", "max_completion_tokens"):
            asked["max_output_tokens"] = value
        elif name == "response_format":
            asked["text"]["format"] = {**value, **value.get("json_schema", {})}
            asked["text"]["format"].pop("json_schema", None)
        elif name == "verbosity":
            asked["text"]["verbosity"] = value
        elif name == "reasoning_effort":
            asked["reasoning"] = {"effort": value}
        elif name == "logprobs":
            asked["include"] += ["message.output_text.logprobs"] if value else []
        else:
            asked[name] = value
    return {name: value for name, value in asked.items() if value not in ({}, [])}
