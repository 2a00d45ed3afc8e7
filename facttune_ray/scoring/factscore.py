"""FActScore of one response (Min et al., EMNLP 2023).

factscore([True, True, False, None], gamma=10)  ->  (0.667, 0.667 * exp(1 - 10 / 3))
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def factscore(supported: Sequence[bool | None], gamma: float) -> tuple[float | None, float | None]:
    """(score, score with length penalty) over the facts with a verdict; (None, None) of none.

    score = supported / judged. The penalty multiplies by exp(1 - gamma / judged) when
    judged <= gamma (FActScore, appendix; gamma 0 switches it off).
    """
    judged = [s for s in supported if s is not None]
    if not judged:
        return None, None
    score = sum(judged) / len(judged)
    penalty = math.exp(1 - gamma / len(judged)) if 0 < gamma and len(judged) <= gamma else 1.0
    return score, score * penalty
