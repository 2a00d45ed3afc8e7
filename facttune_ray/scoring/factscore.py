"""FActScore of one response and of many (Min et al., EMNLP 2023; factscorer.py).

factscore([True, True, False, None], gamma=10)         ->  (0.667, 0.667 * exp(1 - 10 / 3))
summarise([(2, 3, 4), (0, 0, 0)], gamma=0).init_score  ->  0.667
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The figures that FActScore prints. Shares are in [0, 1]; None: a mean without terms."""

    score: float | None  # with the length penalty; mean over scored responses
    init_score: float | None  # without the length penalty
    respond_ratio: float | None  # responses with facts / responses
    facts_per_response: float | None  # mean over responses with facts

    def lines(self) -> list[str]:
        """Four lines, `FActScore = 52.3%` and so on, in FActScore's words and rounding."""
        shares = (
            ("FActScore", self.score),
            ("FActScore w/o length penalty", self.init_score),
            ("Respond ratio", self.respond_ratio),
        )
        lines = [f"{k} = " + ("n/a" if v is None else f"{100 * v:.1f}%") for k, v in shares]
        number = "n/a" if self.facts_per_response is None else f"{self.facts_per_response:.1f}"
        return [*lines, f"# Atomic facts per valid response = {number}"]


def factscore(supported: Sequence[bool | None], gamma: float) -> tuple[float | None, float | None]:
    """(score, score with length penalty) over facts with a verdict; (None, None) without one."""
    judged = [s for s in supported if s is not None]
    return _score(sum(judged), len(judged), gamma) if judged else (None, None)


def _score(supported: int, judged: int, gamma: float) -> tuple[float, float]:
    """score = supported / judged. The length penalty multiplies it by exp(1 - gamma / judged) when
    judged <= gamma (FActScore, appendix). gamma = 0 disables the penalty."""
    score = supported / judged
    penalty = math.exp(1 - gamma / judged) if 0 < gamma and judged <= gamma else 1.0
    return score, score * penalty


def summarise(responses: Iterable[tuple[int, int, int]], gamma: float) -> Summary:
    """Summarise responses, each given by its numbers of (supported, judged, all) facts with
    repeats; an abstained response has 0 facts.

    The scores are means over responses with a judged fact; facts_per_response is a mean over
    responses with a fact.
    """
    count = responded = scored = facts = 0
    score = init_score = 0.0
    for supported, judged, stated in responses:
        count += 1
        responded += stated > 0
        facts += stated
        if judged:
            plain, penalised = _score(supported, judged, gamma)
            scored += 1
            init_score += plain
            score += penalised
    return Summary(
        score=score / scored if scored else None,
        init_score=init_score / scored if scored else None,
        respond_ratio=responded / count if count else None,
        facts_per_response=facts / responded if responded else None,
    )
