"""Preferences as JSON lines that TRL's trainers and `datasets` read.

    preferences/train.jsonl  {"prompt": "Write a biography of Ada.\\n", "chosen": "Ada was ...",
                              "rejected": "She ...", "chosen_reward": 1.0,
                              "rejected_reward": 0.667, "topic": "Ada"}
    grouped/train.jsonl      {"prompt": "Write ...", "responses": ["Ada was ...", "She ..."],
                              "rewards": [1.0, 0.667], "topic": "Ada"}

    datasets.load_dataset("json", data_files={"train": "preferences/train.jsonl"})

There is one file per split. A grouped line holds each response of a prompt once and stands for the
same pairs as the lines of the first file. A prompt ends with the newline that this package puts
between prompt and response, because TRL joins the two without one. In the conversational form the
chat template separates them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from facttune_ray.scoring.pairs import pairs

PAIRS, GROUPED = "preferences", "grouped"


def preferences(group: dict, threshold: float = 0.0, max_pairs: int = 0) -> Iterator[dict]:
    """One row for each pair that `scoring.pairs` makes of a `groups` row."""
    texts, rewards = group["responses"], group["rewards"]
    for win, lose in pairs(rewards, threshold, max_pairs):
        row = {"prompt": group["prompt"], "chosen": texts[win], "rejected": texts[lose]}
        row |= {"chosen_reward": rewards[win], "rejected_reward": rewards[lose]}
        yield row | {"topic": group["topic"]}


def grouped(group: dict) -> dict:
    """A `groups` row without its ids."""
    return {k: group[k] for k in ("prompt", "responses", "rewards", "topic")}


def conversational(row: dict) -> dict:
    """A pair's texts as chat messages, to which TRL applies the chat template. A prompt of several
    turns is a list of messages already."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = {k: role for k, role in roles.items() if isinstance(row[k], str)}
    return row | {k: [{"role": role, "content": row[k]}] for k, role in texts.items()}


def _prompt(group: dict, chat: bool) -> str | list[dict]:
    if chat and (turns := group.get("turns")):  # not a column of older tables
        return turns
    return group["prompt"] + ("" if chat else "\n")


def write(
    folder: str,
    groups: Iterable[dict],
    threshold: float = 0.0,
    max_pairs: int = 0,
    chat: bool = False,
) -> dict[str, int]:
    """`preferences/{split}.jsonl` and `grouped/{split}.jsonl` from rows of `groups`.

    `chat`: pairs in the conversational form. Groups are read one after the other, and the files
    appear when all groups are written. Returns the number of pairs of each split.
    """
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        files: dict[Path, TextIO] = {}

        def put(kind: str, split: str, row: dict[str, Any]) -> None:
            path = Path(folder, kind, f"{split}.jsonl")
            if path not in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = open(f"{path}.tmp", "w", encoding="utf-8")
                files[path] = stack.enter_context(file)
            files[path].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

        for group in groups:
            group = group | {"prompt": _prompt(group, chat)}
            rows = list(preferences(group, threshold, max_pairs))
            if not rows:
                continue
            counts[group["split"]] += len(rows)
            put(GROUPED, group["split"], grouped(group))
            for row in rows:
                put(PAIRS, group["split"], conversational(row) if chat else row)
    for path in files:
        os.replace(f"{path}.tmp", path)
    return counts
