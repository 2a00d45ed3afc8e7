"""OpenAI's chat and text completions: check and limit requests, write answers and errors.

asked = parse_request(b'{"model": "rules", "messages": [{"role": "user", "content": "Hi"}]}')
complete(asked)  ->  (b'{"id": "chatcmpl-...", "object": "chat.completion", ...}', 16)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from facttune_ray.quickstart import continuing, rules
from facttune_ray.quickstart.options import AnnotatorOptions
from facttune_ray.text.tokens import estimated_tokens

Answer = Callable[[list[dict[str, str]], int], str]
LOGPROBS = "message.output_text.logprobs"  # their name in `include` of the Responses API


@dataclass(frozen=True)
class Request:
    """A request that passed its checks."""

    model: str
    messages: list[dict[str, str]]  # of a chat
    n: int
    max_tokens: int | None
    prompt_tokens: int
    sha256: str  # of the body as canonical JSON
    logprobs: bool = False
    prompt: str | None = None  # of a text completion, which has no messages
    temperature: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    background: bool = False
    store: bool = True  # of a response: it can be fetched later

    @property
    def task(self) -> str:
        """The name under which the request is counted."""
        if self.prompt is not None:
            return "completions"
        return rules.task_of(self.messages) or "chat"


class RequestError(Exception):
    """An error in OpenAI's form, by default of a wrong request."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
    ) -> None:
        self.message, self.param, self.code, self.status = message, param, code, status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self, headers: dict[str, str] | None = None) -> web.Response:
        return web.json_response(self.body, status=self.status, headers=headers)


def server_error(message: str = "The server had an error.") -> RequestError:
    return RequestError(message, status=500, kind="server_error")


def key_reused() -> RequestError:
    message = "This Idempotency-Key was used for another request."
    return RequestError(message, code="idempotency_key_reused")


def parse_request(raw: bytes, what: str = "messages") -> Request:
    """The request in a body. `what`: "messages" for a chat, "prompt" for a text completion, "input"
    for a response. RequestError for a wrong body."""
    return check_request(parse_object(raw), what)


def parse_object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        raise RequestError("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise RequestError("The body of your request must be a JSON object.")
    return body


def check_request(body: dict[str, Any], what: str = "messages") -> Request:
    """`parse_request` for a parsed body."""
    for field, kind in (("model", str), (what, str if what == "prompt" else list)):
        if field not in body:
            message = f"Missing required parameter: '{field}'."
            raise RequestError(message, field, "missing_required_parameter")
        if not isinstance(body[field], kind) or not body[field]:
            raise RequestError(f"Invalid value for '{field}'.", field, "invalid_value")
    if body.get("stream"):
        message = "Streaming is not supported: send stream=false."
        raise RequestError(message, "stream", "unsupported_value")
    prompt = body["prompt"] if what == "prompt" else None
    messages = [_message(what, i, m) for i, m in enumerate(body[what])] if prompt is None else []
    n = 1 if body.get("n") is None else body["n"]
    capped = ("max_output_tokens",) if what == "input" else ("max_completion_tokens", "max_tokens")
    limit = next((body[name] for name in capped if body.get(name)), None)
    for field, number, most in (("n", n, 128), (capped[-1], limit, 10**9)):
        if number is not None and (type(number) is not int or not 1 <= number <= most):
            raise RequestError(
                f"'{field}' must be an integer from 1 to {most}.", field, "invalid_value"
            )
    temperature = 1.0 if body.get("temperature") is None else body["temperature"]
    if type(temperature) not in (int, float) or not 0 <= temperature <= 2:
        message = "'temperature' must be a number from 0 to 2."
        raise RequestError(message, "temperature", "invalid_value")
    seed = 0 if body.get("seed") is None else body["seed"]
    if type(seed) is not int:
        raise RequestError("'seed' must be an integer.", "seed", "invalid_value")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) for s in stop):
        raise RequestError("'stop' must be up to 4 strings.", "stop", "invalid_value")
    canonical = json.dumps(body, sort_keys=True).encode()
    return Request(
        model=body["model"],
        messages=messages,
        n=n,
        max_tokens=limit,
        prompt_tokens=sum(count_tokens(m["content"]) for m in messages)
        + count_tokens(prompt or ""),
        sha256=hashlib.sha256(canonical).hexdigest(),
        logprobs=bool(body.get("logprobs")) or LOGPROBS in (body.get("include") or ()),
        prompt=prompt,
        temperature=temperature,
        seed=seed,
        stop=tuple(stop),
        background=bool(body.get("background")),
        store=body.get("store") is not False,
    )


def _message(what: str, index: int, message: Any) -> dict[str, str]:
    """{"role", "content"}; content in parts is joined."""
    where = f"{what}[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"'{where}' must be an object with a role.", where, "invalid_type")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    if not isinstance(content, str):
        raise RequestError(f"'{where}.content' must be text.", f"{where}.content", "invalid_type")
    return {"role": message["role"], "content": content}


def count_tokens(text: str) -> int:
    """An estimate of the tokenizer's count: 4 tokens for 3 words."""
    return math.ceil(estimated_tokens(text))


def complete(asked: Request, answer: Answer = rules.answer) -> tuple[bytes, int]:
    """(response body, completion tokens). Bodies of equal requests differ only in `created`."""
    choices: list[dict[str, Any]] = []
    tokens, chat = 0, asked.prompt is None
    for i in range(asked.n):
        text, finish = _cut(_text(asked, i, answer), asked)
        tokens += count_tokens(text)
        choice: dict[str, Any] = {"index": i, "finish_reason": finish, "logprobs": None}
        if chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            choice["logprobs"] = _logprobs(text) if asked.logprobs else None
        else:
            choice["text"] = text
        choices.append(choice)
    response = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{asked.sha256[:24]}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": asked.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": asked.prompt_tokens + tokens,
        },
    }
    return json.dumps(response).encode(), tokens


def _text(asked: Request, index: int, answer: Answer) -> str:
    """The text of one choice before it is cut."""
    draw = continuing.Draw(asked.seed, index, asked.temperature)
    if asked.prompt is not None:
        return continuing.text(asked.prompt, draw)
    text = answer(asked.messages, index)
    if text == rules.CHAT_REPLY:
        return continuing.reply(asked.messages[-1]["content"], draw) or text
    return text


def _cut(text: str, asked: Request) -> tuple[str, str]:
    """(text up to the first stop or the token limit, finish reason)"""
    ends = [text.index(stop) for stop in asked.stop if stop and stop in text]
    text = text[: min(ends, default=len(text))]
    if asked.max_tokens is None or count_tokens(text) <= asked.max_tokens:
        return text, "stop"
    words = re.match(rf"(?:\s*\S+){{0,{asked.max_tokens * 3 // 4}}}", text)
    return words.group() if words else "", "length"


def _logprobs(text: str) -> dict[str, Any]:
    """Log-probabilities of the first word alone: every answer of the rules has probability 0.9."""
    first = text.split()[0] if text.split() else ""
    other = {"True": "False", "False": "True", "Yes": "No", "No": "Yes"}.get(first)
    top = [{"token": first, "logprob": math.log(0.9), "bytes": None}]
    if other:
        top.append({"token": other, "logprob": math.log(0.1), "bytes": None})
    return {"content": [top[0] | {"top_logprobs": top}], "refusal": None}


class Bucket:
    """Token bucket of `burst_s` seconds of `per_minute` units. It starts full, and its level may go
    below zero.
    """

    def __init__(self, per_minute: int, burst_s: float) -> None:
        self.per_minute, self.burst_s = per_minute, burst_s
        self.level, self.filled = self.size, time.monotonic()

    @property
    def size(self) -> float:
        return self.per_minute * self.burst_s / 60

    def wait_s(self, units: float) -> float:
        """Seconds until the bucket has `units`; 0 if it has them."""
        self._refill(time.monotonic())
        # the bucket never has more than its size
        return max(0.0, (min(units, self.size) - self.level) * 60 / self.per_minute)

    def take(self, units: float) -> None:
        self.level -= units

    def halve(self, at: float) -> None:
        self._refill(at)  # up to `at` by the old rate
        self.per_minute = max(1, self.per_minute // 2)
        self.level = min(self.level, self.size)

    def _refill(self, now: float) -> None:
        refill = (now - self.filled) * self.per_minute / 60
        self.level, self.filled = min(self.size, self.level + refill), now

    def headers(self, kind: str) -> dict[str, str]:
        missing_s = max(0.0, self.size - self.level) * 60 / self.per_minute
        return {
            f"x-ratelimit-limit-{kind}": str(self.per_minute),
            f"x-ratelimit-remaining-{kind}": str(max(0, int(self.level))),
            f"x-ratelimit-reset-{kind}": f"{math.ceil(missing_s * 1000)}ms",
        }


class Limits:
    """Admits requests by their number and tokens, and counts the traffic of each second."""

    def __init__(self, options: AnnotatorOptions) -> None:
        self.options = options
        self.requests = Bucket(options.requests_per_minute, options.burst_s)
        self.tokens = Bucket(options.tokens_per_minute, options.burst_s)
        self.first: float | None = None  # time of the first request
        self.halved = False
        self.refused = 0  # requests during a burst of refusals
        self.seconds: dict[int, Counter[str]] = {}

    def admit(self, prompt_tokens: int) -> float:
        """0 if the request is admitted and taken from the buckets, else the seconds to wait."""
        if self.first is None:
            self.first = time.monotonic()
        self.update()
        wait_s = self._refusing_s()
        if wait_s > 0:
            self.refused += 1
        else:
            wait_s = max(self.requests.wait_s(1), self.tokens.wait_s(prompt_tokens))
        if wait_s > 0:
            self._second()["rejected"] += 1
            return wait_s
        self._second()["accepted"] += 1
        self.requests.take(1)
        self.take_tokens(prompt_tokens)
        return 0.0

    def take_tokens(self, units: int) -> None:
        self.tokens.take(units)
        self._second()["tokens"] += units

    def update(self) -> None:
        """Halve both limits once their time has come."""
        after_s = self.options.halve_after_s
        if self.halved or not after_s or self.first is None or self._elapsed_s() < after_s:
            return
        self.halved = True
        for bucket in (self.requests, self.tokens):
            bucket.halve(max(bucket.filled, self.first + after_s))

    def headers(self) -> dict[str, str]:
        if not self.options.headers:
            return {}
        return self.requests.headers("requests") | self.tokens.headers("tokens")

    def traffic(self) -> list[dict[str, int]]:
        kinds = ("accepted", "rejected", "tokens")
        return [{"t": t, **{k: n[k] for k in kinds}} for t, n in self.seconds.items()]

    def _refusing_s(self) -> float:
        """Seconds left of a burst of refusals; 0 outside of a burst."""
        every_s, for_s = self.options.refuse_every_s, self.options.refuse_for_s
        if not for_s:
            return 0.0
        left_s = every_s - self._elapsed_s() % every_s
        return left_s if left_s <= for_s else 0.0

    def _elapsed_s(self) -> float:
        return 0.0 if self.first is None else time.monotonic() - self.first

    def _second(self) -> Counter[str]:
        return self.seconds.setdefault(int(self._elapsed_s()), Counter())
