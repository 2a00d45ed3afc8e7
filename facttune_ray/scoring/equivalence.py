"""Which sampled answers mean the same: connected components of a pairwise test.

    classes(["the cello", "Cello", "harp", ""])  ->  [0, 0, 1, -1]

Classes are the components of "these two mean the same", so they do not depend on the order of
the answers. An empty answer means nothing: it is in no class (-1). Numbers match as numbers:
"955" is not "1955".
"""

from __future__ import annotations

import re

_ARTICLES = {"a", "an", "the"}
_LEADING = {"in", "on", "at", "as", "by", "from", "to", "of", "with"}


def normal_words(answer: str) -> tuple[str, ...]:
    """Words in lower case without articles, punctuation and a leading preposition."""
    words = re.findall(r"\d[\d,.]*\d|\w+", answer.lower().replace("-", " ").replace("\u2019", "'"))
    words = [w.replace(",", "") for w in words if w not in _ARTICLES]
    while len(words) > 1 and words[0] in _LEADING:
        words = words[1:]
    return tuple(words)


def same(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Equal word sets, plurals aside."""
    return {singular(w) for w in a} == {singular(w) for w in b}


def singular(word: str) -> str:
    """A plural's singular by its ending; short words and numbers stay as they are."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def classes(answers: list[str]) -> list[int]:
    """Class index of each answer, numbered by first appearance; -1 for an empty one."""
    normal = [normal_words(a or "") for a in answers]
    distinct = list(dict.fromkeys(w for w in normal if w))
    root = list(range(len(distinct)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i in range(len(distinct)):
        for j in range(i):
            if same(distinct[i], distinct[j]):
                root[find(i)] = find(j)
    of = {w: find(i) for i, w in enumerate(distinct)}
    numbers: dict[int, int] = {}
    return [numbers.setdefault(of[w], len(numbers)) if w else -1 for w in normal]


def same_answer(a, b, method="heuristic"):
    return same(normal_words(a), normal_words(b))


def classes_of(answers, method="heuristic"):
    import pyarrow as pa

    out = [None if a is None else classes([x or "" for x in a]) for a in answers.to_pylist()]
    return pa.array(out, pa.list_(pa.int32()))


def shares_of(answers, originals, method="heuristic"):
    import pyarrow as pa

    out = []
    for a, o in zip(answers.to_pylist(), originals.to_pylist()):
        got = [x for x in a or [] if x]
        out.append([sum(same_answer(x, y) for y in got) / len(got) if got else None for x in o])
    return pa.array(out, pa.list_(pa.float64()))
