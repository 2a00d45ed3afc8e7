"""One address and key of an OpenAI-compatible API. Sends a request once and reads the reply.

    meaning = await endpoint.send(body, {"Idempotency-Key": "6f1c..."})

A body with `messages` goes to chat/completions, a body with `prompt` to completions. `replies.py`
says what each reply means. No reply means `retry`, and the request may have been billed. No message
shows the key. A query string in `llm.base_url` (Azure's api-version) is sent with every request.
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

MESSAGE_CHARS = 240  # characters of a server's text in an error


# (method, path, JSON body, headers) -> the reply, or what it means that there is none
Transport = Callable[[str, str, dict | None, dict[str, str]], Awaitable[HTTPReply | Meaning]]


class Endpoint:
    """A connection pool, and the gate that its requests pass."""

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
        """`section`: config section that hints name. `direct`: use no proxy, as for loopback."""
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
        key = self._key or "none"  # local servers take any key, but the SDK requires one
        return openai.AsyncOpenAI(
            base_url=address,
            api_key=key,
            max_retries=0,
            timeout=self.timeout_s,
            default_query=query,
            # Azure reads its key from this header
            default_headers={"api-key": key} if "api-version" in query else None,
            http_client=openai.DefaultAioHttpClient(trust_env=not (direct or _loopback(address))),
        )

    @property
    def openai(self) -> openai.AsyncOpenAI:
        assert self._openai is not None
        return self._openai

    def redact(self, text: str) -> str:
        """The text on one line and without keys."""
        text = " ".join(text.split())
        if len(self._key) >= 4:
            text = text.replace(self._key, "[key]")
        return secrets.redact(text)

    async def send(self, body: dict[str, Any], headers: dict[str, str]) -> Meaning:
        """Send a request for a completion, once. Return what the reply means."""
        path = "/completions" if "prompt" in body else "/chat/completions"
        reply = await self.exchange("POST", path, body, headers)
        return reply if isinstance(reply, Meaning) else self.meaning(reply, body)

    async def exchange(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> HTTPReply | Meaning:
        """Send a request, once. Return the reply, or the Meaning of no reply."""
        tags = {"model": (body or {}).get("model", ""), "stage": telemetry.stage.get()}
        reply = await self._transport(method, path, body, headers)
        status = str(reply.status) if isinstance(reply, HTTPReply) else "none"
        telemetry.count("requests", 1, status=status, **tags)
        return reply

    def meaning(self, reply: HTTPReply, body: Mapping[str, Any]) -> Meaning:
        """What a reply to this body means. Its message shows no key."""
        meaning = replies.read(reply, body, self.section, self.api_key_env)
        return replace(meaning, message=self.redact(meaning.message)[:MESSAGE_CHARS])

    async def _over_http(
        self, method: str, path: str, body: dict | None, headers: dict[str, str]
    ) -> HTTPReply | Meaning:
        try:
            # The SDK's `create` makes the same calls, but its checks of each field of the body and
            # the reply cost more CPU time than the request.
            options: Any = {"headers": headers}
            if method == "GET":
                response = await self.openai.get(path, cast_to=httpx2.Response, options=options)
            else:
                response = await self.openai.post(
                    path, cast_to=httpx2.Response, body=body, options=options
                )
        except openai.APIStatusError as e:
            response = e.response
        except openai.APIError as e:
            message = f"connection failed: {e.__cause__ or e}"
            if isinstance(e, openai.APITimeoutError):
                message = f"no answer within {self.timeout_s:g} s"
            unreachable = type(e.__cause__).__name__ in ("ConnectTimeout", "ConnectError")
            return replies.no_reply(self.redact(message), unreachable)
        except aiohttp.ClientError as e:  # the SDK's transport does not translate these
            return replies.no_reply(f"an answer that is not HTTP: {type(e).__name__}")
        return HTTPReply(response.status_code, response.headers, response.content)

    def refusal(self, meaning: Meaning) -> EndpointError:
        """The error that stops the run after this refusal."""
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
