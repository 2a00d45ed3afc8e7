"""The part of `annotator.Annotator` that the batch and the responses API use."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import web

from facttune_ray.quickstart.chat_api import Request
from facttune_ray.quickstart.journal import Journal
from facttune_ray.quickstart.options import AnnotatorOptions


class Answering(Protocol):
    options: AnnotatorOptions
    journal: Journal
    counts: Counter[str]
    random: random.Random
    slots: AbstractAsyncContextManager[None]  # held while a request is answered

    def authorize(self, request: web.Request) -> None: ...

    async def known(self, asked: Request, key: str | None) -> bytes | None: ...

    async def answer(
        self,
        asked: Request,
        key: str | None,
        latency_s: float = 0.0,
        written: Callable[[bytes], bytes] = bytes,
        limited: bool = True,
    ) -> bytes: ...

    async def reply(
        self,
        request: web.Request,
        known: Callable[[str | None], Awaitable[bytes | None]],
        answer: Callable[[str | None, float], Awaitable[bytes]],
    ) -> web.StreamResponse: ...
