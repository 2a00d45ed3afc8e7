"""Preferences as JSON lines, which TRL's trainers and `datasets` read.

    preferences/train.jsonl  {"prompt": "Write a biography of Ada.\\n", "chosen": "Ada was ...",
                              "rejected": "She ...", "chosen_reward": 1.0,
                              "rejected_reward": 0.667, "topic": "Ada"}
    grouped/train.jsonl      {"prompt": "Write ...", "responses": ["Ada was ...", "She ..."],
                              "rewards": [1.0, 0.667], "topic": "Ada"}

    datasets.load_dataset("json", data_files={"train": "preferences/train.jsonl"})

A file a split. A grouped line holds a prompt's responses once; its pairs are those of the first
file. A prompt ends with the newline that this package puts between prompt and response, because
TRL joins the two as they stand; in the conversational form the chat template does that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from facttune_ray.scoring.pairs import pairs

PAIRS, GROUPED = "preferences", "grouped"


def preferences(group: dict, threshold: float = 0.0, most: int = 0) -> Iterator[dict]:
    """Rows of the pairs of a `groups` row, as `scoring.pairs` makes them."""
    texts, rewards = group["responses"], group["rewards"]
    for win, lose in pairs(rewards, threshold, most):
        row = {"prompt": group["prompt"], "chosen": texts[win], "rejected": texts[lose]}
        row |= {"chosen_reward": rewards[win], "rejected_reward": rewards[lose]}
        yield row | {"topic": group["topic"]}


def grouped(group: dict) -> dict:
    """A `groups` row without its ids."""
    return {k: group[k] for k in ("prompt", "responses", "rewards", "topic")}


def conversational(row: dict) -> dict:
    """A pair's texts as chat messages, which TRL puts through the chat template."""
    said = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return row | {k: [{"role": role, "content": row[k]}] for k, role in said.items()}


def write(
    folder: str,
    groups: Iterable[dict],
    threshold: float = 0.0,
    most: int = 0,
    chat: bool = False,
) -> dict[str, int]:
    """`preferences/{split}.jsonl` and `grouped/{split}.jsonl` from rows of `groups`.

    `chat`: pairs in the conversational form. Groups are taken one after the other; the files
    appear when all are written. Returns the pairs of each split.
    """
    count: dict[str, int] = {}
    with ExitStack() as stack:
        files: dict[Path, TextIO] = {}

        def put(kind: str, split: str, row: dict[str, Any]) -> None:
            path = Path(folder, kind, f"{split}.jsonl")
            if path not in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                opened = open(f"{path}.tmp", "w", encoding="utf-8")
                files[path] = stack.enter_context(opened)
            files[path].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

        for group in groups:
            group = group | {"prompt": group["prompt"] + ("" if chat else "\n")}
            found = list(preferences(group, threshold, most))
            if not found:
                continue
            count[group["split"]] = count.get(group["split"], 0) + len(found)
            put(GROUPED, group["split"], grouped(group))
            for row in found:
                put(PAIRS, group["split"], conversational(row) if chat else row)
    for path in files:
        os.replace(f"{path}.tmp", path)
    return count
