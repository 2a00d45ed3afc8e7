"""Memory of one worker's client with its ledger, while the number of its requests grows.

measure(60_000)  ->  [{"requests": 10_000, "rss_mb": 151.2}, {"requests": 20_000, ...}, ...]

    python -m bench.memory http://127.0.0.1:8000/v1 60000
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile

import psutil

from bench import ours
from facttune_ray.config import LLMConfig
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.storage.tables import Folder

PARTS = 6
OPEN = 2000  # requests that wait or are in flight at a time


def measure(count: int) -> list[dict[str, float]]:
    """Measure in a fresh process, against an annotator without limits."""
    with running(AnnotatorOptions()) as url:
        command = [sys.executable, "-m", "bench.memory", url, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


async def _ask(url: str, count: int, folder: str) -> list[dict[str, float]]:
    cfg, found = LLMConfig(), []
    gate = Gate(local_renew(Limits()), cfg.concurrency, "w")
    ledger = Ledger(Folder.of(folder), cfg.flush_rows, cfg.flush_s)
    client = Client(cfg, ledger, [Endpoint(url, cfg.api_key_env, cfg.timeout_s, gate)])

    async def some(numbers: range) -> None:
        for i in numbers:
            await client.ask(facts.render(ours.topic(i), f"She wrote book {i}."), facts.parse)

    for part in range(PARTS):
        start, end = (count * k // PARTS for k in (part, part + 1))
        await asyncio.gather(*(some(range(start + k, end, OPEN)) for k in range(OPEN)))
        rss_mb = round(psutil.Process().memory_info().rss / 2**20, 1)
        found.append({"requests": end, "rss_mb": rss_mb})
    await client.close()
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(asyncio.run(_ask(sys.argv[1], int(sys.argv[2]), place))))
