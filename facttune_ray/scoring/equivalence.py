"""Which sampled answers mean the same.

    classes(["the cello", "Cello", "harp", ""])               ->  [0, 0, 1, -1]
    shares(["the cello", "Cello", "harp", ""], ["cellos"])    ->  [0.667]

    exact       equal texts, case and outer spaces aside
    heuristic   equal forms (`scoring/forms.py`), and names with and without their first and middle
                parts (`scoring/names.py`)
    reference   FactTune's scripts bit by bit, faults included (`scoring/reference_classes.py`)

Classes do not depend on the order of the answers (those of `reference` do). An empty answer means
nothing: it is in no class (-1). A name that fits two people of the unit ("Bach" or "J. Bach"
beside "Johann Bach" and "Joseph Bach") is nobody's, so that no chain joins different people. A
less specific answer ("player" beside "basketball player", "1955" beside "June 1955") is another.

`classes_of` and `shares_of` take many units at once: every distinct text is read once, and units
are compared as numbers.
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
    """Class of each answer of one unit, numbered by first appearance; -1 for an empty one."""
    return classes_of(pa.array([answers], STRINGS), method)[0].as_py()


def shares(
    answers: Sequence[str | None], originals: Sequence[str | None], method: str = "heuristic"
) -> list[float | None]:
    """Of each original: the share of the non-empty answers that mean the same. None: there is no
    such answer, or the original is empty."""
    found = shares_of(pa.array([answers], STRINGS), pa.array([originals], STRINGS), method)
    return found[0].as_py()


def same_answer(a: str | None, b: str | None, method: str = "heuristic") -> bool:
    """Whether two answers by themselves mean the same."""
    first, second = classes([a, b], method)
    return first == second != -1


def classes_of(answers: pa.ListArray | pa.ChunkedArray, method: str = "heuristic") -> pa.ListArray:
    """`classes` of many units: lists of strings -> lists of int32; a null list gives null."""
    answers = _one_array(answers)
    if method == "reference":
        found = [a if a is None else reference_classes.classes(a) for a in answers.to_pylist()]
        return pa.array(found, pa.list_(pa.int32()))
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
    """`shares` of many units: two lists of strings a unit -> lists of float64."""
    wanted = originals.to_pylist()
    given = answers.to_pylist() if any(wanted) else [None] * len(wanted)
    if method == "reference":
        found = [
            [reference_classes.share(a or [], o) for o in some or ()]
            for a, some in zip(given, wanted, strict=True)
        ]
        return pa.array(found, pa.list_(pa.float64()))
    # each original as one more answer of its unit: its class is what it is the same as
    asked = [[*(a or []), o] for a, some in zip(given, wanted, strict=True) for o in some or ()]
    placed = iter(classes_of(pa.array(asked, STRINGS), method).to_pylist())
    shared = [[_share(next(placed)) for _ in some or ()] for some in wanted]
    return pa.array(shared, pa.list_(pa.float64()))


def _share(classes: list[int]) -> float | None:
    """Share of the last one's class among the others."""
    others = [c for c in classes[:-1] if c >= 0]
    return others.count(classes[-1]) / len(others) if others and classes[-1] >= 0 else None


def _one_array(answers: pa.ListArray | pa.ChunkedArray) -> pa.ListArray:
    if not isinstance(answers, pa.ChunkedArray):
        return answers
    return pa.concat_arrays(answers.chunks) if answers.num_chunks else pa.array([], answers.type)


# ---------------------------------------------------------------- many units: N answers


BLOCK = 1 << 18  # answers numbered at once: what a processor's cache holds


class Wordings(NamedTuple):
    """The W distinct texts of many answers, trimmed."""

    texts: list[str]
    form_W: np.ndarray  # number of the form; -1: it says nothing
    last_W: np.ndarray  # number of the likely last name; -1: it is no name


def _classes(texts: pa.Array, unit_N: np.ndarray, method: str) -> np.ndarray:
    """Class of each of N answers within its unit, numbered by first appearance; -1: empty."""
    trim, read, read_last = METHODS[method]
    raw = texts.dictionary_encode()
    short = trim(raw.dictionary).dictionary_encode()
    wordings = short.dictionary.to_pylist()
    seen = Wordings(wordings, _numbered(map(read, wordings)), _numbered(map(read_last, wordings)))
    wording_R = np.append(short.indices.to_numpy(), -1)
    wording_N = wording_R[pc.fill_null(raw.indices, -1).to_numpy(zero_copy_only=False)]
    class_N = np.full(len(unit_N), -1, dtype=np.int32)
    start = 0
    while start < len(unit_N):
        end = int(np.searchsorted(unit_N, unit_N[min(start + BLOCK, len(unit_N)) - 1], "right"))
        _number(unit_N[start:end], wording_N[start:end], seen, class_N[start:end])
        start = end
    return class_N


def _numbered(texts: Iterable[str]) -> np.ndarray:
    """A number of each text; equal texts have one, -1 is the empty one's and stands at the end."""
    numbers: dict[str, int] = {"": -1}
    return np.array([*(numbers.setdefault(t, len(numbers) - 1) for t in texts), -1])


def _number(unit_N: np.ndarray, wording_N: np.ndarray, seen: Wordings, class_N: np.ndarray) -> None:
    """Sets the classes of a block of units."""
    (said_M,) = np.nonzero(seen.form_W[wording_N] >= 0)
    if not len(said_M):
        return
    # items: the distinct wordings of a unit; groups: its distinct forms; both in order of units
    unit_M, wording_M = unit_N[said_M], wording_N[said_M]
    item_M, first_I = _distinct(unit_M * len(seen.form_W) + wording_M)
    unit_I, wording_I = unit_M[first_I], wording_M[first_I]
    group_I, first_G = _distinct(unit_I * len(seen.form_W) + seen.form_W[wording_I])
    unit_G = unit_I[first_G]
    root_G = _joined_names(group_I, unit_I, wording_I, seen)
    rank_G = np.cumsum(root_G == np.arange(len(root_G))) - 1
    class_G = rank_G[root_G] - rank_G[np.searchsorted(unit_G, unit_G)]
    class_N[said_M] = class_G[group_I][item_M]


def _distinct(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each code by first appearance, and where each number appears first. Codes of
    neighbouring units are nearly in order: a stable sort is faster here than a hash table."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return number[inverse], first[order]


def _joined_names(
    group_I: np.ndarray, unit_I: np.ndarray, wording_I: np.ndarray, seen: Wordings
) -> np.ndarray:
    """Of each group the first of those of its unit that name the same person."""
    root_G = np.arange(int(group_I.max()) + 1)
    (named_J,) = np.nonzero(seen.last_W[wording_I] >= 0)
    last_J, group_J = seen.last_W[wording_I[named_J]], group_I[named_J]
    family_J, first_F = _distinct(unit_I[named_J] * len(seen.last_W) + last_J)
    # only where two groups of a unit share a last name is there something to compare
    several_F = np.zeros(len(first_F), dtype=bool)
    several_F[family_J[group_J != group_J[first_F][family_J]]] = True
    (some_J,) = np.nonzero(several_F[family_J])
    families: dict[int, dict[int, set[Name]]] = defaultdict(lambda: defaultdict(set))
    for j in some_J.tolist():
        if found := name(seen.texts[wording_I[named_J[j]]]):
            families[int(family_J[j])][int(group_J[j])].add(found)
    # words in another order ("Bach Johann") would join two families
    shared = Counter(group for groups in families.values() for group in groups)
    for groups in families.values():
        own = [group for group in groups if shared[group] == 1]
        for a, b in joined([groups[group] for group in own]):
            low, high = sorted((int(root_G[own[a]]), int(root_G[own[b]])))
            for group in own:
                root_G[group] = low if root_G[group] == high else root_G[group]
    return root_G


def _no_name(answer: str) -> str:
    return ""


# what is cut off many texts at once, the form of what is left, and its last name
Trim = Callable[[pa.Array], pa.Array]
Read = Callable[[str], str]
METHODS: dict[str, tuple[Trim, Read, Read]] = {
    "heuristic": (trimmed, form, likely_last),
    "exact": (pc.utf8_trim_whitespace, str.casefold, _no_name),
}
