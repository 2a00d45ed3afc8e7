"""Rewards as the file that FactTune's trainer (factual_dpo) reads.

    rewards/rewards_train_288.json     {"Ada": {"Write a biography of Ada.":
                                         {"responses": ["Ada was ...", "She ..."],
                                          "factscore_avg": [0.667, 1.0],
                                          "aq_max_conf_avg": [0.55, NaN]}}}
    rewards/pairs_count_train_288.txt  a line a reward: "aq_max_conf_avg:  \\t0"

The number is of the topics in the file; our val is their dpoval. The lists of a question are
parallel to its responses. An unknown reward is NaN, as a mean over nothing is there: it compares
with nothing, so it makes no pair. (The trainer's `num_sft_targets=1` takes a NaN for the best
response: use all targets.) A reward that no response has is left out, and so is a question
without a response. Written topic after topic, so a file may be larger than memory; `data.groups`
takes such a file (`interop/given.py`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.sources.topic_files import Rows, by_topic
from facttune_ray.storage.schema import REWARD_COLUMNS

THEIRS = {"train": "train", "val": "dpoval", "test": "test"}  # our split -> the reference's
ASKED = {"neg_ent", "max_conf", "exp_conf", "samp_conf"}  # theirs begin with aq_
KEYS = {c: f"aq_{c}_avg" if c in ASKED else f"{c}_avg" for c in REWARD_COLUMNS}
COLUMNS = {key: column for column, key in KEYS.items()}
Shard = tuple[Rows, Rows, Rows]  # rows of responses, rewards, mixes
Values = dict[str, dict[str, float | None]]  # response_id -> key of the file -> reward


def write(
    folder: str, split: str, shards: Callable[[], Iterable[Shard]], threshold: float = 0.0
) -> int:
    """`rewards_{split}_{topics}.json` and `pairs_count_...txt` under `folder/rewards`.

    `shards` is read twice: first for the rewards that any response of the split has. Rows of
    other splits are left out. Returns the topics written; with none, there is no file. Pairs are
    i < j whose rewards differ by more than `threshold`.
    """
    keys = _keys(split, shards())
    where = Path(folder, "rewards")
    where.mkdir(parents=True, exist_ok=True)
    growing = where / f"rewards_{THEIRS[split]}.json.tmp"
    pairs = dict.fromkeys(keys, 0)
    topics = 0
    try:
        with open(growing, "w", encoding="utf-8") as file:
            for topic, value in _entries(split, shards(), keys):
                text = json.dumps({topic: value}, indent=4, ensure_ascii=False)
                file.write(("{" if not topics else ",") + text[1:-2])
                topics += 1
                for one in value.values():
                    for key in keys:
                        pairs[key] += count_pairs(one[key], threshold)
            file.write("\n}\n")
        if topics:
            name = f"{THEIRS[split]}_{topics}"
            os.replace(growing, where / f"rewards_{name}.json")
            lines = "".join(f"{key}:  \t{count}\n" for key, count in pairs.items())
            (where / f"pairs_count_{name}.txt").write_text(lines, encoding="utf-8")
    finally:
        growing.unlink(missing_ok=True)
    return topics


def _keys(split: str, shards: Iterable[Shard]) -> list[str]:
    """Keys of the rewards that the file has: the columns in their order, then the mixes."""
    found: set[str] = set()
    for responses, rewards, mixes in shards:
        written = {r["response_id"] for r in responses if _written(r, split)}
        for response_id, values in _values(rewards, mixes).items():
            if response_id in written:
                found |= {k for k, v in values.items() if v is not None}
    return [*(k for k in COLUMNS if k in found), *sorted(found - COLUMNS.keys())]


def _written(response: dict, split: str) -> bool:
    return response["split"] == split and response["text"] is not None


def _values(rewards: Rows, mixes: Rows) -> Values:
    found = {r["response_id"]: {KEYS[c]: r[c] for c in REWARD_COLUMNS} for r in rewards}
    for m in mixes:
        key = f"{m['name']}_avg"
        if key in COLUMNS:
            raise UserError(f"rewards.mix.{m['name']}: the file has a reward {key}: rename the mix")
        found.setdefault(m["response_id"], {})[key] = m["value"]
    return found


def _entries(split: str, shards: Iterable[Shard], keys: list[str]) -> Iterator[tuple[str, dict]]:
    """(topic, its entry of the file)"""
    for responses, rewards, mixes in shards:
        values = _values(rewards, mixes)
        for topic, rows in by_topic(r for r in responses if r["split"] == split).items():
            entry: dict[str, dict] = {}
            for r in rows:
                one = entry.setdefault(r["prompt"], {k: [] for k in ("responses", *keys)})
                if r["text"] is not None:
                    one["responses"].append(r["text"])
                    mine = values.get(r["response_id"], {})
                    for key in keys:
                        value = mine.get(key)
                        one[key].append(math.nan if value is None else value)
            entry = {q: one for q, one in entry.items() if one["responses"]}
            if entry:
                yield topic, entry
