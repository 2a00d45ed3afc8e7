"""Confidence of many questions with sampled answers: this project's columns beside loops.

    answers = make(questions=200_000, samples=20)      lists of strings, wordings varied
    measure(answers, workers=2)                        seconds, of classes and confidences
    reference(answers, "path/of/llm_factuality_tuning")

FactTune's scripts are run from a checkout of theirs, outside of this package; `one_by_one` is their
rules in our wording, a question at a time, for where there is no checkout.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from facttune_ray.errors import UserError
from facttune_ray.scoring import equivalence, reference_classes
from facttune_ray.scoring.confidence import confidence_of
from facttune_ray.scoring.forms import MONTHS

_SYLLABLES = "ba co de fi gu ha je ki lo mu na or pe ri so tu va we xi zo".split()
_WORDINGS: tuple[Callable[[str], str], ...] = (
    str,
    str,
    str,
    str,
    lambda a: f"{a}.",
    lambda a: f"the {a}",
    lambda a: f"in {a}",
    str.lower,
    lambda a: f" {a} ",
    lambda a: "",
)


def _word(number: int) -> str:
    parts = [_SYLLABLES[number // 20**i % 20] for i in range(3)]
    return "".join(parts)


def _meaning(kind: int, rng: random.Random) -> str:
    """An answer of a kind of question: person, year, date, place, number, phrase."""
    if kind == 0:
        names = [_word(rng.randrange(8000)).title() for _ in range(rng.choice((2, 2, 3)))]
        return " ".join(names)
    if kind == 1:
        return str(rng.randint(1700, 2024))
    if kind == 2:
        month = rng.choice(MONTHS.split()).title()
        return f"{month} {rng.randint(1, 28)}, {rng.randint(1850, 2020)}"
    if kind == 3:
        return _word(rng.randrange(8000)).title()
    if kind == 4:
        return f"{rng.randint(1, 900):,}"
    return " ".join(_word(rng.randrange(300)) for _ in range(rng.randint(1, 4)))


def make(questions: int, samples: int, seed: int = 0) -> pa.ListArray:
    """Of every question 1 to 8 different answers, the first the likeliest, in varied wordings."""
    rng = random.Random(seed)
    rows = []
    for _ in range(questions):
        kind = rng.randrange(6)
        meanings = [_meaning(kind, rng) for _ in range(rng.randint(1, 8))]
        weights = [1 / rank for rank in range(1, len(meanings) + 1)]
        drawn = rng.choices(meanings, weights, k=samples)
        rows.append([rng.choice(_WORDINGS)(a) for a in drawn])
    return pa.array(rows, pa.list_(pa.string()))


def columns(answers: pa.ListArray) -> dict[str, pa.Array]:
    """What the stages `classes` and `rewards` do."""
    return confidence_of(equivalence.classes_of(answers))


def measure(answers: pa.ListArray, workers: int) -> float:
    """Seconds of `columns`, the questions split over processes, as shards are."""
    if workers == 1:
        started = time.perf_counter()
        columns(answers)
        return time.perf_counter() - started
    share = math.ceil(len(answers) / workers)
    global _parts
    _parts = [answers.slice(i * share, share) for i in range(workers)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(len, [""] * workers)  # the processes are there
        started = time.perf_counter()
        pool.map(_one_part, range(workers), chunksize=1)
        return time.perf_counter() - started


_parts: list[pa.ListArray] = []  # what forked processes take their part of


def _one_part(number: int) -> int:
    return len(columns(_parts[number])["max_conf"])


def one_by_one(answers: list[list[str]]) -> list[dict[str, float]]:
    """The reference's rules, a question at a time."""
    found = []
    for samples in answers:
        counts = Counter(reference_classes.classes(samples))
        p = np.array(list(counts.values())) / len(samples)
        entropy = float((p * np.log(p)).sum())
        found.append({"neg_ent": entropy, "max_conf": p.max(), "exp_conf": (p * p).sum()})
    return found


def scripts(folder: str) -> Callable[[list[list[str]]], list[dict[str, float]]]:
    """`confidence_rewards` of FactTune's scripts, by their own modules of a checkout."""
    sys.path.insert(0, folder)
    try:
        parsing = importlib.import_module("parsing")
        entropy = importlib.import_module("scipy.stats").entropy
    except ImportError as e:
        raise UserError(f"--reference {folder}: {e}: name a checkout, and install scipy") from None
    finally:
        sys.path.remove(folder)

    def loop(answers: list[list[str]]) -> list[dict[str, float]]:
        found = []
        for samples in answers:
            normal = [parsing.normalize_sample(s) for s in samples]
            weights = [1.0 / len(normal)] * len(normal)
            shares = list(parsing.build_equiv_class_heuristics(normal, weights).values())
            found.append(
                {
                    "neg_ent": -entropy(shares),
                    "max_conf": max(shares),
                    "exp_conf": np.sum(np.array(shares) ** 2),
                }
            )
        return found

    return loop
