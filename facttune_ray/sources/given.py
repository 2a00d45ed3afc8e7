"""Preference files of one's own -> rows of `groups`.

in   {"prompt": "Who is Ada?", "responses": ["Ada was ...", "She ..."], "rewards": [1.0, 0.5]}
     {"prompt": "Who is Ada?", "responses": ["Ada was ...", "She ..."], "pairs": [[0, 1]]}
     {"prompt": "Who is Ada?", "chosen": "Ada was ...", "rejected": "She ..."}
out  {"prompt_id": "8f2c", "topic": "Who is Ada?", "prompt": "Who is Ada?", "pairs": 1,
      "responses": ["Ada was ...", "She ..."], "rewards": [1.0, -1.0], "given_pairs": [[0, 1]], ...}

Each row of a file is one of the three (JSONL, JSON, Parquet or CSV: `interop.records`); another
key than "rewards" may hold the rewards (`data.reward`), as in FactTune's own files; a `topic`
column is kept, else the prompt is the topic. Texts may be chat messages, as TRL's conversational
form has them, where the prompt is one user message. Rows of chosen and rejected with one prompt
become one group, so each response is run once. What stands twice counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from facttune_ray.config import GroupsConfig
from facttune_ray.errors import RowError, UserError
from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.sources import records
from facttune_ray.storage.schema import digest

FORMS = 'give "prompt" with "responses" and "rewards" (or "pairs"), or with "chosen", "rejected"'
REWARDS = "rewards"
Pair = tuple[int, int]  # indices of responses: winner, loser


@dataclass
class Group:
    """One prompt while its rows are read."""

    topic: str
    prompt: str
    whole: bool = False  # it stands in one row
    texts: dict[str, int] = field(default_factory=dict)  # text -> its index
    rewards: list[float] | None = None  # None: the file gives pairs
    pairs: dict[Pair, None] = field(default_factory=dict)  # in order, each once

    def index(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


@dataclass(frozen=True)
class Found:
    groups: list[dict]  # rows of `groups`
    left_out: int  # rows that make no pair, or the same as another


def files(given: Any) -> list[str]:
    """`data.groups` as a list of files; UserError when it is neither one nor several."""
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(f, str) and f for f in listed):
        raise UserError(f"data.groups={given!r}: name a file, or a list of files")
    if not listed:
        raise UserError("data.groups is empty: name a file of preferences")
    return listed


def recipe(files: Sequence[str], reward: str = REWARDS) -> dict[str, str]:
    """Hashes of the files, which count by content and not by path; what holds their rewards."""
    named = {"data.reward": reward} if reward != REWARDS else {}
    return named | {
        f"data.groups[{i}]": records.content_digest(file) for i, file in enumerate(files)
    }


def read(files: Iterable[str], cfg: GroupsConfig, reward: str = REWARDS) -> Found:
    """All groups with a pair, in the order of their first rows. `reward`: the key of a row's
    rewards. UserError names file and row of what is wrong, and says why when nothing is left."""
    made: dict[str, Group] = {}
    rows = useless = unknown = 0
    for file in files:
        for where, row in records.read(file):
            rows += 1
            try:
                row = _with_rewards(row, reward)
                useless += not _add(made, row, cfg)
                unknown += _unknown(row)
            except RowError as e:
                raise UserError(f"{where}: {e}") from None
    found = [r for key, g in made.items() if (r := _row(key, g, cfg))["pairs"]]
    useless += sum(g.whole for g in made.values()) - sum(made[r["prompt_id"]].whole for r in found)
    if not found:
        what = ", ".join(files)
        if unknown == rows:
            raise UserError(f"{what}: every reward is null: nothing to train on")
        raise UserError(
            f"{what}: no usable pair in {rows:,} rows: every pair is of equal texts, or its "
            f"rewards differ by no more than groups.threshold={cfg.threshold}"
        )
    return Found(found, useless)


def _with_rewards(row: records.Row, key: str) -> records.Row:
    """The row with its rewards by their usual name. In FactTune's files NaN is unknown, as null."""
    if key == REWARDS:
        return row
    if key not in row:
        others = sorted(k for k, v in row.items() if isinstance(v, list) and k != "responses")
        raise RowError(f"no data.reward={key}; its lists are {', '.join(others) or 'none'}")
    rewards = row[key]
    if isinstance(rewards, list):
        rewards = [None if isinstance(r, float) and math.isnan(r) else r for r in rewards]
    return {k: v for k, v in row.items() if k != key} | {REWARDS: rewards}


def _unknown(row: Mapping[str, Any]) -> bool:
    rewards = row.get("rewards")
    return isinstance(rewards, list) and all(r is None for r in rewards)


def _add(made: dict[str, Group], row: Mapping[str, Any], cfg: GroupsConfig) -> bool:
    """Put a row of a file to its group. -> whether it brought anything; RowError when it is none of
    the three forms."""
    there = {k for k, v in row.items() if v is not None}
    if not there & {"responses", "chosen", "rejected"}:
        raise RowError(f"{FORMS}; it has {', '.join(sorted(there)) or 'nothing'}")
    pairwise = "responses" not in there
    lacking = ({"chosen", "rejected"} if pairwise else {"prompt"}) - there
    if not pairwise and not there & {"rewards", "pairs"}:
        lacking = {"rewards"}
    if pairwise and "prompt" not in there and not isinstance(row.get("chosen"), list):
        lacking = {"prompt"}
    if lacking:
        raise RowError(f'no "{min(lacking)}": {FORMS}')
    if pairwise or "pairs" in there:
        _no_rewards(cfg)
    return _add_pair(made, row) if pairwise else _add_group(made, row)


def _no_rewards(cfg: GroupsConfig) -> None:
    plain = GroupsConfig()
    for key, value in vars(cfg).items():
        if value != getattr(plain, key):
            raise RowError(f"groups.{key}={value} is about rewards, and this row has pairs")


def _add_pair(made: dict[str, Group], row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    if prompt is None:  # TRL's form without one: the messages that both begin with
        prompt = row["chosen"][:-1]
    asked = _prompt(prompt)
    texts = [_response(k, row[k], asked) for k in ("chosen", "rejected")]
    topic = _topic(row, asked)
    group = made.setdefault(digest(topic, asked), Group(topic, asked))
    return bool(all(texts)) and _prefer(group, texts[0], texts[1])


def _prefer(group: Group, chosen: str, rejected: str) -> bool:
    if chosen == rejected:
        return False
    pair = (group.index(chosen), group.index(rejected))
    new = pair not in group.pairs
    group.pairs[pair] = None
    return new


def _add_group(made: dict[str, Group], row: Mapping[str, Any]) -> bool:
    asked = _prompt(row["prompt"])
    texts = _list(row, "responses")
    responses = [_response(f"responses[{i}]", t, asked) for i, t in enumerate(texts)]
    group = Group(_topic(row, asked), asked, whole=True)
    if row.get("pairs") is not None:
        if row.get("rewards") is not None:
            raise RowError('has "rewards" and "pairs": leave one out')
        for win, lose in _pairs(row, len(responses)):
            if responses[win] and responses[lose]:
                _prefer(group, responses[win], responses[lose])
    else:
        group.rewards = []
        for text, reward in zip(responses, _rewards(row, len(responses)), strict=True):
            if text and reward is not None and text not in group.texts:
                group.index(text)
                group.rewards.append(reward)
    # the rewards of two rows need not be of one scale, so each row is a group of its own
    key = digest(group.topic, asked, *group.texts, group.rewards, *group.pairs)
    return made.setdefault(key, group) is group


def _row(key: str, group: Group, cfg: GroupsConfig) -> dict:
    """A row of `groups`."""
    given, rewards = None, group.rewards
    if rewards is None:
        given = [list(pair) for pair in group.pairs]
        rewards = [0.0] * len(group.texts)
        for win, lose in group.pairs:
            rewards[win] += 1
            rewards[lose] -= 1
    pairs = len(given) if given is not None else count_pairs(rewards, cfg.threshold, cfg.max_pairs)
    return {
        "prompt_id": key,
        "topic": group.topic,
        "split": "train",
        "prompt": group.prompt,
        "response_ids": [digest(key, i) for i in range(len(group.texts))],
        "responses": list(group.texts),
        "rewards": rewards,
        "pairs": pairs,
        "given_pairs": given,
    }


# ---------------------------------------------------------------- fields of a row


def _topic(row: Mapping[str, Any], prompt: str) -> str:
    topic = row.get("topic")
    if topic is not None and not isinstance(topic, str):
        raise RowError(f'"topic" must be a text, not {topic!r:.40}')
    return topic or prompt


def _prompt(value: Any) -> str:
    """Without the newline that stands between prompt and response in files for TRL."""
    if not isinstance(value, str):
        turns = _messages("prompt", value)
        if [role for role, _ in turns] != ["user"]:
            said = ", ".join(role for role, _ in turns) or "nothing"
            raise RowError(f'"prompt" must be one user message, not {said}: join them to a text')
        value = turns[0][1]
    if not value.strip():
        raise RowError('"prompt" is empty')
    return value.removesuffix("\n")


def _response(name: str, value: Any, prompt: str) -> str:
    """A text; of messages the last one's, which may stand behind the prompt's."""
    if isinstance(value, str):
        return value
    *before, last = _messages(name, value)
    if last[0] != "assistant" or [(r, t.removesuffix("\n")) for r, t in before] not in (
        [],
        [("user", prompt)],
    ):
        raise RowError(f'"{name}" must be an assistant message, alone or behind the prompt\'s')
    return last[1]


def _messages(name: str, value: Any) -> list[tuple[str, str]]:
    """(role, content) of chat messages, whether plain tuples or dicts."""
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise RowError(f'"{name}" must be a text or a list of chat messages, not {value!r:.40}')
    turns = [(m.get("role"), m.get("content")) for m in value]
    if not all(isinstance(role, str) and isinstance(text, str) for role, text in turns):
        raise RowError(f'"{name}": a chat message needs "role" and "content", both texts')
    return turns  # type: ignore[return-value]  # looked at above


def _list(row: Mapping[str, Any], name: str) -> list:
    if not isinstance(row[name], list):
        raise RowError(f'"{name}" must be a list, not {row[name]!r:.40}')
    return row[name]


def _rewards(row: Mapping[str, Any], count: int) -> Iterator[float | None]:
    rewards = _list(row, "rewards")
    if len(rewards) != count:
        raise RowError(f"{len(rewards)} rewards for {count} responses")
    for i, reward in enumerate(rewards):
        if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
            raise RowError(f"rewards[{i}] is {reward!r:.40}: it must be a number or null")
        if reward is not None and not math.isfinite(reward):
            raise RowError(f"rewards[{i}] is {reward}: it must be finite, or null if unknown")
        yield None if reward is None else float(reward)


def _pairs(row: Mapping[str, Any], count: int) -> Iterator[Pair]:
    for i, pair in enumerate(_list(row, "pairs")):
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)
        if not whole or not all(0 <= x < count for x in pair):
            raise RowError(
                f"pairs[{i}] is {pair!r:.40}: it must be [winner, loser], numbers of the "
                f"{count} responses from 0"
            )
        yield pair[0], pair[1]
