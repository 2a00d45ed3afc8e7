"""How the embedded endpoint behaves: its limits, its latency, and what goes wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from facttune_ray.errors import UserError


@dataclass(frozen=True)
class AnnotatorOptions:
    """How the server behaves. Shares are of all well-formed requests, in [0, 1], sum at most 1."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    latency_min_ms: float = 0.0  # each answer waits a uniform time between these two
    latency_max_ms: float = 0.0
    requests_per_minute: int = 600_000  # token bucket that starts full
    tokens_per_minute: int = 1_000_000_000  # prompt and completion tokens, as above
    burst_s: float = 60.0  # seconds of work that each bucket holds; 1: per-second limits
    idempotent: bool = True  # False: Idempotency-Key is ignored, as most providers do
    halve_after_s: float = 0.0  # so long after the first chat request both limits halve; 0: never
    refuse_every_s: float = 0.0  # in each such period from the first chat request on, ...
    refuse_for_s: float = 0.0  # ... the last seconds in which all of them get 429; 0: none
    headers: bool = True  # x-ratelimit-*; Retry-After is always sent
    slots: int = 0  # requests answered at once, others queue, as in a vLLM server; 0: any number
    error_share: float = 0.0  # answered with HTTP 500
    reset_share: float = 0.0  # connection broken once the answer is made: paid for, but lost
    hang_share: float = 0.0  # kept waiting for hang_s, then answered
    hang_s: float = 60.0
    malformed_share: float = 0.0  # HTTP 200 with half a body; not counted as answered
    seed: int = 0  # of latencies and faults
    api_key: str | None = None  # if set, every other key gets 401
    journal: str | None = None  # append-only JSONL file of answers; None: kept nowhere
    replay: str = ""  # labelled JSONL file whose facts and labels are answered; "": rules alone
    batch_max_requests: int = 50_000  # a larger input file fails its batch
    batch_max_bytes: int = 200 * 2**20
    batch_delay_s: float = 0.0  # time before a batch's results are there
    batch_error_share: float = 0.0  # of a batch's lines, answered with HTTP 500
    batch_expire_share: float = 0.0  # of batches, expiring halfway
    failed_share: float = 0.0  # of background responses, which end as failed and are not paid for

    def check(self) -> None:
        shares = (self.error_share, self.reset_share, self.hang_share, self.malformed_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"Annotator fault shares {shares} must be >= 0 and sum to at most 1.")
        if not 0 <= self.latency_min_ms <= self.latency_max_ms:
            raise UserError(
                f"Annotator latency {self.latency_min_ms:g} to {self.latency_max_ms:g} ms: the "
                "first must not be below 0 or above the second."
            )
        if self.requests_per_minute < 1 or self.tokens_per_minute < 1:
            raise UserError("Annotator limits must be at least 1 per minute.")
        if not self.burst_s > 0:
            raise UserError(f"Annotator burst_s={self.burst_s:g} must be above 0.")
        for name in ("halve_after_s", "refuse_every_s", "refuse_for_s", "slots", "batch_delay_s"):
            if not getattr(self, name) >= 0:
                raise UserError(f"Annotator {name}={getattr(self, name):g} must not be below 0.")
        if self.refuse_for_s and self.refuse_for_s >= self.refuse_every_s:
            raise UserError("Annotator refuse_for_s must be below refuse_every_s.")
        for name in ("batch_error_share", "batch_expire_share", "failed_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"Annotator {name}={getattr(self, name):g} must be in [0, 1].")
        if self.batch_max_requests < 1 or self.batch_max_bytes < 1:
            raise UserError("Annotator batch limits must be at least 1.")
