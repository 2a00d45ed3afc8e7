"""Settings of what is asked and sampled: the config sections `llm` and `sampling`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class EndpointConfig:
    """One address and key of the LLM, with its own limits. Null: what the server's headers say."""

    base_url: str = ""  # "": llm.base_url
    api_key_env: str = ""  # "": llm.api_key_env
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and completion tokens


@dataclass(frozen=True)
class LLMConfig:
    """The OpenAI-compatible endpoint that facts, verdicts and questions are asked of."""

    base_url: str = "embedded"  # embedded: start the built-in annotator for the run
    model: str = "annotator"  # model name sent with each request
    # batch: Files + Batches API, within 24 h; background: Responses API, an answer that was under
    # way at a kill is fetched, not paid again
    mode: Literal["online", "batch", "background"] = "online"
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key
    temperature: float | None = 0.0  # null: not sent
    max_tokens: int | None = 512  # completion tokens at most; null: not sent
    max_completion_tokens: int | None = None  # sent in place of max_tokens: thoughts count, too
    system: Literal["message", "user"] = "message"  # user: its text begins the user's message
    # sent as they are (seed, response_format); null: this parameter is not sent
    params: dict[str, Any] = field(default_factory=dict)
    requests_per_minute: int | None = None  # of the whole cluster; null: as headers say, or learned
    tokens_per_minute: int | None = None  # prompt and completion tokens, as above
    endpoints: list[EndpointConfig] = field(default_factory=list)  # several addresses or keys
    concurrency: int = 128  # requests in flight at most, each worker
    timeout_s: float = 60.0  # one attempt
    max_attempts: int = 8  # attempts of one request before its row fails; a 429 is none
    max_elapsed_s: float = 900.0  # from a request's first attempt until its row fails
    max_wait_s: float = 30.0  # longest pause between two attempts
    reasks: int = 2  # times an answer that cannot be parsed is asked again
    budget_usd: float | None = None  # stop cleanly before this run has paid more (exit code 3)
    usd_per_million_input: float | None = None  # price of prompt tokens; null: conf/prices
    usd_per_million_output: float | None = None  # price of completion tokens, as above
    ledger: str = ""  # folder of paid completions, may be shared by runs; "": run.out/ledger
    flush_rows: int = 256  # completions a ledger segment at most
    flush_s: float = 0.1  # longest wait before a completion is written; raise it on s3://
    batch_requests: int = 50_000  # mode batch: lines a file at most (OpenAI: 50,000)
    batch_mb: int = 190  # mode batch: megabytes a file at most (OpenAI: 200)
    batch_poll_s: float = 30.0  # mode batch: seconds between two looks at a batch


@dataclass(frozen=True)
class SamplingConfig:
    """The engine that samples responses, answers and entities, and asks for P(True)."""

    engine: Literal["transformers", "vllm", "api"] = "transformers"
    # of engine=transformers. dola: layers contrasted (Chuang et al.); custom: custom_generate
    decoder: Literal["plain", "dola", "custom"] = "plain"
    dola_layers: str = "high"  # low, high, or numbers such as "0,2,4", of layers to contrast with
    custom_generate: str = ""  # custom: folder or hub name whose custom_generate/generate.py is run
    custom_params: dict[str, Any] = field(default_factory=dict)  # custom: what is given to it
    trust_remote_code: bool = False  # run Python code of the model's folder, or of custom_generate
    gpus: float = 0.0  # GPUs a worker, 0.5: two workers share one; 0: CPU
    accelerator: str = ""  # their kind, by Ray's name: L4, A100-80G, H100; "": any
    max_rows: int = 512  # sequences decoded at a time at most, fewer where GPU memory is short
    gpu_memory: float = 0.85  # share of a worker's GPU memory that it may take
    quantize: Literal["none", "8bit", "4bit"] = "none"  # weights, by bitsandbytes; needs a GPU
    tensor_parallel: int = 1  # vllm: GPUs of one worker
    form: Literal["chat", "completions"] = "chat"  # api: which of the two endpoints
    choices: int = 1  # api: most samples of one request (`n`); 1: a request a sample
    llm: LLMConfig = field(default_factory=lambda: LLMConfig(base_url="", model=""))  # api: where
