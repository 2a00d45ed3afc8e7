"""Which sampled answers mean the same.

    classes(["the cello", "Cello", "harp", ""])               ->  [0, 0, 1, -1]
    shares(["the cello", "Cello", "harp", ""], ["cellos"])    ->  [0.667]

    exact       equal texts, case and outer spaces aside
    heuristic   equal forms (`scoring/forms.py`), and names with and without their middle parts
    reference   FactTune's scripts bit by bit, faults included (`scoring/reference_classes.py`)

Classes do not depend on the order of the answers (those of `reference` do). An empty answer means
nothing: it is in no class (-1). A name that fits two people of the unit ("J. Bach" beside "Johann
Bach" and "Joseph Bach") is nobody's, so that no class holds two names that cannot be one person's.

`classes_of` and `shares_of` take many units at once: every distinct text is read once, and units
are compared as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.scoring import reference_classes
from facttune_ray.scoring.forms import Form, Name, form, last_name, same_name, trimmed


def classes(answers: Sequence[str | None], method: str = "heuristic") -> list[int]:
    """Class of each answer of one unit, numbered by first appearance; -1 for an empty one."""
    return classes_of(pa.array([answers], pa.list_(pa.string())), method)[0].as_py()


def shares(
    answers: Sequence[str | None], originals: Sequence[str | None], method: str = "heuristic"
) -> list[float | None]:
    """Of each original: the share of the non-empty answers that mean the same. None: there is no
    such answer, or the original is empty."""
    strings = pa.list_(pa.string())
    return shares_of(pa.array([answers], strings), pa.array([originals], strings), method)[
        0
    ].as_py()


def same_answer(a: str | None, b: str | None, method: str = "heuristic") -> bool:
    """Whether two answers by themselves mean the same."""
    first, second = classes([a, b], method)
    return first == second != -1


def classes_of(answers: pa.ListArray, method: str = "heuristic") -> pa.ListArray:
    """`classes` of many units: lists of strings -> lists of int32; a null list gives null."""
    if method == "reference":
        found = [a if a is None else reference_classes.classes(a) for a in answers.to_pylist()]
        return pa.array(found, pa.list_(pa.int32()))
    flat = _flatten(answers)
    forms_N = _forms(flat.texts, method)
    class_N = _classes(flat.unit_N, forms_N)
    return pa.ListArray.from_arrays(flat.offsets, pa.array(class_N, pa.int32()), mask=flat.null)


def shares_of(
    answers: pa.ListArray, originals: pa.ListArray, method: str = "heuristic"
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
    placed = iter(classes_of(pa.array(asked, pa.list_(pa.string())), method).to_pylist())
    shared = [[_share(next(placed)) for _ in some or ()] for some in wanted]
    return pa.array(shared, pa.list_(pa.float64()))


def _share(classes: list[int]) -> float | None:
    """Share of the last one's class among the others."""
    others = [c for c in classes[:-1] if c >= 0]
    return others.count(classes[-1]) / len(others) if others and classes[-1] >= 0 else None


# ---------------------------------------------------------------- many units: N answers

_NO_NAME = -1


class Flat(NamedTuple):
    """Lists, one behind the other."""

    texts: pa.Array  # [N]
    unit_N: np.ndarray  # unit of each answer
    offsets: pa.Array
    null: pa.Array | None  # units that are null


class Forms(NamedTuple):
    """Of N answers: the number of each's form, and what every number stands for."""

    form_N: np.ndarray  # -1: an empty answer
    key_F: np.ndarray  # equal keys mean the same
    last_F: np.ndarray  # number of the last name; -1: it is no name
    names: list[Name]  # F


def _flatten(answers: pa.ListArray) -> Flat:
    if isinstance(answers, pa.ChunkedArray):
        answers = (
            pa.concat_arrays(answers.chunks) if answers.num_chunks else pa.array([], answers.type)
        )
    lengths = pc.fill_null(pc.list_value_length(answers), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    null = answers.is_null() if answers.null_count else None
    return Flat(
        texts=pc.list_flatten(answers),
        unit_N=np.repeat(np.arange(len(answers)), lengths),
        offsets=pa.array(offsets),
        null=null,
    )


def _forms(texts: pa.Array, method: str) -> Forms:
    """Every distinct text read once."""
    coded = texts.dictionary_encode()
    trim, read = METHODS[method]
    short = trim(coded.dictionary).dictionary_encode()
    keys: dict[str, int] = {"": -1}
    lasts: dict[str, int] = {}
    forms: dict[str | Form, int] = {}
    of_text, key_F, last_F = [], [], []
    names: list[Name] = []
    for text in short.dictionary.to_pylist():
        key, name = found = read(text)
        number = forms.setdefault(found if name else key, len(names))
        if number == len(names):
            key_F.append(keys.setdefault(key, len(keys) - 1))
            last_F.append(lasts.setdefault(last_name(name), len(lasts)) if name else _NO_NAME)
            names.append(name)
        of_text.append(number)
    keys_F = np.array(key_F, dtype=np.int64)
    of_short = np.append(np.array(of_text, dtype=np.int64), -1)
    place_N = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    form_N = np.append(of_short[short.indices.to_numpy(zero_copy_only=False)], -1)[place_N]
    form_N = np.where(np.append(keys_F, -1)[form_N] < 0, -1, form_N)
    return Forms(form_N, keys_F, np.array(last_F, dtype=np.int64), names)


def _classes(unit_N: np.ndarray, forms: Forms) -> np.ndarray:
    """Class of each answer within its unit, numbered by first appearance; -1: empty."""
    class_N = np.full(len(unit_N), -1, dtype=np.int32)
    (some_M,) = np.nonzero(forms.form_N >= 0)
    if not len(some_M):
        return class_N
    unit_M, form_M = unit_N[some_M], forms.form_N[some_M]
    keys = int(forms.key_F.max()) + 1
    # a group: the answers of one unit with one key
    groups_G, first_G, group_M = np.unique(
        unit_M * keys + forms.key_F[form_M], return_index=True, return_inverse=True
    )
    root_G = _join_names(unit_M, form_M, group_M, forms, len(groups_G))
    if root_G is not None:
        group_M = root_G[group_M]
        _, first_G, group_M = np.unique(group_M, return_index=True, return_inverse=True)
    # number groups by first appearance; those of a unit are neighbours then
    order_G = np.argsort(first_G, kind="stable")
    unit_G = unit_M[first_G[order_G]]
    rank_G = np.arange(len(order_G)) - np.searchsorted(unit_G, unit_G)
    number_G = np.empty(len(order_G), dtype=np.int32)
    number_G[order_G] = rank_G
    class_N[some_M] = number_G[group_M]
    return class_N


def _join_names(
    unit_M: np.ndarray, form_M: np.ndarray, group_M: np.ndarray, forms: Forms, groups: int
) -> np.ndarray | None:
    """Group that each group belongs to, after names of one person were joined; None: none were."""
    last_M = forms.last_F[form_M]
    (named,) = np.nonzero(last_M >= 0)
    if not len(named):
        return None
    lasts = int(last_M.max()) + 1
    family = unit_M[named] * lasts + last_M[named]  # answers of one unit with one last name
    pairs, at = np.unique(np.stack([family, form_M[named]]), axis=1, return_index=True)
    family_P, form_P = pairs
    starts = np.flatnonzero(np.append(True, family_P[1:] != family_P[:-1]))
    ends = np.append(starts[1:], len(family_P))
    root = None
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start < 2:
            continue
        if root is None:
            root = np.arange(groups)
        members = [forms.names[f] for f in form_P[start:end]]
        owners = group_M[named[at[start:end]]]
        for a, b in joined(members):
            low, high = sorted((root[owners[a]], root[owners[b]]))
            root[root == high] = low
    return root


def joined(names: Sequence[Name]) -> list[tuple[int, int]]:
    """Pairs of names that are one person's.

    A name that fits two others which do not fit each other is ambiguous and in no pair. So all
    names of a component fit each other: by induction along a path, whose inner names are in pairs.
    """
    n = len(names)
    fits = [[i != j and same_name(names[i], names[j]) for j in range(n)] for i in range(n)]
    clear = [
        all(fits[a][b] for a in range(n) for b in range(a) if fits[i][a] and fits[i][b])
        for i in range(n)
    ]
    return [(i, j) for i in range(n) for j in range(i) if fits[i][j] and clear[i] and clear[j]]


def _exact(answer: str) -> Form:
    return answer.casefold(), ()


# what is cut off at once, and the form of what is left
METHODS: dict[str, tuple[Callable[[pa.Array], pa.Array], Callable[[str], Form]]] = {
    "heuristic": (trimmed, form),
    "exact": (pc.utf8_trim_whitespace, _exact),
}
