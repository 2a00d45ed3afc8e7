"""Confidence of many questions with sampled answers: this project's columns beside loops.

    answers = make(questions=200_000, samples=20)      lists of strings with varied wordings
    measure(answers, workers=2)                        seconds for classes and confidences
    scripts("path/of/llm_factuality_tuning")           a loop that calls FactTune's scripts

FactTune's scripts are run from the user's own checkout. `one_by_one` calls this project's own
functions once per question.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa

from facttune_ray.errors import UserError
from facttune_ray.scoring import equivalence
from facttune_ray.scoring.confidence import confidence, confidence_of
from facttune_ray.text.quantities import MONTHS

_SYLLABLES = "ba co de fi gu ha je ki lo mu na or pe ri so tu va we xi zo".split()


def _shorter_name(answer: str) -> str:
    """J. Bach for Johann Sebastian Bach; other answers are returned unchanged."""
    parts = answer.split()
    if len(parts) == 3 and answer.istitle() and answer.replace(" ", "").isalpha():
        return f"{parts[0][0]}. {parts[2]}"
    return answer


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
    _shorter_name,
)


def _word(number: int) -> str:
    parts = [_SYLLABLES[number // 20**i % 20] for i in range(3)]
    return "".join(parts)


def _meaning(kind: int, rng: random.Random) -> str:
    """An answer of one kind: 0 person, 1 year, 2 date, 3 place, 4 number, 5 phrase."""
    if kind == 0:
        names = [_word(rng.randrange(8000)).title() for _ in range(rng.choice((2, 2, 3)))]
        return " ".join(names)
    if kind == 1:
        return str(rng.randint(1700, 2024))
    if kind == 2:
        month = rng.choice(MONTHS).title()
        return f"{month} {rng.randint(1, 28)}, {rng.randint(1850, 2020)}"
    if kind == 3:
        return _word(rng.randrange(8000)).title()
    if kind == 4:
        return f"{rng.randint(1, 900):,}"
    return " ".join(_word(rng.randrange(300)) for _ in range(rng.randint(1, 4)))


def make(questions: int, samples: int, seed: int = 0) -> pa.ListArray:
    """For every question samples of 1 to 8 different answers, the first answer being the likeliest,
    in varied wordings."""
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
    """The work of the stages `classes` and `rewards`."""
    return confidence_of(equivalence.classes_of(answers))


def measure(answers: pa.ListArray, workers: int) -> float:
    """Seconds for `columns`, with the questions split over processes as shards are."""
    if workers == 1:
        started = time.perf_counter()
        columns(answers)
        return time.perf_counter() - started
    share = math.ceil(len(answers) / workers)
    global _parts
    _parts = [answers.slice(i * share, share) for i in range(workers)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(len, [""] * workers)  # wait until the processes have started
        started = time.perf_counter()
        pool.map(_one_part, range(workers), chunksize=1)
        return time.perf_counter() - started


_parts: list[pa.ListArray] = []  # forked processes take their part of this list


def _one_part(number: int) -> int:
    return len(columns(_parts[number])["max_conf"])


def one_by_one(answers: list[list[str]]) -> None:
    """The same functions, one question at a time."""
    for samples in answers:
        confidence(equivalence.classes(samples))


def check(answers: pa.ListArray, questions: int) -> None:
    """Raise where columns and single questions disagree, for the first `questions`."""
    together = equivalence.classes_of(answers).slice(0, questions).to_pylist()
    alone = [equivalence.classes(a) for a in answers.slice(0, questions).to_pylist()]
    if together != alone:
        at = next(i for i in range(questions) if together[i] != alone[i])
        raise AssertionError(f"question {at}: {together[at]} in columns, {alone[at]} alone")


def scripts(folder: str) -> Callable[[list[list[str]]], None]:
    """A loop over `confidence_rewards` of FactTune's scripts, from a checkout of theirs."""
    places = [folder, str(Path(folder, "scoring", "confidence_scoring"))]
    # the scripts import this unpublished module, but confidence_rewards does not use it
    sys.modules["utils_score"] = ModuleType("utils_score")
    vars(sys.modules["utils_score"])["chunk_list"] = None
    sys.path[:0] = places
    try:
        rewards = importlib.import_module("score_metrics").confidence_rewards
    except ImportError as e:
        problem = f"--reference {folder}: {e}: name a checkout, and install scipy and pytz"
        raise UserError(problem) from None
    finally:
        del sys.modules["utils_score"], sys.path[:2]

    def loop(answers: list[list[str]]) -> None:
        for samples in answers:
            rewards(samples)

    return loop
