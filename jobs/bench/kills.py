"""The cost of a SIGKILL: requests that a server without Idempotency-Key bills twice.

A process that uses the run's own client is killed at a random moment, and a second process finishes
the work. The server's log shows which requests were answered twice; `facttune ledger verify` should
have listed these requests after the kill.

    python -m bench.kills URL LEDGER_FOLDER background 0 3000
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from facttune_ray.config import LLMConfig
from facttune_ray.llm.background import as_response
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.journal import attempts
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.ledger_tools import verify
from facttune_ray.llm.limiter import Lease, LimiterReport, Limits
from facttune_ray.llm.parameters import parameters
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.storage.tables import Folder

IN_FLIGHT = 128
LATENCY_MS = (1000.0, 3000.0)
KILL_S = (0.0, 2.0)  # after the server has read WARM requests
WARM = 2 * IN_FLIGHT
ROWS = 3000  # more than are sent before the kill


def config(url: str, mode: Any) -> LLMConfig:
    return LLMConfig(base_url=url, mode=mode, concurrency=IN_FLIGHT)


def messages(i: int) -> list[dict[str, str]]:
    return facts.render("Mara Veldt", f"She was born in {i}.")


async def work(url: str, folder: str, mode: str, rows: range) -> None:
    cfg = config(url, mode)
    renew = local_renew(Limits())

    async def at_once(seen: LimiterReport) -> Lease:
        """Skip the slow start, because the kill comes soon."""
        return replace(await renew(seen), in_flight=IN_FLIGHT)

    gate = Gate(at_once, cfg.concurrency, "w")
    endpoint = Endpoint(url, cfg.api_key_env, cfg.timeout_s, gate)
    client = Client(cfg, Ledger(Folder.of(folder), run="r", stage="facts"), [endpoint])
    await asyncio.gather(*(client.complete(messages(i)) for i in rows))
    await client.close()


def killed(kills: int, mode: str, seed: int = 0) -> dict[str, Any]:
    """Figures over a number of kills."""
    draw = random.Random(f"{mode}/{seed}")
    twice, listed, unknown, in_flight = [], [], [], []
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "log.jsonl")
        options = AnnotatorOptions(
            idempotent=False,
            journal=str(log),
            latency_min_ms=LATENCY_MS[0],
            latency_max_ms=LATENCY_MS[1],
        )
        with running(options) as url:
            for kill in range(kills):
                first, ledger = kill * ROWS, Folder.of(str(Path(place, str(kill))))
                command = [sys.executable, "-m", "bench.kills", url]
                command += [ledger.path, mode, str(first)]
                before = _stats(url)["received"]
                process = subprocess.Popen([*command, str(first + ROWS)])
                while _stats(url)["received"] - before < WARM and process.poll() is None:
                    time.sleep(0.05)
                time.sleep(draw.uniform(*KILL_S))
                process.kill()
                assert process.wait() != 0, "the process had finished: more rows are needed"
                in_flight.append(len(attempts(ledger)))
                found = verify(ledger)["unknown"]
                assert isinstance(found, list)
                # requests are sent in order: these are all that were sent, and some more
                rows = range(first, first + _stats(url)["received"] - before + IN_FLIGHT)
                subprocess.run([*command, str(rows.stop)], check=True)
                paid = _answered(log)
                repeated = {_key(i, url, mode) for i in rows if paid[_request(i, url, mode)] > 1}
                twice.append(len(repeated))
                listed.append(len(repeated & set(found)))
                unknown.append(len(found))
            seen = _stats(url)
    return {
        "kills": kills,
        "in_flight_mean": round(statistics.mean(in_flight), 2),
        "billed_twice": twice,
        "mean": round(statistics.mean(twice), 2),
        "max": max(twice),
        "listed_of_them": sum(listed),
        "unlisted": sum(twice) - sum(listed),
        "unknown_mean": round(statistics.mean(unknown), 2),  # all listed requests
        "requests_answered": seen["journal"],
        "repeated": seen["repeated"],
    }


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)


def _answered(log: Path) -> Counter[str]:
    return Counter(json.loads(line)["request_sha256"] for line in log.open())


def _key(i: int, url: str, mode: str) -> str:
    """The ledger's name of the request."""
    cfg = config(url, mode)
    return request_key(cfg.model, messages(i), parameters(cfg, 0), 0).hex()


def _request(i: int, url: str, mode: str) -> str:
    """The server's name of the request."""
    cfg = config(url, mode)
    body = {"model": cfg.model, "messages": messages(i), **parameters(cfg, 0)}
    body = as_response(body) if mode == "background" else body
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    address, place, how, first, end = sys.argv[1:]
    asyncio.run(work(address, place, how, range(int(first), int(end))))
