"""Equivalence classes from the decisions of a judge of pairs: an LLM or an entailment model.

    plan = PairPlan.of_unit(["the cello", "cello", "violoncello", ""], ["a cello"], most=12)
    plan.texts        ["the cello", "violoncello"]      one per class of the heuristic
    plan.pairs        [(0, 1)]                          pairs to judge, the likeliest first
    plan.classes({(0, 1)})                              [0, 0, 0, -1]
    plan.shares({(0, 1)})                               [1.0]

Answers that the heuristic merges need no judge. Every pair of the remaining texts is judged, up to
`most` pairs, pairs of frequent answers first. Classes are the connected components of "the same". A
pair that is not judged counts as different, so every answer is in one class and shares sum to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from facttune_ray.scoring import equivalence

Pair = tuple[int, int]


@dataclass(frozen=True)
class PairPlan:
    """The questions to a judge about one unit. Integers are indices of `texts`."""

    texts: tuple[str, ...]  # the most frequent wording of each class; then new originals
    of: tuple[int, ...]  # text of each answer; -1: empty
    originals: tuple[int, ...]  # text of each original; -1: empty
    pairs: tuple[Pair, ...]

    @staticmethod
    def of_unit(
        answers: Sequence[str | None], originals: Sequence[str | None], most: int
    ) -> PairPlan:
        """`most`: largest number of judged pairs of answers, and of pairs per original."""
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
        """The component of each text that answers use. Originals do not join components."""
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
        """The class of each answer, numbered by first appearance; -1: empty."""
        roots, numbers = self._roots(same), dict[int, int]()
        return [numbers.setdefault(roots[t], len(numbers)) if t >= 0 else -1 for t in self.of]

    def shares(self, same: Collection[Pair]) -> list[float | None]:
        """For each original the share of non-empty answers in classes that mean the same."""
        roots = self._roots(same)
        answers = [roots[t] for t in self.of if t >= 0]
        out: list[float | None] = []
        for t in self.originals:
            if t < 0 or not answers:
                out.append(None)
                continue
            matching = {roots[t]} if t < len(roots) else {roots[a] for a, b in same if b == t}
            out.append(sum(root in matching for root in answers) / len(answers))
        return out


def _wording(answers: Sequence[str | None], classes: Sequence[int], wanted: int) -> str:
    """The most frequent answer of a class; the first in the alphabet among equals."""
    counts = Counter(a for a, c in zip(answers, classes, strict=True) if c == wanted and a)
    return min(counts, key=lambda a: (-counts[a], a))


def _place(
    original: str | None, answers: Sequence[str | None], classes: Sequence[int], texts: list[str]
) -> int:
    """Index of the text that means the same as the original when compared beside all answers (so
    "Bach" matches neither of two Bachs), else of a new text; -1 for an empty original."""
    *others, own = equivalence.classes([*answers, original])
    if own == -1:
        return -1
    same = Counter(c for c, other in zip(classes, others, strict=True) if other == own)
    if same:
        return min(same, key=lambda c: (-same[c], texts[c]))
    return texts.index(original) if original in texts else len(texts)
