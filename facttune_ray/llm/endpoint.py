"""One address and key of an OpenAI-compatible API: a request sent once, its failures named.

    reply = await endpoint.send(body, {"Idempotency-Key": "6f1c..."})

`Transient` failures (408, 409, 429, 5xx, timeouts, broken connections, bodies that are not the
API's JSON) may be tried again; an `EndpointError` stops the run (401, 403, 404, a 400, no quota);
a `RowError` is the row's own fault (too long, content policy). No message shows a key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

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
    """A usable answer."""

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
        self._key = os.environ.get(api_key_env) or ""
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
        return re.sub(r"(?i)(bearer\s+|\bsk-)[\w*.-]{4,}", r"\1[key]", text)

    async def send(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        """One attempt."""
        try:
            # as the SDK's own `create` does, without its checks of each field of the body and the
            # reply, which cost more than the request
            response = await self._openai.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                body=body,
                options={"headers": headers},
            )
        except openai.APIStatusError as e:
            raise self.explain(e.status_code, e.response.headers, e.body, str(e)) from None
        except openai.APITimeoutError as e:
            raise self._unanswered(e, f"no answer within {self.timeout_s:g} s") from None
        except openai.APIError as e:
            raise self._unanswered(e, f"connection failed: {e.__cause__ or e}") from None
        try:
            answer = json.loads(response.content)
        except ValueError:
            raise Transient("HTTP 200 with a body that is not JSON") from None
        return read_reply(answer, response.headers)

    def _unanswered(self, error: Exception, message: str) -> Transient:
        made = Transient(self.redact(message))
        kind = type(error.__cause__).__name__
        made.unreachable = kind in ("ConnectTimeout", "ConnectError")
        return made

    def explain(
        self, status: int, headers: Mapping[str, str], body: object, message: str
    ) -> Exception:
        """What an error status means for the request and the run."""
        code = body.get("code") if isinstance(body, dict) else None
        message = self.redact(message)[:200]
        if code == "insufficient_quota":
            hint = "the account's quota is used up"
        elif status in (408, 409, 429) or status >= 500:
            made = Transient(message, status, retry_after_s(headers))
            made.headers = headers
            return made
        elif status == 400 and code in _ROWS_FAULT:
            return RowError(message)
        else:
            hint = {
                401: f"set {self.api_key_env}",
                403: f"check the rights of {self.api_key_env}",
                404: "check llm.model and llm.base_url",
            }.get(status, "check llm.model and its parameters")
        return EndpointError(f"LLM endpoint {self.shown} refused: {message}: {hint}")

    def down(self, attempts: int) -> EndpointError:
        return EndpointError(
            f"LLM endpoint {self.shown} is down ({attempts} attempts): start it, or set "
            f"llm.base_url; then run the same command again"
        )

    async def close(self) -> None:
        await self._openai.close()


def read_reply(answer: Any, headers: Mapping[str, str]) -> Reply:
    """The first choice of a chat completion; Transient when there is none."""
    try:
        choice = answer["choices"][0]
        message, used = choice["message"], answer.get("usage") or {}
        text, refusal = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason")
        if not isinstance(text, str):
            if not refusal and finish != "content_filter":
                raise Transient("HTTP 200 without choices[0].message.content")
            text, refusal = "", refusal or "stopped by the content filter"
        return Reply(
            text=_whole(text),
            refusal=refusal and _whole(str(refusal)),
            finish_reason=finish and _whole(str(finish)),
            prompt_tokens=min(int(used.get("prompt_tokens") or 0), 2**40),
            completion_tokens=min(int(used.get("completion_tokens") or 0), 2**40),
            model=_whole(str(answer.get("model") or "")),
            headers=headers,
            top_logprobs=_first_logprobs(choice.get("logprobs")),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Transient("HTTP 200 with a body that is no chat completion") from None


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
    """Seconds of `retry-after-ms` (finer, OpenAI) or `retry-after`; None without them."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    return None
