"""One address and key of an OpenAI-compatible API: a request sent once, its answer read.

    meaning = await endpoint.send(body, {"Idempotency-Key": "6f1c..."})

A body with `messages` goes to chat/completions, one with `prompt` to completions. `replies.py` says
what each answer means; no answer at all is a `retry` that may have been billed. No message shows a
key. A query string of `llm.base_url` (Azure's api-version) goes with every request.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import httpx2
import openai

from facttune_ray import secrets, telemetry
from facttune_ray.errors import EndpointError
from facttune_ray.llm import replies
from facttune_ray.llm.permits import Gate
from facttune_ray.llm.replies import HTTPReply, Meaning

MESSAGE_CHARS = 240  # of a server's own words, in an error


class Transient(Exception):
    """No answer. The same request may succeed later."""

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable  # nothing listens there, so nothing was billed


# method, path, JSON body, headers -> what came back; Transient without an answer
Transport = Callable[[str, str, dict | None, dict[str, str]], Awaitable[HTTPReply]]


class Endpoint:
    """One connection pool and the gate that its requests pass."""

    def __init__(
        self,
        base_url: str,
        api_key_env: str,
        timeout_s: float,
        gate: Gate,
        transport: Transport | None = None,
        section: str = "llm",
        direct: bool = False,
    ) -> None:
        """`section`: of the config, for hints. `direct`: never through a proxy, as to loopback."""
        self.gate, self.timeout_s, self.api_key_env = gate, timeout_s, api_key_env
        self.section = section
        self._key = secrets.key(api_key_env)
        if re.search(r"[^!-~]", self._key):
            raise EndpointError(
                f"{api_key_env}: the key in this environment variable has a space, a line break or "
                f"a letter outside ASCII, which no request can carry: set it again"
            )
        address, _, query = base_url.partition("?")
        self.shown = re.sub(r"//[^/@]*@", "//", address)
        self._transport = transport or self._over_http
        self._openai = None if transport else self._sdk(address, dict(parse_qsl(query)), direct)

    def _sdk(self, address: str, query: dict[str, str], direct: bool) -> openai.AsyncOpenAI:
        key = self._key or "none"  # local servers take any, but the SDK insists on one
        return openai.AsyncOpenAI(
            base_url=address,
            api_key=key,
            max_retries=0,
            timeout=self.timeout_s,
            default_query=query,
            # Azure takes its key by a header of its own
            default_headers={"api-key": key} if "api-version" in query else None,
            http_client=openai.DefaultAioHttpClient(trust_env=not (direct or _loopback(address))),
        )

    @property
    def openai(self) -> openai.AsyncOpenAI:
        assert self._openai is not None
        return self._openai

    def redact(self, text: str) -> str:
        """The text without this endpoint's key, on one line."""
        text = " ".join(text.split())
        if len(self._key) >= 4:
            text = text.replace(self._key, "[key]")
        return secrets.redact(text)

    async def send(self, body: dict[str, Any], headers: dict[str, str]) -> Meaning:
        """One attempt at a completion."""
        path = "/completions" if "prompt" in body else "/chat/completions"
        return await self.call("POST", path, body, headers)

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> Meaning:
        """One HTTP request. Without an answer it may be tried again, and may have been billed."""
        reply = await self.exchange(method, path, body, headers)
        return reply if isinstance(reply, Meaning) else self.meaning(reply, body or {})

    async def exchange(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> HTTPReply | Meaning:
        """What came back, whatever it means; the Meaning of nothing."""
        tags = {"model": (body or {}).get("model", ""), "stage": telemetry.ids.get("stage", "")}
        try:
            reply = await self._transport(method, path, body, headers)
        except Transient as e:
            telemetry.count("requests", 1, status="none", **tags)
            away = e.unreachable
            return Meaning("retry", message=str(e), unknown=not away, unreachable=away)
        telemetry.count("requests", 1, status=str(reply.status), **tags)
        return reply

    def meaning(self, reply: HTTPReply, asked: Mapping[str, Any]) -> Meaning:
        """What a reply means, in words without a key."""
        found = replies.read(reply, asked, self.section, self.api_key_env)
        return replace(found, message=self.redact(found.message)[:MESSAGE_CHARS])

    async def _over_http(
        self, method: str, path: str, body: dict | None, headers: dict[str, str]
    ) -> HTTPReply:
        try:
            # as the SDK's own `create` does, without its checks of each field of the body and the
            # reply, which cost more than the request
            options: Any = {"headers": headers}
            if method == "GET":
                response = await self.openai.get(path, cast_to=httpx2.Response, options=options)
            else:
                response = await self.openai.post(
                    path, cast_to=httpx2.Response, body=body, options=options
                )
        except openai.APIStatusError as e:
            response = e.response
        except openai.APITimeoutError as e:
            raise self._unanswered(e, f"no answer within {self.timeout_s:g} s") from None
        except openai.APIError as e:
            raise self._unanswered(e, f"connection failed: {e.__cause__ or e}") from None
        except aiohttp.ClientError as e:  # what the SDK's transport lets through
            raise Transient(f"an answer that is not HTTP: {type(e).__name__}") from None
        return HTTPReply(response.status_code, response.headers, response.content)

    def _unanswered(self, error: Exception, message: str) -> Transient:
        unreachable = type(error.__cause__).__name__ in ("ConnectTimeout", "ConnectError")
        return Transient(self.redact(message), unreachable)

    def refusal(self, meaning: Meaning) -> EndpointError:
        """The line that ends the run."""
        return EndpointError(
            f"LLM endpoint {self.shown} refused: {meaning.message}: {meaning.hint}"
        )

    def down(self, attempts: int) -> EndpointError:
        return EndpointError(
            f"LLM endpoint {self.shown} is down ({attempts} attempts): start it, or set "
            f"{self.section}.base_url; then run the same command again"
        )

    def closed_for(self, seconds: float) -> EndpointError:
        return EndpointError(
            f"LLM endpoint {self.shown} asks to wait {seconds:,.0f} s (Retry-After), longer than "
            f"{self.section}.max_elapsed_s: run the same command again then, or raise it"
        )

    async def close(self) -> None:
        if self._openai is not None:
            await self._openai.close()


def _loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
