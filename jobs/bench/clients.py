"""Other clients that send many chat requests; each returns the answers in order.

    CLIENTS["gather"](base_url, requests, Limits(12_000, None))  ->  ["- ...", None, ...]

None stands for a request that the client gave up. Each client is set up as its careful user would.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import aiohttp
import openai

from facttune_ray.llm.limiter import Limits
from facttune_ray.text.tokens import estimated_tokens

Messages = list[dict[str, str]]
MODEL, MAX_TOKENS, TIMEOUT_S = "annotator", 512, 60.0
BARE_IN_FLIGHT = 128  # requests per process


def sequential(base_url: str, requests: list[Messages], limits: Limits) -> list[str | None]:
    """One call after the other with the SDK's own retries, as FactTune's scripts do."""
    client = openai.OpenAI(base_url=base_url, api_key="none", timeout=TIMEOUT_S)
    out = []
    for messages in requests:
        try:
            reply = client.chat.completions.create(
                model=MODEL,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=MAX_TOKENS,
                temperature=0.0,
            )
            out.append(reply.choices[0].message.content)
        except openai.OpenAIError:
            out.append(None)
    return out


def gather(base_url: str, requests: list[Messages], limits: Limits) -> list[str | None]:
    """All requests at once in one process; the SDK retries ten times with its backoff."""

    async def ask_all() -> list[str | None]:
        client = openai.AsyncOpenAI(
            base_url=base_url, api_key="none", timeout=TIMEOUT_S, max_retries=10
        )
        async with client:
            return list(await asyncio.gather(*(_ask(client, m) for m in requests)))

    return asyncio.run(ask_all())


async def _ask(client: openai.AsyncOpenAI, messages: Messages) -> str | None:
    try:
        reply = await client.chat.completions.create(
            model=MODEL,
            messages=messages,  # type: ignore[arg-type]
            max_tokens=MAX_TOKENS,
            temperature=0.0,
        )
        return reply.choices[0].message.content
    except (openai.OpenAIError, json.JSONDecodeError):
        return None


def token_bucket(base_url: str, requests: list[Messages], limits: Limits) -> list[str | None]:
    """The design of the OpenAI cookbook's parallel script: one process, two buckets (requests and
    tokens) that start with a full minute and refill by the clock, five attempts, and a pause of
    15 s after a 429."""
    return asyncio.run(_token_bucket(base_url, requests, limits))


async def _token_bucket(
    base_url: str, requests: list[Messages], limits: Limits
) -> list[str | None]:
    max_requests = limits.requests_per_minute or 1e9
    max_tokens = limits.tokens_per_minute or 1e12
    free_requests, free_tokens = max_requests, max_tokens
    out: list[str | None] = [None] * len(requests)
    left = deque((i, 5) for i in range(len(requests)))
    retries: deque[tuple[int, int]] = deque()
    running: set[asyncio.Task[None]] = set()
    refused_at, filled_at = 0.0, time.monotonic()
    # remove aiohttp's limit of 100 connections
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def send(i: int, attempts: int) -> None:
        nonlocal refused_at
        body = {"model": MODEL, "messages": requests[i], "max_tokens": MAX_TOKENS}
        try:
            async with session.post(
                f"{base_url}/chat/completions", json=body | {"temperature": 0.0}
            ) as response:
                if response.status == 429:
                    refused_at = time.monotonic()
                response.raise_for_status()
                out[i] = (await response.json())["choices"][0]["message"]["content"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            if attempts > 1:
                retries.append((i, attempts - 1))

    async with session:
        while left or retries or running:
            now = time.monotonic()
            elapsed_s, filled_at = now - filled_at, now
            free_requests = min(max_requests, free_requests + elapsed_s * max_requests / 60)
            free_tokens = min(max_tokens, free_tokens + elapsed_s * max_tokens / 60)
            queue = retries or left
            if queue:
                i, attempts = queue[0]
                tokens = MAX_TOKENS + sum(estimated_tokens(m["content"]) for m in requests[i])
                if free_requests >= 1 and free_tokens >= min(tokens, max_tokens):
                    queue.popleft()
                    free_requests, free_tokens = free_requests - 1, free_tokens - tokens
                    task = asyncio.create_task(send(i, attempts))
                    running.add(task)
                    task.add_done_callback(running.discard)
            await asyncio.sleep(0.001)
            if refused_at and (pause_s := refused_at + 15 - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
    return out


def ray_data_llm(base_url: str, requests: list[Messages], limits: Limits) -> list[str | None]:
    """Ray Data's own HTTP processor: two workers, each paced to half of the request limit.

    It awaits the requests of a batch one after the other and runs a few batches at once, so small
    batches are fastest. It has no token limit, and a row that fails for good fails the job.
    """
    import ray.data
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    qps = int(limits.requests_per_minute / 60 / 2) if limits.requests_per_minute else None
    config = HttpRequestProcessorConfig(
        url=f"{base_url}/chat/completions",
        headers={"Authorization": "Bearer none"},
        qps=qps,
        max_retries=5,
        batch_size=16,
        concurrency=2,
    )

    def payload(row: dict[str, Any]) -> dict[str, Any]:
        body = {"model": MODEL, "messages": json.loads(row["messages"])}
        return {"payload": body | {"max_tokens": MAX_TOKENS, "temperature": 0.0}, "i": row["i"]}

    def text(row: dict[str, Any]) -> dict[str, Any]:
        return {"i": row["i"], "text": row["http_response"]["choices"][0]["message"]["content"]}

    data = ray.data.from_items(
        [{"i": i, "messages": json.dumps(m)} for i, m in enumerate(requests)],
        override_num_blocks=max(2, len(requests) // 64),
    )
    out: list[str | None] = [None] * len(requests)
    for row in build_processor(config, preprocess=payload, postprocess=text)(data).iter_rows():
        out[row["i"]] = row["text"]
    return out


def bare_sdk(base_url: str, requests: list[Messages], limits: Limits) -> list[str | None]:
    """Two processes of the SDK on aiohttp that only send requests: the upper bound."""
    import ray

    async def ask_part(part: list[Messages]) -> list[str | None]:
        client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key="none",
            timeout=TIMEOUT_S,
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(),
        )
        slots = asyncio.Semaphore(BARE_IN_FLIGHT)

        async def one(messages: Messages) -> str | None:
            async with slots:
                return await _ask(client, messages)

        async with client:
            return list(await asyncio.gather(*map(one, part)))

    @ray.remote(num_cpus=1)
    def work(part: list[Messages]) -> list[str | None]:
        return asyncio.run(ask_part(part))

    halves = ray.get([work.remote(requests[0::2]), work.remote(requests[1::2])])
    out: list[str | None] = [None] * len(requests)
    out[0::2], out[1::2] = halves
    return out


Client = Callable[[str, list[Messages], Limits], list[str | None]]
CLIENTS: dict[str, Client] = {
    "sequential": sequential,
    "gather": gather,
    "token_bucket": token_bucket,
    "ray_data_llm": ray_data_llm,
    "bare_sdk": bare_sdk,
}
