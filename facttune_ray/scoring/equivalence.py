"""Equivalence classes of sampled answers: answers of one class mean the same.

    classes(["the cello", "Cello", "harp", ""])               ->  [0, 0, 1, -1]
    shares(["the cello", "Cello", "harp", ""], ["cellos"])    ->  [0.667]

    exact       equal texts, ignoring case and outer spaces
    heuristic   equal forms (`text/forms.py`), and names with and without their first and middle
                parts (`text/names.py`)
    reference   FactTune's scripts bit by bit, including faults (`scoring/reference_classes.py`)

Except for `reference`, classes do not depend on the order of the answers. An empty answer is in no
class (-1). A name that fits two people of the unit ("Bach" or "J. Bach" beside "Johann Bach" and
"Joseph Bach") joins neither, so no chain joins different people. A less specific answer ("player"
beside "basketball player", "1955" beside "June 1955") is another class.

`classes_of` and `shares_of` take many units at once: they read every distinct text once, and
compare units as numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.scoring import reference_classes
from facttune_ray.text.forms import form, trimmed
from facttune_ray.text.names import Name, joined, likely_last, name

STRINGS = pa.list_(pa.string())


def classes(answers: Sequence[str | None], method: str = "heuristic") -> list[int]:
    """The class of each answer of one unit, numbered by first appearance; -1: an empty answer."""
    return classes_of(pa.array([answers], STRINGS), method)[0].as_py()


def shares(
    answers: Sequence[str | None], originals: Sequence[str | None], method: str = "heuristic"
) -> list[float | None]:
    """For each original the share of the non-empty answers that mean the same. None when the
    original or every answer is empty."""
    units = pa.array([answers], STRINGS), pa.array([originals], STRINGS)
    return shares_of(*units, method)[0].as_py()


def same_answer(a: str | None, b: str | None, method: str = "heuristic") -> bool:
    """Whether two answers mean the same, without other answers beside them."""
    first, second = classes([a, b], method)
    return first == second != -1


def classes_of(answers: pa.ListArray | pa.ChunkedArray, method: str = "heuristic") -> pa.ListArray:
    """`classes` of many units: lists of strings -> lists of int32; a null list gives null."""
    answers = _one_array(answers)
    if method == "reference":
        units = [a if a is None else reference_classes.classes(a) for a in answers.to_pylist()]
        return pa.array(units, pa.list_(pa.int32()))
    lengths = pc.fill_null(pc.list_value_length(answers), 0).to_numpy(zero_copy_only=False)
    unit_N = np.repeat(np.arange(len(answers)), lengths)
    class_N = _classes(pc.list_flatten(answers), unit_N, method)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    null = answers.is_null() if answers.null_count else None
    return pa.ListArray.from_arrays(offsets, pa.array(class_N), mask=null)


def shares_of(
    answers: pa.ListArray | pa.ChunkedArray,
    originals: pa.ListArray | pa.ChunkedArray,
    method: str = "heuristic",
) -> pa.ListArray:
    """`shares` of many units: two lists of strings per unit -> lists of float64."""
    originals_U = [o or [] for o in originals.to_pylist()]
    answers_U = [a or [] for a in answers.to_pylist()] if any(originals_U) else originals_U
    units = list(zip(answers_U, originals_U, strict=True))
    if method == "reference":
        shares_U = [[reference_classes.share(a, o) for o in listed] for a, listed in units]
        return pa.array(shares_U, pa.list_(pa.float64()))
    # Add each original to its unit as one more answer; its class then has the answers that match.
    extended = pa.array([[*a, o] for a, listed in units for o in listed], STRINGS)
    extended_classes = iter(classes_of(extended, method).to_pylist())
    shares_U = [[_share(next(extended_classes)) for _ in listed] for _, listed in units]
    return pa.array(shares_U, pa.list_(pa.float64()))


def _share(classes: list[int]) -> float | None:
    """The share of the last answer's class among the other non-empty answers."""
    others = [c for c in classes[:-1] if c >= 0]
    return others.count(classes[-1]) / len(others) if others and classes[-1] >= 0 else None


def _one_array(answers: pa.ListArray | pa.ChunkedArray) -> pa.ListArray:
    if not isinstance(answers, pa.ChunkedArray):
        return answers
    return pa.concat_arrays(answers.chunks) if answers.num_chunks else pa.array([], answers.type)


# ---------------------------------------------------------------- many units: N answers


BLOCK = 1 << 18  # answers numbered at once: their arrays fit a processor's cache


class Wordings(NamedTuple):
    """The W distinct texts of many answers, trimmed."""

    texts: list[str]
    form_W: np.ndarray  # number of the form; -1: the text says nothing
    last_W: np.ndarray  # number of the likely last name; -1: the text is no name


def _classes(texts: pa.Array, unit_N: np.ndarray, method: str) -> np.ndarray:
    """The class of each of N answers within its unit, numbered by first appearance; -1: empty."""
    trim, read_form, read_last = METHODS[method]
    raw = texts.dictionary_encode()
    short = trim(raw.dictionary).dictionary_encode()
    distinct = short.dictionary.to_pylist()
    forms, lasts = _numbered(map(read_form, distinct)), _numbered(map(read_last, distinct))
    wordings = Wordings(distinct, forms, lasts)
    wording_R = np.append(short.indices.to_numpy(), -1)
    wording_N = wording_R[pc.fill_null(raw.indices, -1).to_numpy(zero_copy_only=False)]
    class_N = np.full(len(unit_N), -1, dtype=np.int32)
    start = 0
    while start < len(unit_N):
        end = int(np.searchsorted(unit_N, unit_N[min(start + BLOCK, len(unit_N)) - 1], "right"))
        _number(unit_N[start:end], wording_N[start:end], wordings, class_N[start:end])
        start = end
    return class_N


def _numbered(texts: Iterable[str]) -> np.ndarray:
    """Numbers of texts: equal texts have equal numbers, "" has -1. One more -1 is appended, so
    that index -1 reads it."""
    numbers: dict[str, int] = {"": -1}
    return np.array([*(numbers.setdefault(t, len(numbers) - 1) for t in texts), -1])


def _number(
    unit_N: np.ndarray, wording_N: np.ndarray, wordings: Wordings, class_N: np.ndarray
) -> None:
    """Write the classes of a block of units to `class_N`."""
    (answer_M,) = np.nonzero(wordings.form_W[wording_N] >= 0)  # the non-empty answers
    if not len(answer_M):
        return
    # I items: the distinct wordings of a unit; G groups: its distinct forms; both in unit order
    unit_M, wording_M = unit_N[answer_M], wording_N[answer_M]
    item_M, first_I = _distinct(unit_M * len(wordings.form_W) + wording_M)
    unit_I, wording_I = unit_M[first_I], wording_M[first_I]
    group_I, first_G = _distinct(unit_I * len(wordings.form_W) + wordings.form_W[wording_I])
    unit_G = unit_I[first_G]
    root_G = _joined_names(group_I, unit_I, wording_I, wordings)
    rank_G = np.cumsum(root_G == np.arange(len(root_G))) - 1
    class_G = rank_G[root_G] - rank_G[np.searchsorted(unit_G, unit_G)]
    class_N[answer_M] = class_G[group_I][item_M]


def _distinct(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each code by first appearance, index at which each number first appears). Codes
    of neighbouring units are nearly sorted, so a stable sort is faster than a hash table."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return number[inverse], first[order]


def _joined_names(
    group_I: np.ndarray, unit_I: np.ndarray, wording_I: np.ndarray, wordings: Wordings
) -> np.ndarray:
    """For each group the first group of its unit that names the same person."""
    root_G = np.arange(int(group_I.max()) + 1)
    (named_J,) = np.nonzero(wordings.last_W[wording_I] >= 0)
    last_J, group_J = wordings.last_W[wording_I[named_J]], group_I[named_J]
    family_J, first_F = _distinct(unit_I[named_J] * len(wordings.last_W) + last_J)
    # compare names only where several groups of a unit share a last name
    several_F = np.zeros(len(first_F), dtype=bool)
    several_F[family_J[group_J != group_J[first_F][family_J]]] = True
    (compared_J,) = np.nonzero(several_F[family_J])
    families: dict[int, dict[int, set[Name]]] = defaultdict(lambda: defaultdict(set))
    for j in compared_J.tolist():
        if words := name(wordings.texts[wording_I[named_J[j]]]):
            families[int(family_J[j])][int(group_J[j])].add(words)
    # A group in two families (its words in another order, "Bach Johann") would join them.
    memberships = Counter(group for groups in families.values() for group in groups)
    for groups in families.values():
        clear = [group for group in groups if memberships[group] == 1]
        for a, b in joined([groups[group] for group in clear]):
            low, high = sorted((int(root_G[clear[a]]), int(root_G[clear[b]])))
            for group in clear:
                root_G[group] = low if root_G[group] == high else root_G[group]
    return root_G


Trim = Callable[[pa.Array], pa.Array]
Read = Callable[[str], str]
# method -> (trims many texts at once, form of a trimmed text, its likely last name)
METHODS: dict[str, tuple[Trim, Read, Read]] = {
    "heuristic": (trimmed, form, likely_last),
    "exact": (pc.utf8_trim_whitespace, str.casefold, lambda text: ""),
}
