"""Classes as FactTune's scripts make them (llm_factuality_tuning, parsing.py), faults included.

    classes(["The cello.", "cellos", "955", "1955", None])  ->  [0, 0, 1, 1, -1]

For comparisons: rewards of tables that they made come out again. Each answer joins the first class
whose founding answer is equal, has the same words, ends with it or begins it from behind, or is its
plural. So an empty answer fits every class, "955" fits "1955", and the order decides. A null
answer is dropped (-1).
"""

from __future__ import annotations

from collections.abc import Sequence

_OUTSIDE = " <>*().!?,'\""
_INSIDE = (
    [(",", " "), (" the ", " "), (" a ", " "), (" an ", " "), ("  ", " "), ("  ", " ")]
    + [("-", ""), ("'", ""), ('"', ""), (".", " "), ("?", " "), ("!", " "), ("\n", " ")]
    + [("  ", " "), ("  ", " ")]
)


def normal(answer: str) -> str:
    """Its normal form of an answer. The order of the steps is part of it."""
    text = answer.lower().strip(_OUTSIDE)
    for article in ("a ", "an ", "the "):
        text = text.removeprefix(article)
    text = text.removesuffix(" and")
    for word in ("yes", "no"):
        if text.startswith(tuple(word + mark for mark in ",! ")):
            text = word
    for old, new in _INSIDE:
        text = text.replace(old, new)
    return text.strip()


def alike(a: str, b: str) -> bool:
    """Its test of two normal forms."""
    if a == b or set(a.split(" ")) == set(b.split(" ")):
        return True
    return _ends_with(a, b) or _ends_with(b, a) or a == f"{b}s" or b == f"{a}s"


def _ends_with(text: str, end: str) -> bool:
    """Whether it ends so, and not behind a comma; with an empty `end`, what its slice gives."""
    return text.endswith(end) and text[-len(end) - 1 : -len(end)] != ","


def classes(answers: Sequence[str | None]) -> list[int]:
    """Class of each answer, numbered in the order of their founding; -1 for a null one."""
    founders: list[str] = []
    out = []
    for answer in answers:
        if answer is None:
            out.append(-1)
            continue
        text = normal(answer)
        number = next((i for i, f in enumerate(founders) if alike(text, f)), len(founders))
        if number == len(founders):
            founders.append(text)
        out.append(number)
    return out


def share(answers: Sequence[str | None], original: str | None) -> float | None:
    """Its samp_conf: the share of the answers that are like the original, tested one by one."""
    given = [normal(a) for a in answers if a is not None]
    if not given or original is None:
        return None
    text = normal(original)
    return sum(alike(text, a) for a in given) / len(given)
