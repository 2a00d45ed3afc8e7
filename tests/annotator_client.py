"""Clients that ask a running annotator for facts, for tests of one mode after another."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

from facttune_ray.config import LLMConfig
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.prompts import facts
from facttune_ray.storage.tables import Folder

PRICED = {"usd_per_million_input": 10.0, "usd_per_million_output": 30.0}


def client(tmp_path: Path, url: str, **settings) -> Client:
    """A client as of another process: it shares only the ledger's folder with other clients."""
    cfg = LLMConfig(**settings)
    endpoint = Endpoint(url, cfg.api_key_env, 10.0, Gate(local_renew(Limits()), 64, "w"))
    ledger = Ledger(ledger_folder(tmp_path), flush_s=0.01, run="r", stage="facts")
    return Client(cfg, ledger, [endpoint])


def ledger_folder(tmp_path: Path) -> Folder:
    return Folder.of(str(tmp_path / "ledger"))


def messages(i: int) -> list[dict[str, str]]:
    return facts.render("Mara Veldt", f"She was born in {1000 + i}.")


def answers(numbers) -> list:
    return [[f"Mara Veldt was born in {1000 + i}."] for i in numbers]


async def ask(one: Client, numbers) -> list:
    """The facts of one sentence per number; exceptions are returned."""
    asked = (one.ask(messages(i), facts.parse) for i in numbers)
    return await asyncio.gather(*asked, return_exceptions=True)


def run(one: Client, numbers) -> list:
    """`ask`, then close the client."""

    async def work():
        try:
            return await ask(one, numbers)
        finally:
            await one.close()

    return asyncio.run(work())


async def abandon(one: Client, numbers, until) -> None:
    """`ask`, and cancel every task when `until()` is true, as a kill would."""
    asking = asyncio.create_task(ask(one, numbers))
    while not until():
        await asyncio.sleep(0.01)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    for endpoint in one.endpoints:  # or Python warns of open connections
        await endpoint.close()


def stats(url: str) -> dict:
    """The annotator's counters."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)
