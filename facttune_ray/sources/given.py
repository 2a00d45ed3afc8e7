"""Preference files of the user -> rows of `groups`.

in   {"prompt": "Who is Ada?", "responses": ["Ada was ...", "She ..."], "rewards": [1.0, 0.5]}
     {"prompt": "Who is Ada?", "responses": ["Ada was ...", "She ..."], "pairs": [[0, 1]]}
     {"prompt": "Who is Ada?", "chosen": "Ada was ...", "rejected": "She ..."}
out  {"prompt_id": "8f2c", "topic": "Who is Ada?", "prompt": "Who is Ada?", "pairs": 1,
      "responses": ["Ada was ...", "She ..."], "rewards": [1.0, -1.0], "given_pairs": [[0, 1]], ...}

Each row of a file has one of the three forms (JSONL, JSON, Parquet or CSV, read by
`storage.records`), or a form of a well-known data set, which `forms.py` turns into them. The
rewards may stand under another key than "rewards" (`data.reward`), as in FactTune's own files. A
`topic` column is kept; without it the prompt is the topic. Rows of chosen and rejected with the
same prompt become one group, so each response is run once. Prompts that differ by white space at
their end are the same. Repeated pairs and responses count once. A response of null with a reward of
null is left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from facttune_ray.config import GroupsConfig
from facttune_ray.errors import RowError, UserError
from facttune_ray.sampling.templates import Turn, plain_text
from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.sources.forms import parsed
from facttune_ray.storage import records
from facttune_ray.storage.schema import digest

HINT = 'give "prompt" with "responses" and "rewards" (or "pairs"), or with "chosen", "rejected"'
REWARDS = "rewards"
Pair = tuple[int, int]  # indices of responses: winner, loser


@dataclass
class Group:
    """A prompt with its responses and preferences while its rows are read."""

    topic: str
    prompt: str
    turns: list[Turn]  # one user message, or a conversation
    one_row: bool = False  # a row of responses, not rows of chosen and rejected
    texts: dict[str, int] = field(default_factory=dict)  # text -> its index
    rewards: list[float] | None = None  # None: the file gives pairs
    pairs: dict[Pair, None] = field(default_factory=dict)  # an ordered set

    def index(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


@dataclass(frozen=True)
class GivenGroups:
    groups: list[dict]  # rows of `groups`
    left_out: int  # rows of the files that make no pair, or the same pairs as another row
    empty: int = 0  # responses of null with a reward of null


def files(given: Any) -> list[str]:
    """`data.groups`, a file or a list of files, as a list. UserError for any other value."""
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(f, str) and f for f in listed):
        raise UserError(f"data.groups={given!r}: name a file, or a list of files")
    if not listed:
        raise UserError("data.groups is empty: name a file of preferences")
    return listed


def recipe(files: Sequence[str], reward: str = REWARDS) -> dict[str, str]:
    """Hashes of the files' content, and the key of their rewards where it is not the usual key."""
    key = {"data.reward": reward} if reward != REWARDS else {}
    return key | {f"data.groups[{i}]": records.content_digest(f) for i, f in enumerate(files)}


def read(files: Iterable[str], cfg: GroupsConfig, reward: str = REWARDS) -> GivenGroups:
    """All groups with a pair, in the order of their first rows.

    `reward`: the key of a row's rewards. UserError names the wrong file and row, or says why no
    pair is left.
    """
    groups: dict[str, Group] = {}
    rows = useless = unknown = empty = 0
    for file in files:
        for where, row in records.read(file):
            rows += 1
            try:
                found = parsed(_with_rewards(row, reward))
                useless += not _add(groups, found, cfg)
                unknown += _all_unknown(found)
                empty += sum(t is None for t in found.get("responses", ()))
            except RowError as e:
                raise UserError(f"{where}: {e}") from None
    with_pairs = [r for key, g in groups.items() if (r := _row(key, g, cfg))["pairs"]]
    useless += sum(g.one_row for g in groups.values())
    useless -= sum(groups[r["prompt_id"]].one_row for r in with_pairs)
    if not with_pairs:
        names = ", ".join(files)
        if unknown == rows:
            raise UserError(f"{names}: every reward is null: nothing to train on")
        raise UserError(
            f"{names}: no usable pair in {rows:,} rows: every pair is of equal texts, or its "
            f"rewards differ by no more than groups.threshold={cfg.threshold}"
        )
    return GivenGroups(with_pairs, useless, empty)


def _with_rewards(row: records.Row, key: str) -> records.Row:
    """The row with its rewards under their usual key. FactTune's files have NaN for unknown."""
    if key == REWARDS:
        return row
    if key not in row:
        others = sorted(k for k, v in row.items() if isinstance(v, list) and k != "responses")
        raise RowError(f"no data.reward={key}; its lists are {', '.join(others) or 'none'}")
    rewards = row[key]
    if isinstance(rewards, list):
        rewards = [None if isinstance(r, float) and math.isnan(r) else r for r in rewards]
    return {k: v for k, v in row.items() if k != key} | {REWARDS: rewards}


def _all_unknown(row: Mapping[str, Any]) -> bool:
    rewards = row.get("rewards")
    return isinstance(rewards, list) and all(r is None for r in rewards)


def _add(groups: dict[str, Group], row: Mapping[str, Any], cfg: GroupsConfig) -> bool:
    """Add a parsed row of a file to its group; return whether it added anything. RowError when the
    row has none of the three forms."""
    if not row.keys() & {"responses", "chosen", "rejected"}:
        raise RowError(f"{HINT}; it has {', '.join(row['columns']) or 'nothing'}")
    pairwise = "responses" not in row
    needed = ("chosen", "rejected", "prompt") if pairwise else ("prompt",)
    missing = [name for name in needed if name not in row]
    if not pairwise and not row.keys() & {"rewards", "pairs"}:
        missing.insert(0, "rewards")
    if missing:
        raise RowError(f'no "{missing[0]}": {HINT}')
    if pairwise or "pairs" in row:
        _refuse_settings_of_rewards(cfg)
    return _add_pair(groups, row) if pairwise else _add_group(groups, row)


def _refuse_settings_of_rewards(cfg: GroupsConfig) -> None:
    default = GroupsConfig()
    for key, value in vars(cfg).items():
        if value != getattr(default, key):
            raise RowError(f"groups.{key}={value} is about rewards, and this row has pairs")


def _add_pair(groups: dict[str, Group], row: Mapping[str, Any]) -> bool:
    topic, prompt = _topic(row), _text(row["prompt"])
    empty = Group(topic, prompt, row["prompt"])
    group = groups.setdefault(digest(topic, prompt), empty)
    texts = row["chosen"], row["rejected"]
    return bool(all(texts)) and _prefer(group, *texts)


def _prefer(group: Group, chosen: str, rejected: str) -> bool:
    if chosen == rejected:
        return False
    pair = (group.index(chosen), group.index(rejected))
    new = pair not in group.pairs
    group.pairs[pair] = None
    return new


def _add_group(groups: dict[str, Group], row: Mapping[str, Any]) -> bool:
    responses, prompt = _list(row, "responses"), _text(row["prompt"])
    group = Group(_topic(row), prompt, row["prompt"], one_row=True)
    if row.get("pairs") is not None:
        if row.get("rewards") is not None:
            raise RowError('has "rewards" and "pairs": leave one out')
        for win, lose in _pairs(row, len(responses)):
            if responses[win] and responses[lose]:
                _prefer(group, responses[win], responses[lose])
    else:
        group.rewards = []
        rewards = _rewards(row, len(responses))
        for i, (text, reward) in enumerate(zip(responses, rewards, strict=True)):
            if text is None and reward is not None:
                raise RowError(f"responses[{i}] is null, but its reward is {reward:g}")
            if text and reward is not None and text not in group.texts:
                group.index(text)
                group.rewards.append(reward)
    # two rows may have rewards on different scales, so each row is its own group
    key = digest(group.topic, prompt, *group.texts, group.rewards, *group.pairs)
    return groups.setdefault(key, group) is group


def _row(key: str, group: Group, cfg: GroupsConfig) -> dict:
    """A row of `groups`."""
    given_pairs, rewards = None, group.rewards
    if rewards is None:
        given_pairs = [list(pair) for pair in group.pairs]
        rewards = [0.0] * len(group.texts)
        for win, lose in group.pairs:
            rewards[win] += 1
            rewards[lose] -= 1
    pairs = len(group.pairs)
    if given_pairs is None:
        pairs = count_pairs(rewards, cfg.threshold, cfg.max_pairs)
    return {
        "prompt_id": key,
        "topic": group.topic,
        "split": "train",
        "prompt": group.prompt,
        "response_ids": [digest(key, i) for i in range(len(group.texts))],
        "responses": list(group.texts),
        "rewards": rewards,
        "pairs": pairs,
        "given_pairs": given_pairs,
        "turns": [turn._asdict() for turn in group.turns] if len(group.turns) > 1 else None,
    }


# ---------------------------------------------------------------- fields of a row


def _topic(row: Mapping[str, Any]) -> str:
    topic = row.get("topic")
    if topic is not None and not isinstance(topic, str):
        raise RowError(f'"topic" must be a text, not {topic!r:.40}')
    return topic or _text(row["prompt"])


def _text(turns: list[Turn]) -> str:
    """A user message as it is; a conversation as the text that a model without template gets."""
    return plain_text(turns).removesuffix("\n")


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
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)
        if not is_pair or not all(0 <= x < count for x in pair):
            raise RowError(
                f"pairs[{i}] is {pair!r:.40}: it must be [winner, loser], numbers of the "
                f"{count} responses from 0"
            )
        yield pair[0], pair[1]
