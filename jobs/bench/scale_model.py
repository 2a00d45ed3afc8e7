"""Time, cost and storage of 10 million topics, extrapolated from one measured run.

    model(measure(...))  ->  {"topics": 10_000_000, "assumptions": [...], "hours": {...}, ...}

The model is plain arithmetic over constants of the run. Everything else is a listed assumption.
"""

from __future__ import annotations

from typing import Any

TOPICS = 10_000_000
RESPONSES, FACTS = 10, 4.0  # responses per topic (paper: 10); distinct facts per response
REQUESTS_PER_MINUTE = 30_000  # OpenAI's tier 5 for gpt-4o-mini; a quota to ask for
PROMPT_TOKENS, ANSWER_TOKENS = 600, 20  # per request, mean of facts and verdicts on real text
USD_PER_MILLION = (0.15, 0.60)  # of gpt-4o-mini: prompt and answer tokens
CPU_USD_PER_HOUR = 0.05  # of one vCPU on demand


def model(run: dict[str, Any], topics: int = TOPICS) -> dict[str, Any]:
    """Hours, dollars and bytes of the scoring part, from the constants of `run`."""
    rows = sum(s["rows"] for s in run["stages"].values() if s["shards"])
    constants = {
        "cpu_s_per_request": run["cpu_s"]["worker"] / max(1, run["requests"]),
        "driver_s_per_prompt": run["cpu_s"]["driver"] / run["prompts"],
        "table_bytes_per_row": run["bytes"]["tables"] / max(1, rows),
        "ledger_bytes_per_request": run["bytes"]["ledger"] / max(1, run["requests"]),
    }
    responses = topics * RESPONSES
    # one request per sentence for its facts; per fact one for its verdict, one for its question and
    # one for all answers to the question
    requests = responses * (FACTS / 2 + 3 * FACTS)
    cpu_hours = requests * constants["cpu_s_per_request"] / 3600
    tokens_in, tokens_out = requests * PROMPT_TOKENS, requests * ANSWER_TOKENS
    api_usd = (tokens_in * USD_PER_MILLION[0] + tokens_out * USD_PER_MILLION[1]) / 1e6
    api_hours = requests / REQUESTS_PER_MINUTE / 60
    return {
        "topics": topics,
        "assumptions": [
            f"{RESPONSES} responses a topic; {FACTS:g} facts, {FACTS / 2:g} sentences a response",
            f"{REQUESTS_PER_MINUTE:,} requests a minute; {PROMPT_TOKENS} prompt tokens, "
            f"{ANSWER_TOKENS} answer tokens a request",
            f"${USD_PER_MILLION[0]} and ${USD_PER_MILLION[1]} a million of them",
            f"a vCPU hour costs ${CPU_USD_PER_HOUR}, and is as fast as this machine's",
            "cost a request, a row and a prompt is that of the measured run; a worker maps a file "
            "of 8 bytes a request, the ledger's index",
            "GPUs for sampling and training are not counted: they are measured apart "
            "(jobs/bench_sampling.py, jobs/bench_dpo.py)",
        ],
        "constants": {k: round(v, 6) for k, v in constants.items()},
        "requests": requests,
        "api_hours": round(api_hours, 1),
        "api_usd": round(api_usd),
        "worker_cpus": round(cpu_hours / api_hours, 2),  # enough to keep up with the endpoint
        "worker_usd": round(cpu_hours * CPU_USD_PER_HOUR, 2),
        "driver_hours": round(topics * constants["driver_s_per_prompt"] / 3600, 1),
        "ledger_gb": round(requests * constants["ledger_bytes_per_request"] / 1e9, 1),
        "ledger_index_gb_per_worker": round(requests * 8 / 1e9, 2),
        "table_gb": round(responses * (2 + 5 * FACTS) * constants["table_bytes_per_row"] / 1e9, 1),
    }
