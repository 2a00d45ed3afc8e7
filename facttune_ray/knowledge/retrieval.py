"""Passages of one article that fit a query best.

BM25(["She was born in Lyon.", "She plays the cello."]).top("cello", 1)  ->  [1]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facttune_ray.scoring.verify_lexical import stems

K1, B = 1.5, 0.75  # Robertson & Zaragoza 2009, section 3.2; rank_bm25's defaults


class BM25:
    """Okapi BM25 over the passages of one article."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.size = len(passages)
        self.words: dict[str, int] = {}
        counts: list[dict[int, int]] = []
        for passage in passages:
            found: dict[int, int] = {}
            for s in stems(passage):
                i = self.words.setdefault(s, len(self.words))
                found[i] = found.get(i, 0) + 1
            counts.append(found)
        tf_PW = np.zeros((self.size, len(self.words)))
        for p, found in enumerate(counts):
            for i, n in found.items():
                tf_PW[p, i] = n
        length_P = tf_PW.sum(axis=1)
        df_W = (tf_PW > 0).sum(axis=0)
        idf_W = np.log(1 + (self.size - df_W + 0.5) / (df_W + 0.5))
        norm_P = K1 * (1 - B + B * length_P / max(length_P.mean(), 1e-9))
        self.weight_PW = idf_W * tf_PW * (K1 + 1) / (tf_PW + norm_P[:, None])

    def top(self, query: str, k: int) -> list[int]:
        """Indices of the k best passages, best first; the earlier of equals."""
        known = [self.words[s] for s in stems(query) if s in self.words]
        score_P = self.weight_PW[:, known].sum(axis=1)
        return np.argsort(-score_P, kind="stable")[:k].tolist()
