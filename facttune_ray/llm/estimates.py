"""Estimates tokens: of requests without an answer, and of answers that the server did not count.

estimates = Estimates()
estimates.tokens(chars=400, answers=2)  ->  (100.0, 128.0)     from the answers so far
estimates.counted(replies, most=1, chars=400)                  every reply with its tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from facttune_ray.llm.replies import Completion


class Estimates:
    """Means over the answers so far. Before the first answer: four characters per token, 64 tokens
    per answer."""

    def __init__(self) -> None:
        self._chars, self._prompt_tokens, self._answers, self._answer_tokens = 400, 100, 1, 64

    def tokens(self, chars: int, answers: int) -> tuple[float, float]:
        """(prompt, completion) tokens of a request with a prompt of `chars` characters."""
        each = self._answer_tokens / self._answers
        return chars * self._prompt_tokens / self._chars, answers * each

    def learn(self, replies: Sequence[Completion], chars: int) -> None:
        """Add an answer that the server has counted."""
        if replies[0].prompt_tokens and chars:
            self._chars += chars
            self._prompt_tokens += replies[0].prompt_tokens
            self._answers += len(replies)
            self._answer_tokens += sum(r.completion_tokens for r in replies)

    def counted(
        self, replies: Sequence[Completion], most: int, chars: int | None = None
    ) -> list[Completion]:
        """The first `most` choices of an answer, with the tokens of all its choices; estimated
        where the server did not count them. `chars`: characters of the prompt; None: unknown, use
        the mean."""
        kept = list(replies[:most])
        if kept[0].counted == "estimate":
            each = self._prompt_tokens / self._chars
            prompt = self._chars / self._answers if chars is None else chars
            kept = [
                replace(
                    r,
                    prompt_tokens=0 if i else math.ceil(prompt * each),
                    completion_tokens=math.ceil((len(r.text) + len(r.thoughts or "")) * each) + 1,
                )
                for i, r in enumerate(kept)
            ]
        more = sum(r.completion_tokens for r in replies[most:])
        kept[-1] = replace(kept[-1], completion_tokens=kept[-1].completion_tokens + more)
        return kept
