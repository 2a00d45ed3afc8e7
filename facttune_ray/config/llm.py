"""The LLM that facts, verdicts and questions are asked of: the config section `llm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from facttune_ray.config.setting import setting


@dataclass(frozen=True)
class EndpointConfig:
    """One address and key of the LLM, with its own limits."""

    base_url: str = setting("", "Address of the endpoint; empty: llm.base_url.")
    api_key_env: str = setting("", "Environment variable of the key; empty: llm.api_key_env.")
    requests_per_minute: int | None = setting(
        None, "Limit of requests; null: from the server's headers.", unit="1/min", ge=1
    )
    tokens_per_minute: int | None = setting(
        None,
        "Limit of prompt and completion tokens; null: from the server's headers.",
        unit="tokens/min",
        ge=1,
    )


@dataclass(frozen=True)
class LLMConfig:
    """The OpenAI-compatible endpoint that facts, verdicts and questions are asked of."""

    base_url: str = setting(
        "embedded", "Address (http:// or https://); embedded: the run starts its own annotator."
    )
    model: str = setting("annotator", "Model name that each request sends.")
    mode: Literal["online", "batch", "background"] = setting(
        "online",
        "batch: Files and Batches API, within 24 hours. background: Responses API; a response "
        "under way when the run was killed is fetched, not paid again.",
    )
    api_key_env: str = setting("OPENAI_API_KEY", "Environment variable that holds the key.")
    temperature: float | None = setting(0.0, "Sampling temperature; null: not sent.", ge=0)
    max_tokens: int | None = setting(
        512, "Most completion tokens; null: not sent.", unit="tokens", ge=1
    )
    max_completion_tokens: int | None = setting(
        None,
        "Sent in place of max_tokens, for models whose thoughts count too.",
        unit="tokens",
        ge=1,
    )
    system: Literal["message", "user"] = setting(
        "message", "user: the system text becomes the beginning of the user's message."
    )
    params: dict[str, Any] = setting(
        {}, "More request parameters, sent as given (seed, response_format); null: not sent."
    )
    requests_per_minute: int | None = setting(
        None,
        "Limit of requests of the whole cluster; null: from the server's headers, or learned.",
        unit="1/min",
        ge=1,
    )
    tokens_per_minute: int | None = setting(
        None,
        "Limit of prompt and completion tokens of the whole cluster; null: as above.",
        unit="tokens/min",
        ge=1,
    )
    endpoints: list[EndpointConfig] = setting([], "Several addresses or keys to spread load over.")
    concurrency: int = setting(128, "Most requests in flight of each worker.", ge=1)
    timeout_s: float = setting(60.0, "Longest time of one attempt.", unit="s", gt=0)
    max_attempts: int = setting(
        8, "Attempts of one request before its row fails; a 429 does not count.", ge=1
    )
    max_elapsed_s: float = setting(
        900.0, "Longest time from a request's first attempt until its row fails.", unit="s", gt=0
    )
    max_wait_s: float = setting(30.0, "Longest pause between two attempts.", unit="s", ge=0)
    reasks: int = setting(2, "Times that an unparseable answer is asked for again.", ge=0)
    budget_usd: float | None = setting(
        None, "The run stops (exit code 3) before it has paid more; null: no limit.", "USD", gt=0
    )
    usd_per_million_input: float | None = setting(
        None, "Price of prompt tokens; null: from conf/prices.", unit="USD/1M tokens", ge=0
    )
    usd_per_million_output: float | None = setting(
        None, "Price of completion tokens; null: from conf/prices.", unit="USD/1M tokens", ge=0
    )
    ledger: str = setting(
        "", "Folder of paid completions, which runs may share; empty: run.out/ledger."
    )
    flush_rows: int = setting(256, "Most completions of a ledger segment.", unit="rows", ge=1)
    flush_s: float = setting(
        0.1, "Longest wait before a completion is written; raise it on s3://.", unit="s", gt=0
    )
    batch_requests: int = setting(
        50_000, "mode=batch: most requests of a file (OpenAI: 50,000).", ge=1
    )
    batch_mb: int = setting(190, "mode=batch: most megabytes of a file (OpenAI: 200).", "MB", ge=1)
    batch_poll_s: float = setting(
        30.0, "mode=batch: time between two looks at a batch.", unit="s", gt=0
    )
