"""Options of the annotator: its limits, its latency and its faults."""

from __future__ import annotations

from dataclasses import dataclass

from facttune_ray.errors import UserError


@dataclass(frozen=True)
class AnnotatorOptions:
    """Fault shares are shares of all well-formed requests, in [0, 1]; their sum is at most 1."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: a free port
    latency_min_ms: float = 0.0  # each answer is delayed by a uniform time between the two
    latency_max_ms: float = 0.0
    requests_per_minute: int = 600_000  # of a token bucket that starts full
    tokens_per_minute: int = 1_000_000_000  # prompt and completion tokens, in a second bucket
    burst_s: float = 60.0  # size of each bucket in seconds; 1: per-second limits
    idempotent: bool = True  # False: Idempotency-Key is ignored, as most providers do
    halve_after_s: float = 0.0  # both limits halve this long after the first request; 0: never
    refuse_every_s: float = 0.0  # period of bursts of refusals, from the first request on
    refuse_for_s: float = 0.0  # length of a burst at a period's end: all requests get 429; 0: none
    headers: bool = True  # x-ratelimit-*; Retry-After is always sent
    slots: int = 0  # requests answered at once while others queue, as in vLLM; 0: any number
    error_share: float = 0.0  # answered with HTTP 500
    reset_share: float = 0.0  # the connection breaks after the answer is made: paid, but lost
    hang_share: float = 0.0  # answered only after hang_s
    hang_s: float = 60.0
    malformed_share: float = 0.0  # HTTP 200 with half a body; not counted as answered
    seed: int = 0  # of latencies and faults
    api_key: str | None = None  # if set, every other key gets 401
    journal: str | None = None  # append-only JSONL file of answers; None: memory alone
    replay: str = ""  # labelled JSONL file whose facts and labels are the answers; "": rules
    batch_max_requests: int = 50_000  # a larger input file fails its batch
    batch_max_bytes: int = 200 * 2**20
    batch_delay_s: float = 0.0  # time until the results of a batch are ready
    batch_error_share: float = 0.0  # share of a batch's lines that get HTTP 500
    batch_expire_share: float = 0.0  # share of batches that expire halfway
    failed_share: float = 0.0  # share of background responses that fail and are not paid

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
