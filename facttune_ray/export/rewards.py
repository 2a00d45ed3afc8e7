"""Rewards as the file that FactTune's trainer (factual_dpo) reads.

    rewards/rewards_train_288.json     {"Ada": {"Write a biography of Ada.":
                                         {"responses": ["Ada was ...", "She ..."],
                                          "factscore_avg": [0.667, 1.0],
                                          "aq_max_conf_avg": [0.55, NaN]}}}
    rewards/pairs_count_train_288.txt  one line per reward: "aq_max_conf_avg:  \\t0"

The number is that of the topics in the file; their name for our val is dpoval. The lists of a
question are parallel to its responses. An unknown reward is NaN, as FactTune writes a mean over
nothing: NaN compares as neither larger nor smaller, so it makes no pair. (With the trainer's
`num_sft_targets=1` a NaN would be taken for the best response: use all targets.) A reward that no
response has is left out, and so is a question without a response. The file is written topic by
topic, so it may be larger than memory. `data.groups` reads it (`sources/given.py`).
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

SPLIT_NAMES = {"train": "train", "val": "dpoval", "test": "test"}  # our split -> FactTune's
OF_QUESTIONS = {"neg_ent", "max_conf", "exp_conf", "samp_conf"}  # FactTune's keys begin with aq_
KEYS = {c: f"aq_{c}_avg" if c in OF_QUESTIONS else f"{c}_avg" for c in REWARD_COLUMNS}
Shard = tuple[Rows, Rows, Rows]  # rows of responses, rewards, mixes
Values = dict[str, dict[str, float | None]]  # response_id -> key in the file -> reward


def write(
    folder: str, split: str, shards: Callable[[], Iterable[Shard]], threshold: float = 0.0
) -> int:
    """`rewards_{split}_{topics}.json` and `pairs_count_...txt` under `folder/rewards`.

    `shards` is read twice, first to find the rewards that any response of the split has. Rows of
    other splits are left out. The .txt file counts the pairs i < j whose rewards differ by more
    than `threshold`. Returns the number of topics; without topics no file is written.
    """
    keys = _keys(split, shards())
    where = Path(folder, "rewards")
    where.mkdir(parents=True, exist_ok=True)
    growing = where / f"rewards_{SPLIT_NAMES[split]}.json.tmp"
    pairs = dict.fromkeys(keys, 0)
    topics = 0
    try:
        with open(growing, "w", encoding="utf-8") as file:
            for topic, entry in _entries(split, shards(), keys):
                text = json.dumps({topic: entry}, indent=4, ensure_ascii=False)
                file.write(("{" if not topics else ",") + text[1:-2])
                topics += 1
                for lists in entry.values():
                    for key in keys:
                        pairs[key] += count_pairs(lists[key], threshold)
            file.write("\n}\n")
        if topics:
            name = f"{SPLIT_NAMES[split]}_{topics}"
            os.replace(growing, where / f"rewards_{name}.json")
            lines = "".join(f"{key}:  \t{count}\n" for key, count in pairs.items())
            (where / f"pairs_count_{name}.txt").write_text(lines, encoding="utf-8")
    finally:
        growing.unlink(missing_ok=True)
    return topics


def _keys(split: str, shards: Iterable[Shard]) -> list[str]:
    """Keys of the rewards in the file: the columns in their order, then the mixes by name."""
    known: set[str] = set()
    for responses, rewards, mixes in shards:
        written = {
            r["response_id"] for r in responses if r["split"] == split and r["text"] is not None
        }
        for response_id, values in _values(rewards, mixes).items():
            if response_id in written:
                known |= {k for k, v in values.items() if v is not None}
    columns = list(KEYS.values())
    return [*(k for k in columns if k in known), *sorted(known - {*columns})]


def _values(rewards: Rows, mixes: Rows) -> Values:
    values = {r["response_id"]: {KEYS[c]: r.get(c) for c in REWARD_COLUMNS} for r in rewards}
    for m in mixes:
        key = f"{m['name']}_avg"
        if key in KEYS.values():
            raise UserError(f"rewards.mix.{m['name']}: the file has a reward {key}: rename the mix")
        values.setdefault(m["response_id"], {})[key] = m["value"]
    return values


def _entries(split: str, shards: Iterable[Shard], keys: list[str]) -> Iterator[tuple[str, dict]]:
    """(topic, its entry in the file)"""
    for responses, rewards, mixes in shards:
        values = _values(rewards, mixes)
        for topic, rows in by_topic(r for r in responses if r["split"] == split).items():
            entry: dict[str, dict] = {}
            for r in rows:
                if r["text"] is None:
                    continue
                lists = entry.setdefault(r["prompt"], {k: [] for k in ("responses", *keys)})
                lists["responses"].append(r["text"])
                rewards_of = values.get(r["response_id"], {})
                for key in keys:
                    value = rewards_of.get(key)
                    lists[key].append(math.nan if value is None else value)
            if entry:
                yield topic, entry
