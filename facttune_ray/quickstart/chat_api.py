"""OpenAI's chat-completions API as data: requests checked, responses and errors written.

asked = parse_request(b'{"model": "rules", "messages": [{"role": "user", "content": "Hi"}]}')
complete(asked)  ->  (b'{"id": "chatcmpl-...", "object": "chat.completion", ...}', 16)
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from facttune_ray.quickstart import rules


@dataclass(frozen=True)
class Request:
    """A chat request that passed its checks."""

    model: str
    messages: list[dict[str, str]]
    n: int
    max_tokens: int | None
    prompt_tokens: int
    sha256: str  # of the body as canonical JSON


class RequestError(Exception):
    """A request that the API's schema refuses."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        self.message, self.param, self.code = message, param, code


def parse_request(raw: bytes) -> Request:
    """The request in a body; RequestError says what is wrong with it."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise RequestError("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise RequestError("The body of your request must be a JSON object.")
    for field, kind in (("model", str), ("messages", list)):
        if field not in body:
            message = f"Missing required parameter: '{field}'."
            raise RequestError(message, field, "missing_required_parameter")
        if not isinstance(body[field], kind) or not body[field]:
            raise RequestError(f"Invalid value for '{field}'.", field, "invalid_value")
    if body.get("stream"):
        message = "Streaming is not supported: send stream=false."
        raise RequestError(message, "stream", "unsupported_value")
    messages = [_message(i, m) for i, m in enumerate(body["messages"])]
    n = 1 if body.get("n") is None else body["n"]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    for field, number, most in (("n", n, 128), ("max_tokens", limit, 10**9)):
        if number is not None and (type(number) is not int or not 1 <= number <= most):
            raise RequestError(
                f"'{field}' must be an integer from 1 to {most}.", field, "invalid_value"
            )
    canonical = json.dumps(body, sort_keys=True).encode()
    return Request(
        model=body["model"],
        messages=messages,
        n=n,
        max_tokens=limit,
        prompt_tokens=sum(count_tokens(m["content"]) for m in messages),
        sha256=hashlib.sha256(canonical).hexdigest(),
    )


def _message(index: int, message: Any) -> dict[str, str]:
    """{"role", "content"}; content in parts is joined."""
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"'{where}' must be an object with a role.", where, "invalid_type")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    if not isinstance(content, str):
        raise RequestError(f"'{where}.content' must be text.", f"{where}.content", "invalid_type")
    return {"role": message["role"], "content": content}


def count_tokens(text: str) -> int:
    """About what a tokenizer gives: 4 tokens for 3 words."""
    return math.ceil(len(text.split()) * 4 / 3)


def complete(asked: Request) -> tuple[bytes, int]:
    """(response body, completion tokens). Equal requests get equal bodies but for `created`."""
    choices, spent = [], 0
    for i in range(asked.n):
        text, finish = rules.answer(asked.messages, i), "stop"
        if asked.max_tokens is not None and count_tokens(text) > asked.max_tokens:
            text, finish = " ".join(text.split()[: asked.max_tokens * 3 // 4]), "length"
        spent += count_tokens(text)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": i, "message": message, "logprobs": None, "finish_reason": finish}
        choices.append(choice)
    response = {
        "id": f"chatcmpl-{asked.sha256[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": asked.prompt_tokens,
            "completion_tokens": spent,
            "total_tokens": asked.prompt_tokens + spent,
        },
    }
    return json.dumps(response).encode(), spent


def problem(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    add: dict[str, str] | None = None,
) -> web.Response:
    """An error in OpenAI's form."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return web.json_response({"error": error}, status=status, headers=add)
