"""Classes exactly as in FactTune's scripts (llm_factuality_tuning, parsing.py), with their faults.

    classes(["The cello.", "cellos", "955", "1955", None])  ->  [0, 0, 1, 1, -1]

They reproduce the rewards in files of the scripts. Each answer joins the first class whose first
answer is equal, has the same words, or is a plural of the other, or when one ends with the other.
So an empty answer fits every class, "955" fits "1955", and the order of the answers matters. A null
answer has class -1.
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
    """The scripts' normal form of an answer. The order of the steps matters."""
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
    """Whether the scripts take two normal forms for equal."""
    if a == b or set(a.split(" ")) == set(b.split(" ")):
        return True
    return _ends_with(a, b) or _ends_with(b, a) or a == f"{b}s" or b == f"{a}s"


def _ends_with(text: str, end: str) -> bool:
    """Whether `text` ends with `end`, and not after a comma. An empty `end` gives the value of the
    scripts' slice."""
    return text.endswith(end) and text[-len(end) - 1 : -len(end)] != ","


def classes(answers: Sequence[str | None]) -> list[int]:
    """The class of each answer, numbered by first appearance; -1 for a null answer."""
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
    """The scripts' samp_conf: the share of the answers that are `alike` to the original."""
    given = [normal(a) for a in answers if a is not None]
    if not given or original is None:
        return None
    text = normal(original)
    return sum(alike(text, a) for a in given) / len(given)
