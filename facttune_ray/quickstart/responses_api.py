"""OpenAI's Responses API over the annotator: stored, and answered in the background if asked so.

    POST /v1/responses   GET /v1/responses/{id}

A background response gets its id at once and is made, counted and paid for whether or not somebody
waits for it. The journal keeps it under its id, so that it is found after its client was killed,
and by a new server with the same journal; one that was not made yet is lost with its server.
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

from facttune_ray.quickstart.answering import Answering
from facttune_ray.quickstart.chat_api import Request, RequestError, check_request, parse_object

# what chat completions call it -> its name here; None: a response has no such thing
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
    """The request in a body; RequestError says what is wrong with it."""
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
    """Responses by id. Those that are not in the journal, unfinished or failed, are in memory."""

    def __init__(self, annotator: Answering) -> None:
        self.annotator = annotator
        self.unmade: dict[str, tuple[str, dict[str, Any]]] = {}  # id -> request, response
        self.tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly

    async def stored(self, request: web.Request) -> web.StreamResponse:
        """GET: does not count for the limits, but meets the same faults."""
        self.annotator.authorize(request)

        async def found(_: object) -> bytes:
            id = request.match_info["id"]
            known = self._find(id)
            if known is None or not json.loads(known[1])["store"]:
                raise RequestError(f"Response with id '{id}' not found.", status=404)
            return known[1]

        async def never(*_: object) -> bytes:
            raise AssertionError("found or refused")

        return await self.annotator.reply(request, found, never)

    def _find(self, id: str) -> tuple[str, bytes] | None:
        """(request, response as it is now)"""
        if (unmade := self.unmade.get(id)) is not None:
            return unmade[0], json.dumps(unmade[1]).encode()
        return self.annotator.journal.find(id)

    async def known(self, asked: Request, key: str | None) -> bytes | None:
        """The response of this key as it is now; RequestError: the key is of another request."""
        if key is None:
            return None
        id = _id_of(key)
        if not asked.background or id not in self.unmade:
            return await self.annotator.known(asked, id)
        request, response = self.unmade[id]
        if response["status"] == "failed":  # it was not paid for: it is made again
            return None
        if request != asked.sha256:
            message = "This Idempotency-Key was used for another request."
            raise RequestError(message, code="idempotency_key_reused")
        self.annotator.counts["replayed"] += 1
        return json.dumps(response).encode()

    async def answer(self, asked: Request, key: str | None, latency_s: float) -> bytes:
        """A finished response; a queued one, which is made from now on, if asked so."""
        id = _id_of(key) if key else f"resp_{uuid.uuid4().hex}"
        if not asked.background:
            return await self.annotator.answer(asked, id, latency_s, self._written(asked, id))
        response = _response(asked, id, "queued")
        self.unmade[id] = (asked.sha256, response)
        task = asyncio.create_task(self._make(asked, id, latency_s))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return json.dumps(response).encode()

    async def _make(self, asked: Request, id: str, latency_s: float) -> None:
        options, response = self.annotator.options, self.unmade[id][1]
        try:
            async with self.annotator.slots:
                response["status"] = "in_progress"
                if self.annotator.random.random() < options.failed_share:
                    raise OSError("The server had an error.")
                await self.annotator.answer(asked, id, latency_s, self._written(asked, id))
            del self.unmade[id]
        except OSError as e:  # the journal's, too: its disk is full
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
    """The finished response that says what this chat completion says."""
    chat = json.loads(body)
    (choice,), used = chat["choices"], chat["usage"]
    whole = choice["finish_reason"] != "length"
    response = _response(asked, id, "completed" if whole else "incomplete")
    if not whole:
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    said = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    if choice["logprobs"]:
        said["logprobs"] = choice["logprobs"]["content"]
    message = {
        "id": id.replace("resp_", "msg_"),
        "type": "message",
        "role": "assistant",
        "status": response["status"],
        "content": [said],
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
