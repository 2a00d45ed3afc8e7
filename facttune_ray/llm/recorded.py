"""Look up requests that a run has sent: what was sent, and the completions that the ledger holds.

    recorded(cfg.llm, ledger, [Request(messages)])
        ->  [Recorded(messages=[{"role": "user", ...}], params={"temperature": 0.0, ...},
                      completions=[Completion("True", ...)])]

The key of a completion is computed from the request, so a table needs no column for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from facttune_ray.config import LLMConfig
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.parameters import as_sent, parameters
from facttune_ray.llm.replies import Completion


@dataclass(frozen=True)
class Request:
    """A request as a stage gives it to the client."""

    messages: list[dict[str, str]]
    params: dict[str, Any] | None = None  # of this request alone


@dataclass(frozen=True)
class Recorded:
    """A request as it was sent. `completions`: one for each time that it was asked; the last one
    counts, because the client asks again after an answer that cannot be read."""

    messages: Any  # role and content of each
    params: dict[str, Any]
    completions: list[Completion]


def _keys(cfg: LLMConfig, request: Request) -> list[bytes]:
    """The keys of a request: of the first time that it is asked, and of `llm.reasks` more."""
    messages = as_sent(cfg, request.messages)
    return [
        request_key(cfg.model, messages, parameters(cfg, sample, request.params), sample)
        for sample in range(cfg.reasks + 1)
    ]


def recorded(cfg: LLMConfig, ledger: Ledger | None, requests: Sequence[Request]) -> list[Recorded]:
    """Each request with its completions; none without a ledger. One read of the ledger."""
    of_request = [_keys(cfg, request) for request in requests]
    known = ledger.find(key for keys in of_request for key in keys) if ledger else {}
    return [
        Recorded(
            as_sent(cfg, request.messages),
            parameters(cfg, 0, request.params),
            [known[key] for key in keys if key in known],
        )
        for request, keys in zip(requests, of_request, strict=True)
    ]
