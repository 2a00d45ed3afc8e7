"""One address and key of an OpenAI-compatible API: a request sent once, its failures named.

    replies = await endpoint.send(body, {"Idempotency-Key": "6f1c..."})    one a choice

A body with `messages` goes to chat/completions, one with `prompt` to completions.

`Transient` failures (408, 409, 429, 5xx, timeouts, broken connections, bodies that are not the
API's JSON) may be tried again; an `EndpointError` stops the run (401, 403, 404, a 400, no quota);
a `RowError` is the row's own fault (too long, content policy). No message shows a key.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import accumulate, pairwise
from typing import Any

import aiohttp
import httpx2
import openai

from facttune_ray import secrets, telemetry
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.permits import Gate

# a 400 that speaks of one request, not of how we ask
_ROWS_FAULT = {
    "context_length_exceeded",
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "string_above_max_length",
}
_TOO_LONG = "maximum context length"  # vLLM, whose code is 400 for every 400

FILTERED = "stopped by the content filter"  # refusal of a choice without a text
END_CHARS = 4  # of an end mark, when tokens are shared out by characters


class Transient(Exception):
    """The same request may succeed later."""

    def __init__(
        self, message: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
        self.headers: Mapping[str, str] = {}
        self.unreachable = False  # nothing listens there


@dataclass(frozen=True)
class Reply:
    """A usable answer: one choice of it, and its share of the tokens."""

    text: str
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    headers: Mapping[str, str]
    top_logprobs: str | None = None  # JSON, when asked for: {token: log-probability} of the first


class Endpoint:
    """One connection pool and the gate that its requests pass."""

    def __init__(self, base_url: str, api_key_env: str, timeout_s: float, gate: Gate) -> None:
        self.gate, self.timeout_s, self.api_key_env = gate, timeout_s, api_key_env
        self._key = secrets.key(api_key_env)
        if re.search(r"[^!-~]", self._key):
            raise EndpointError(
                f"{api_key_env}: the key in this environment variable has a space, a line break or "
                f"a letter outside ASCII, which no request can carry: set it again"
            )
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._key or "none",  # local servers take any, but the SDK insists on one
            max_retries=0,
            timeout=timeout_s,
            http_client=openai.DefaultAioHttpClient(),
        )
        self.shown = re.sub(r"//[^/@]*@", "//", base_url)

    @property
    def openai(self) -> openai.AsyncOpenAI:
        return self._openai

    def redact(self, text: str) -> str:
        """The text without this endpoint's key, on one line."""
        text = " ".join(text.split())
        if len(self._key) >= 4:
            text = text.replace(self._key, "[key]")
        return secrets.redact(text)

    async def send(self, body: dict[str, Any], headers: dict[str, str]) -> list[Reply]:
        """One attempt. -> the choices, at least one; a server may give fewer than were asked."""
        try:
            # as the SDK's own `create` does, without its checks of each field of the body and the
            # reply, which cost more than the request
            response = await self._openai.post(
                "/completions" if "prompt" in body else "/chat/completions",
                cast_to=httpx2.Response,
                body=body,
                options={"headers": headers},
            )
        except openai.APIStatusError as e:
            _count(e.status_code, body)
            raise self.explain(e.status_code, e.response.headers, e.body, str(e)) from None
        except openai.APITimeoutError as e:
            _count("timeout", body)
            raise self._unanswered(e, f"no answer within {self.timeout_s:g} s") from None
        except openai.APIError as e:
            _count("connection", body)
            raise self._unanswered(e, f"connection failed: {e.__cause__ or e}") from None
        except aiohttp.ClientError as e:  # what the SDK's transport lets through
            _count("malformed", body)
            raise Transient(f"an answer that is not HTTP: {type(e).__name__}") from None
        _count(200, body)
        try:
            answer = json.loads(response.content)
        except ValueError:
            raise Transient("HTTP 200 with a body that is not JSON") from None
        return read_replies(answer, response.headers)

    def _unanswered(self, error: Exception, message: str) -> Transient:
        made = Transient(self.redact(message))
        kind = type(error.__cause__).__name__
        made.unreachable = kind in ("ConnectTimeout", "ConnectError")
        return made

    def explain(
        self, status: int, headers: Mapping[str, str], body: object, message: str
    ) -> Exception:
        """What an error status means for the request and the run."""
        said = body if isinstance(body, dict) else {}
        code, kind = said.get("code"), said.get("type")
        too_long = status == 400 and _TOO_LONG in message
        message = self.redact(message)[:200]
        if "insufficient_quota" in (code, kind):
            hint = "the account's quota is used up"
        elif status in (408, 409, 429) or status >= 500:
            made = Transient(message, status, retry_after_s(headers))
            made.headers = headers
            return made
        elif too_long or (status == 400 and code in _ROWS_FAULT):
            return RowError(message)
        else:
            hint = {
                401: f"set {self.api_key_env} (or {self.api_key_env}_FILE)",
                403: f"check the rights of {self.api_key_env}",
                404: "check llm.model and llm.base_url",
            }.get(status, "check llm.model and its parameters")
        return EndpointError(f"LLM endpoint {self.shown} refused: {message}: {hint}")

    def down(self, attempts: int) -> EndpointError:
        return EndpointError(
            f"LLM endpoint {self.shown} is down ({attempts} attempts): start it, or set "
            f"llm.base_url; then run the same command again"
        )

    def closed_for(self, seconds: float) -> EndpointError:
        return EndpointError(
            f"LLM endpoint {self.shown} asks to wait {seconds:,.0f} s (Retry-After), longer than "
            f"llm.max_elapsed_s: run the same command again then, or raise it"
        )

    async def close(self) -> None:
        await self._openai.close()


def _count(status: int | str, body: dict[str, Any]) -> None:
    tags = {"model": body["model"], "stage": telemetry.ids.get("stage", "")}
    telemetry.count("requests", 1, status=str(status), **tags)


def read_reply(answer: Any, headers: Mapping[str, str]) -> Reply:
    """The first choice of a chat completion; Transient when there is none."""
    return read_replies(answer, headers)[0]


def read_replies(answer: Any, headers: Mapping[str, str]) -> list[Reply]:
    """The usable choices of a chat or text completion, by index; Transient when there is none.

    The server counts tokens of the whole answer: the prompt's stand in the first reply, 0 in the
    others; the generated ones are shared out in proportion to the choices' characters (and about
    one token's worth of them for the end mark), rounded so that the sum stays what was paid.
    """
    try:
        choices = answer["choices"]
        if len(choices) > 1:
            choices = sorted(choices, key=lambda c: int(c.get("index") or 0))
        used, model = answer.get("usage") or {}, _whole(str(answer.get("model") or ""))
        prompt = min(int(used.get("prompt_tokens") or 0), 2**40)
        generated = min(int(used.get("completion_tokens") or 0), 2**40)
        texts = [t for c in choices if (t := _text(c)) is not None]
        if not texts:
            raise Transient("HTTP 200 without choices[0].message.content")
        shares = [generated]
        if len(texts) > 1:
            shares = shared(generated, [len(text) + END_CHARS for text, *_ in texts])
        return [
            Reply(
                text=text,
                refusal=refusal,
                finish_reason=finish,
                prompt_tokens=0 if i else prompt,
                completion_tokens=shares[i],
                model=model,
                headers=headers,
                top_logprobs=logprobs,
            )
            for i, (text, refusal, finish, logprobs) in enumerate(texts)
        ]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Transient("HTTP 200 with a body that is no chat completion") from None


def _text(choice: Any) -> tuple[str, str | None, str | None, str | None] | None:
    """(text, refusal, finish reason, log-probabilities) of a choice; None when it says nothing."""
    message = {"content": choice["text"]} if "text" in choice else choice["message"]
    text, refusal = message.get("content"), message.get("refusal")
    finish = choice.get("finish_reason")
    if not isinstance(text, str):
        if not refusal and finish != "content_filter":
            return None
        text, refusal = "", refusal or FILTERED
    said = _whole(text), refusal and _whole(str(refusal)), finish and _whole(str(finish))
    return *said, _first_logprobs(choice.get("logprobs"))


def shared(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of `total` in proportion to `weights` (above 0), which add up to it."""
    edges = [round(total * w / sum(weights)) for w in accumulate(weights, initial=0)]
    return [high - low for low, high in pairwise(edges)]


def _first_logprobs(logprobs: Any) -> str | None:
    """{"True": -0.1, ...}: the first token's alternatives; None when the server tells none."""
    try:
        top = logprobs["content"][0]["top_logprobs"]
        return json.dumps({str(t["token"]): float(t["logprob"]) for t in top}) if top else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _whole(text: str) -> str:
    """JSON can carry half a surrogate pair; no file or table can."""
    return text.encode("utf-8", "replace").decode()


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` (finer, OpenAI) or `retry-after` (a number or a date); None
    without them."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        with contextlib.suppress(ValueError, OverflowError):
            try:
                seconds = float(text) * scale
            except ValueError:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            if math.isfinite(seconds):
                return max(0.0, seconds)
    return None
