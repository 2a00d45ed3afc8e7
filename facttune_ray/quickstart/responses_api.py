"""OpenAI's Responses API over the annotator: responses are stored, and may run in the background.

    POST /v1/responses   GET /v1/responses/{id}

A background response gets its id at once. It is made, counted and paid even if no client waits for
it. The journal keeps it under its id, so a restarted client or a new server with the same journal
finds it. A response that was not finished is lost with its server.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import time
import uuid
from typing import Any

from aiohttp import web

from facttune_ray.quickstart.answering import Annotator
from facttune_ray.quickstart.chat_api import (
    Request,
    RequestError,
    check_request,
    key_reused,
    parse_object,
)

# parameter of chat completions -> its name in the Responses API; None: it does not exist there
RENAMED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "n": None,
    "stop": None,
    "seed": None,
    "logprobs": None,
    "logit_bias": None,
    "presence_penalty": None,
    "frequency_penalty": None,
}


def parse_response_request(raw: bytes) -> Request:
    """The request in a body. RequestError for a wrong body."""
    body = parse_object(raw)
    for name in RENAMED.keys() & body.keys():
        message = f"Unknown parameter: '{name}'."
        if RENAMED[name] is not None:
            message = f"Unsupported parameter: '{name}'. It has moved to '{RENAMED[name]}'."
        raise RequestError(message, name, "unsupported_parameter")
    if isinstance(body.get("input"), str) and body["input"]:
        body["input"] = [{"role": "user", "content": body["input"]}]
    asked = check_request(body, "input")
    if asked.background and not asked.store:
        raise RequestError("A background response is stored: send store=true.", "store")
    return asked


class Responses:
    """Responses by id: finished responses in the journal, unfinished and failed ones in memory."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator
        self.unfinished: dict[str, tuple[str, dict[str, Any]]] = {}  # id -> request, response
        self.tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references

    async def stored(self, request: web.Request) -> web.StreamResponse:
        """GET a response. It does not count for the rate limits, but has the same faults."""

        async def stored(_: object) -> bytes:
            id = request.match_info["id"]
            known = self._find(id)
            if known is None or not json.loads(known[1])["store"]:
                raise RequestError(f"Response with id '{id}' not found.", status=404)
            return known[1]

        async def never(*_: object) -> bytes:
            raise AssertionError("a stored response is returned or refused")

        return await self.annotator.reply(request, stored, never)

    def _find(self, id: str) -> tuple[str, bytes] | None:
        """(request, current response)"""
        if (entry := self.unfinished.get(id)) is not None:
            return entry[0], json.dumps(entry[1]).encode()
        return self.annotator.journal.find(id)

    async def known(self, asked: Request, key: str | None) -> bytes | None:
        """The current response of this key; RequestError if another request had the key."""
        if key is None:
            return None
        id = _id_of(key)
        if not asked.background or id not in self.unfinished:
            return await self.annotator.known(asked, id)
        request, response = self.unfinished[id]
        if response["status"] == "failed":  # it was not paid, so it is made again
            return None
        if request != asked.sha256:
            raise key_reused()
        self.annotator.counts["replayed"] += 1
        return json.dumps(response).encode()

    async def answer(self, asked: Request, key: str | None, latency_s: float) -> bytes:
        """A finished response, or for a background request a queued one that is now being made."""
        id = _id_of(key) if key else f"resp_{uuid.uuid4().hex}"
        if not asked.background:
            return await self.annotator.answer(asked, id, latency_s, self._written(asked, id))
        response = _response(asked, id, "queued")
        self.unfinished[id] = (asked.sha256, response)
        task = asyncio.create_task(self._make(asked, id, latency_s))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return json.dumps(response).encode()

    async def _make(self, asked: Request, id: str, latency_s: float) -> None:
        options, response = self.annotator.options, self.unfinished[id][1]
        try:
            async with self.annotator.slots:
                response["status"] = "in_progress"
                if self.annotator.random.random() < options.failed_share:
                    raise OSError("The server had an error.")
                await self.annotator.answer(asked, id, latency_s, self._written(asked, id))
            del self.unfinished[id]
        except OSError as e:  # also when the disk of the journal is full
            response |= {"status": "failed", "error": {"code": "server_error", "message": str(e)}}

    def _written(self, asked: Request, id: str) -> functools.partial[bytes]:
        return functools.partial(_from_chat, asked, id)


def _id_of(key: str) -> str:
    """The id of the response to a request with this Idempotency-Key."""
    return f"resp_{hashlib.sha256(key.encode()).hexdigest()[:48]}"


def _response(asked: Request, id: str, status: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "background": asked.background,
        "store": asked.store,
        "error": None,
        "incomplete_details": None,
        "max_output_tokens": asked.max_tokens,
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": asked.temperature,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }


def _from_chat(asked: Request, id: str, body: bytes) -> bytes:
    """The finished response with the content of a chat completion."""
    chat = json.loads(body)
    (choice,), used = chat["choices"], chat["usage"]
    complete = choice["finish_reason"] != "length"
    response = _response(asked, id, "completed" if complete else "incomplete")
    if not complete:
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    output = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    if choice["logprobs"]:
        output["logprobs"] = choice["logprobs"]["content"]
    message = {
        "id": id.replace("resp_", "msg_"),
        "type": "message",
        "role": "assistant",
        "status": response["status"],
        "content": [output],
    }
    response["output"] = [message]
    response["usage"] = {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }
    return json.dumps(response).encode()
