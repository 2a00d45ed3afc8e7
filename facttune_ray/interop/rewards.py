"""Rewards as the file that FactTune's trainer (factual_dpo) reads, written and read.

    rewards/rewards_train_288.json     {"Ada": {"Write a biography of Ada.":
                                         {"responses": ["Ada was ...", "She ..."],
                                          "factscore_avg": [0.667, 1.0],
                                          "aq_max_conf_avg": [0.55, NaN]}}}
    rewards/pairs_count_train_288.txt  a line a reward: "aq_max_conf_avg:  \\t0"

The number is of the topics in the file; our val is their dpoval. The lists of a question are
parallel to its responses. An unknown reward is NaN, as a mean over nothing is there: it compares
with nothing, so it makes no pair. (The trainer's `num_sft_targets=1` takes a NaN for the best
response: use all targets.) A reward that no response has is left out, and so is a question
without a response. What the trainer has no place for stands in each question under "facttune".
Both directions take topic after topic, so a file may be larger than memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from facttune_ray.errors import UserError
from facttune_ray.interop.tuning import OWN, SPLITS, Rows, by_topic
from facttune_ray.schema import REWARD_COLUMNS, TABLES
from facttune_ray.scoring.pairs import count_pairs

THEIRS = {"train": "train", "val": "dpoval", "test": "test"}  # our split -> the reference's
ASKED = {"neg_ent", "max_conf", "exp_conf", "samp_conf"}  # theirs begin with aq_
KEYS = {c: f"aq_{c}_avg" if c in ASKED else f"{c}_avg" for c in REWARD_COLUMNS}
COLUMNS = {key: column for column, key in KEYS.items()}
CHUNK = 1 << 20
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
        rewards = list(rewards)
        values = _values(rewards, mixes)
        own = {r["response_id"]: {k: r[k] for k in OF_REWARDS} for r in rewards}
        for topic, rows in by_topic(r for r in responses if r["split"] == split).items():
            entry: dict[str, dict] = {}
            for r in rows:
                one = entry.setdefault(r["prompt"], {k: [] for k in ("responses", *keys, OWN)})
                one[OWN].append(own.get(r["response_id"]))
                if r["text"] is not None:
                    one["responses"].append(r["text"])
                    mine = values.get(r["response_id"], {})
                    for key in keys:
                        value = mine.get(key)
                        one[key].append(math.nan if value is None else value)
            entry = {q: one for q, one in entry.items() if one["responses"]}
            if entry:
                yield topic, entry


# what a row of `rewards` has beside its rewards and what its response tells
OF_REWARDS = [
    name
    for name in TABLES["rewards"].names
    if name not in (*REWARD_COLUMNS, "prompt_id", "topic", "split", "model")
]


# ---------------------------------------------------------------- read


def find(folder: str, split: str) -> str:
    """The one rewards file of a split in a data folder. UserError when there is none, or more."""
    theirs = THEIRS[SPLITS[split]]
    names = sorted({str(p) for p in Path(folder, "rewards").glob(f"rewards_{theirs}_*.json")})
    if len(names) != 1:
        many = f"{len(names)} files, such as {names[0]}" if names else "no file"
        raise UserError(f"{folder}/rewards/rewards_{theirs}_N.json: {many}: name one")
    return names[0]


def read(path: str, responses: Rows) -> Iterator[tuple[list[dict], list[dict]]]:
    """(rows of `rewards`, rows of `mixes`) of each topic of the file that `responses` have.

    A list's place belongs to the response at that place of its prompt, if that has its text, else
    to the next one with this text. A reward that is no column of ours becomes a mix by its name.
    UserError when a list is shorter than the responses (the reference leaves out the rewards of a
    response without facts, so whose is whose is unknown), and for a response that is not there.
    """
    known = by_topic(responses)
    for topic, entry in topics_of(path):
        if topic not in known:
            continue
        rewards: list[dict] = []
        mixes: list[dict] = []
        asked: dict[str, list[dict]] = {}
        for r in known[topic]:
            asked.setdefault(r["prompt"], []).append(r)
        if not isinstance(entry, dict):
            raise UserError(f'{path}: "{topic}": expected {{question: {{"responses": [...]}}}}')
        for question, one in entry.items():
            where = f'{path}: "{topic}": "{question}"'
            if question not in asked:
                raise UserError(f"{where}: no question of the topic: check the split")
            for row, mixed in _rows(one, asked[question], where):
                rewards.append(row)
                mixes += mixed
        yield rewards, mixes


def _rows(one: Any, responses: list[dict], where: str) -> Iterator[tuple[dict, list[dict]]]:
    """(row of `rewards`, its rows of `mixes`) of a question's responses."""
    texts = one.get("responses") if isinstance(one, dict) else None
    if not isinstance(texts, list):
        raise UserError(f'{where}: expected {{"responses": [texts], "factscore_avg": [...]}}')
    lists = {k: v for k, v in one.items() if k not in ("responses", OWN)}
    for key, values in lists.items():
        if not isinstance(values, list) or not all(map(_is_reward, values)):
            raise UserError(f'{where}: "{key}": expected a list of numbers')
        if len(values) != len(texts):
            raise UserError(
                f'{where}: {len(values)} values of "{key}" for {len(texts)} responses: whose '
                f"they are is unknown: make the file again"
            )
    free = [r for r in responses if r["text"] is not None]
    at: dict[str, int] = {}  # response_id -> its place in the lists
    for i, text in enumerate(texts):
        same = [r for r in [*free[i : i + 1], *free] if r["text"] == text]
        mine = next((r["response_id"] for r in same if r["response_id"] not in at), None)
        if mine is None:
            raise UserError(f'{where}: no response has the text "{str(text):.40}..."')
        at[mine] = i
    own = {o["response_id"]: o for o in one.get(OWN) or () if o}
    for r in responses:
        response_id = r["response_id"]
        if response_id not in at and response_id not in own:
            continue
        place = at.get(response_id)
        found = {k: None if place is None else _known(v[place]) for k, v in lists.items()}
        ids = {k: r[k] for k in ("response_id", "prompt_id", "topic", "split")}
        words = None if r["text"] is None else len(r["text"].split())
        row = dict.fromkeys(TABLES["rewards"].names) | ids | {"model": r["model"], "words": words}
        row |= {"error": r["error"]} | own.get(response_id, {})
        row |= {c: found[key] for c, key in KEYS.items() if key in found}
        yield (
            row,
            [
                ids | {"name": key.removesuffix("_avg"), "value": value, "error": None}
                for key, value in found.items()
                if key not in COLUMNS
            ],
        )


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def topics_of(path: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of a JSON file that is one object, read piece by piece."""
    try:
        with open(path, encoding="utf-8") as file:
            yield from _members(file)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}: name a rewards file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except ValueError as e:
        raise UserError(f"{path}: not readable as JSON: {e}") from None


def _members(file: TextIO, chunk: int = CHUNK) -> Iterator[tuple[str, Any]]:
    """`chunk`: characters read at a time, more within a value that is longer."""
    decode, text, ended = json.JSONDecoder().raw_decode, "", False

    def more() -> None:
        nonlocal text, ended
        piece = file.read(max(chunk, len(text)))  # twice as much: a long value is tried log times
        text, ended = text + piece, not piece

    def peek() -> str:
        nonlocal text
        while not (text := text.lstrip()) and not ended:
            more()
        return text[:1]

    def take(wanted: str) -> str:
        """The next mark, which has to be one of `wanted`."""
        nonlocal text
        mark = peek()
        if not mark or mark not in wanted:
            raise ValueError(f"expected one of {wanted} before {text[:20]!r}")
        text = text[1:]
        return mark

    def value() -> Any:
        nonlocal text
        peek()
        while True:
            try:
                found, end = decode(text)
            except ValueError:
                if ended:
                    raise
            else:
                if end < len(text) or ended:  # else a number may go on
                    text = text[end:]
                    return found
            more()

    mark = take("{")
    if peek() == "}":
        return
    while mark != "}":
        key = value()
        take(":")
        yield key, value()
        mark = take(",}")
