"""Find the passages of one article that match a query best, by BM25.

BM25(["She was born in Lyon.", "She plays the cello."]).top("cello", 1)  ->  [1]
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from facttune_ray.text.words import stems

# bm25s uses JAX if it is installed. JAX fails in workers that lack its GPU, and on a GPU it takes
# most of the memory.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bm25s  # noqa: E402


class BM25:
    """Okapi BM25 (Robertson & Zaragoza 2009) over the stems of one article's passages."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.size = len(passages)
        self.index = bm25s.BM25(k1=1.5, b=0.75)
        words = [stems(p) for p in passages]
        self.empty = not any(words)  # only punctuation: nothing to index
        if not self.empty:
            self.index.index(words, show_progress=False)

    def top(self, query: str, k: int) -> list[int]:
        """Indices of the k best passages, best first; ties keep their order."""
        if self.empty:
            return list(range(min(k, self.size)))
        known = [s for s in stems(query) if s in self.index.vocab_dict]
        if not known:
            return list(range(min(k, self.size)))
        score_P = self.index.get_scores(known)
        return (-score_P).argsort(kind="stable")[:k].tolist()
