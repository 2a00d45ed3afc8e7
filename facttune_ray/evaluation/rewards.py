"""Figures of rewards: number of pairs, agreement with each other, confidence against verdicts.

    moments(root / "base/tune/rewards", ["factscore"])   ->  {"factscore": (0.57, 0.31)}
    scope = Scope("base/tune")
    columns(root, scope, cfg.groups)    ->  {"max_conf": {"responses": 1500, "mean": 0.61,
                                             "sd": 0.12, "pairs": 6690}, ...}
    confidence(root, scope)             ->  {"max_conf": {"facts": 4100, "auroc": 0.87, "ece": 0.09,
                                             "prr": 0.7, "bins": [{"low": 0.0, ...}, ...]}, ...}
    agreement(root, scope)              ->  {"names": [...], "spearman": [[...]], "order": [[...]]}

Tables are read shard by shard; memory holds numbers only.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from facttune_ray.config import GroupsConfig
from facttune_ray.evaluation.agreement import auroc, reliability, reward_agreement, risk_coverage
from facttune_ray.evaluation.breakdowns import Scope, shards_of
from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.scoring.units import UNIT_COLUMNS, by_id, of_question
from facttune_ray.storage import tables
from facttune_ray.storage.schema import REWARD_COLUMNS
from facttune_ray.storage.tables import Folder

PROBABILITIES = ("max_conf", "samp_conf", "p_true")  # scores that are probabilities of a true fact


def moments(folder: Folder, names: list[str]) -> dict[str, tuple[float, float]]:
    """(mean, standard deviation) of each column over the train responses that have a value."""
    sums = {name: np.zeros(3) for name in names}  # of ones, of values, of squares
    for shard in range(tables.manifest(folder)["shards"]):
        table = tables.read_part(folder, shard, ["split", *names])
        table = table.filter(pc.equal(table["split"], "train"))
        for name in names:
            values = table[name].drop_null().to_numpy()
            sums[name] += len(values), values.sum(), np.square(values).sum()
    return {name: _moments(*three.tolist()) for name, three in sums.items()}


def _moments(n: float, total: float, squares: float) -> tuple[float, float]:
    if not n:
        return 0.0, 0.0
    mean = total / n
    variance = squares / n - mean * mean
    rounding = 1e-12 * max(1.0, mean * mean)  # the computed variance of a constant
    return mean, math.sqrt(variance) if variance > rounding else 0.0


def columns(root: Folder, scope: Scope, groups: GroupsConfig) -> dict[str, dict]:
    """For each reward, mixes included: the train responses that have it, mean, sd, and the pairs
    that the stage `groups` makes with it (equal responses of a prompt count as one)."""
    values: dict[str, list[float]] = defaultdict(list)
    pairs: Counter[str] = Counter()
    for texts, rewards in _values(root, scope):
        prompts: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for name, row, value in rewards:
            values[name].append(value)
            if text := texts[row["response_id"]]:
                prompts[name, row["prompt_id"]].setdefault(text, value)
        for (name, _), unique in prompts.items():
            values_N = list(unique.values())
            pairs[name] += count_pairs(values_N, groups.threshold, groups.max_pairs)
    return {
        name: {
            "responses": len(values_N),
            "mean": float(np.mean(values_N)),
            "sd": float(np.std(values_N)),
            "pairs": pairs[name],
        }
        for name, values_N in values.items()
    }


def _values(
    root: Folder, scope: Scope
) -> Iterator[tuple[dict[str, str], list[tuple[str, dict, float]]]]:
    """Shard by shard: texts by response_id, and every known (reward, row, value) of train."""
    for rows in _shards(root, scope, ("responses", "rewards", "mixes")):
        texts = {r["response_id"]: r["text"] for r in rows["responses"]}
        rewards = [(n, r, r.get(n)) for r in rows["rewards"] for n in REWARD_COLUMNS]
        rewards += [(r["name"], r, r["value"]) for r in rows["mixes"]]
        yield texts, [(n, r, v) for n, r, v in rewards if r["split"] == "train" and v is not None]


def agreement(root: Folder, scope: Scope) -> dict:
    """`reward_agreement` of the rewards of train responses; {} with fewer than two rewards."""
    known: dict[str, dict[int, float]] = defaultdict(dict)
    row_of: dict[str, int] = {}  # by response_id
    prompts: list[int] = []
    prompt_ids: dict[str, int] = {}
    for _, rewards in _values(root, scope):
        for name, row, value in rewards:
            i = row_of.setdefault(row["response_id"], len(prompts))
            if i == len(prompts):
                prompts.append(prompt_ids.setdefault(row["prompt_id"], len(prompt_ids)))
            known[name][i] = value
    if len(known) < 2:
        return {}
    columns = {name: np.full(len(prompts), np.nan) for name in known}
    for name, values in known.items():
        columns[name][list(values)] = list(values.values())
    return reward_agreement(columns, np.array(prompts))


def confidence(root: Folder, scope: Scope) -> dict[str, dict]:
    """For each confidence: AUROC against the verdicts, risk-coverage and, for a probability, its
    reliability; over distinct facts that have a verdict."""
    scores: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    needed = ("facts", "verdicts", "questions", "classes", "p_true")
    for rows in _shards(root, scope, needed):
        verdicts = {v["fact_id"]: v["supported"] for v in rows["verdicts"]}
        units = by_id(rows["classes"])
        asked = {q["fact_id"]: q for q in rows["questions"]}
        p_true = {p["fact_id"]: p["p_true"] for p in rows["p_true"]}
        for f in rows["facts"]:
            supported = verdicts.get(f["fact_id"])
            if supported is None or f["repeated"]:
                continue
            unit = of_question(asked.get(f["fact_id"]), units)
            columns = {name: unit.get(name) for name in UNIT_COLUMNS}
            for name, value in (columns | {"p_true": p_true.get(f["fact_id"])}).items():
                if value is not None:
                    scores[name].append(value)
                    labels[name].append(supported)
    return {
        name: _of_verdicts(name, np.array(labels[name]), np.array(scores[name])) for name in scores
    }


def _of_verdicts(name: str, labels_F: np.ndarray, scores_F: np.ndarray) -> dict:
    figures = {"facts": len(labels_F), "auroc": auroc(labels_F, scores_F)}
    figures |= risk_coverage(labels_F, scores_F)
    if name not in PROBABILITIES:
        return figures | {"ece": None, "bins": []}
    return figures | reliability(labels_F, scores_F)


def _shards(root: Folder, scope: Scope, names: tuple[str, ...]) -> Iterator[dict[str, list[dict]]]:
    """Rows of these tables, shard by shard; [] for a table that is not finished."""
    for shard in shards_of(root, scope):
        yield {n: tables.rows_if_finished(root / scope.name / n, shard) for n in names}
