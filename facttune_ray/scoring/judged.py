"""Equivalence classes by a judge of pairs: an LLM or an entailment model.

    plan = PairPlan.of_unit(["the cello", "cello", "violoncello", ""], ["a cello"], most=12)
    plan.texts        ["the cello", "violoncello"]      one a class of the heuristic
    plan.pairs        [(0, 1)]                          to be judged, the likeliest first
    plan.classes({(0, 1)})                              [0, 0, 0, -1]
    plan.shares({(0, 1)})                               [1.0]

Answers that the heuristic merges need no judge. Of the rest every pair is judged, up to `most`,
those between frequent answers first; classes are the connected components of "the same". A pair
that is not judged is not the same: every answer is in exactly one class, and shares sum to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from facttune_ray.scoring import equivalence

Pair = tuple[int, int]


@dataclass(frozen=True)
class PairPlan:
    """What a judge is asked about one unit. Indices of `texts`; originals stand behind answers."""

    texts: tuple[str, ...]  # the most frequent wording of each class; then new originals
    of: tuple[int, ...]  # text of each answer; -1: empty
    originals: tuple[int, ...]  # text of each original; -1: empty
    pairs: tuple[Pair, ...]

    @staticmethod
    def of_unit(
        answers: Sequence[str | None], originals: Sequence[str | None], most: int
    ) -> PairPlan:
        """`most`: pairs of answers judged at most, and as many for each original."""
        first = equivalence.classes(list(answers))
        counts = Counter(first)
        counts.pop(-1, None)
        texts = [_wording(answers, first, c) for c in range(len(counts))]
        known = len(texts)
        pairs = [(a, b) for a in range(known) for b in range(a + 1, known)]
        pairs.sort(key=lambda p: (-counts[p[0]] * counts[p[1]], sorted(texts[i] for i in p)))
        pairs = pairs[:most]
        places = []
        for original in originals:
            places.append(_place(original, answers, first, texts))
            if places[-1] == len(texts) and original:
                texts.append(original)
                likely = sorted(range(known), key=lambda c: (-counts[c], texts[c]))[:most]
                pairs += [(c, places[-1]) for c in likely]
        return PairPlan(tuple(texts), tuple(first), tuple(places), tuple(pairs))

    def _roots(self, same: Collection[Pair]) -> list[int]:
        """Component of each text that answers use; an original joins none."""
        known = max(self.of, default=-1) + 1
        root = list(range(known))

        def find(i: int) -> int:
            while root[i] != i:
                i = root[i]
            return i

        for a, b in same:
            if a < known and b < known:
                root[max(find(a), find(b))] = min(find(a), find(b))
        return [find(i) for i in range(known)]

    def classes(self, same: Collection[Pair]) -> list[int]:
        """Class of each answer, numbered by first appearance; -1: empty."""
        roots, numbers = self._roots(same), dict[int, int]()
        return [numbers.setdefault(roots[t], len(numbers)) if t >= 0 else -1 for t in self.of]

    def shares(self, same: Collection[Pair]) -> list[float | None]:
        """Of each original: the share of non-empty answers in the classes that mean the same."""
        roots = self._roots(same)
        found = [roots[t] for t in self.of if t >= 0]
        out: list[float | None] = []
        for t in self.originals:
            if t < 0 or not found:
                out.append(None)
                continue
            own = {roots[t]} if t < len(roots) else {roots[a] for a, b in same if b == t}
            out.append(sum(r in own for r in found) / len(found))
        return out


def _wording(answers: Sequence[str | None], classes: Sequence[int], wanted: int) -> str:
    """The most frequent answer of a class; the first in the alphabet of equals."""
    counts = Counter(a for a, c in zip(answers, classes, strict=True) if c == wanted and a)
    return min(counts, key=lambda a: (-counts[a], a))


def _place(
    original: str | None, answers: Sequence[str | None], classes: Sequence[int], texts: list[str]
) -> int:
    """Index of the text that means the same among all answers, so "Bach" is neither of two; that
    of a new one; -1 for an empty original."""
    *others, own = equivalence.classes([*answers, original])
    if own == -1:
        return -1
    same = Counter(c for c, other in zip(classes, others, strict=True) if other == own)
    if same:
        return min(same, key=lambda c: (-same[c], texts[c]))
    return texts.index(original) if original in texts else len(texts)
