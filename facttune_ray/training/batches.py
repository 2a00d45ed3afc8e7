"""Groups of token ids from rows of tables, and the groups of each optimizer step.

One row in (`groups` of storage/schema.py):
    {"prompt": "Write a biography of Mara Veldt.", "responses": ["Mara Veldt studied physics. ...",
     "Mara Veldt keeps a parrot. ..."], "rewards": [1.0, 0.33], ...}
One group out:
    TokenGroup(prompt=[1, 88, 14, 3], responses=[[40, 41, 2], [40, 52, 9, 2]], pairs=[(0, 1)], ...)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import Chat, encode_prompt, encode_response, end_mark
from facttune_ray.sampling.templates import Turn
from facttune_ray.scoring.pairs import pairs
from facttune_ray.storage.schema import seed_from

if TYPE_CHECKING:
    from facttune_ray.config import GroupsConfig, TrainConfig

Masks = tuple[list[int], list[int]]  # 1 on the tokens that count: as a winner, as a loser


@dataclass(frozen=True)
class TokenGroup:
    """One prompt and its unique responses."""

    prompt_id: str
    prompt: list[int]
    responses: list[list[int]]  # end mark included, unless it was cut off
    pairs: list[tuple[int, int]]  # (winner, loser): indices of responses
    weights: list[float]  # of each pair, relative to the others
    masks: list[Masks] | None = None  # of each response; None: every token counts


@dataclass(frozen=True)
class Tokens:
    """A prompt and its responses as token ids, truncated to the limits."""

    prompt: list[int]
    responses: list[list[int]]
    cut_prompt: bool  # the prompt was truncated
    cut_responses: int  # number of truncated responses


def tokenize(
    prompt_id: str,
    prompt: str | Sequence[Turn],
    responses: Sequence[str],
    tokenizer: Any,
    train: TrainConfig,
    chat: Chat = "auto",
    stops: Sequence[str] = (),
) -> Tokens:
    """A prompt longer than `train.max_prompt_length` keeps its end or start (`train.keep_prompt`).
    A response is truncated to `train.max_length` and then has no end mark. `stops`: as in
    `protocol.end_mark`. UserError when a prompt leaves no room for a response."""
    ids = encode_prompt(tokenizer, prompt, chat)
    limit = train.max_prompt_length or len(ids)
    kept = ids[-limit:] if train.keep_prompt == "end" else ids[:limit]
    room = train.max_length - len(kept)
    if room < 1:
        raise UserError(
            f"prompt {prompt_id} has {len(kept)} tokens, train.max_length is {train.max_length}: "
            f"no room for a response: raise it, or set train.max_prompt_length"
        )
    end = end_mark(tokenizer, chat, stops)
    full = [encode_response(tokenizer, text, end) for text in responses]
    return Tokens(
        kept,
        [response[:room] for response in full],
        len(kept) < len(ids),
        sum(len(response) > room for response in full),
    )


def group_of(row: Mapping[str, Any], groups: GroupsConfig) -> TokenGroup:
    """The group of a row of `reference`, with its masks. Its pairs are those of a file, or else
    follow from its rewards."""
    rewards, given, margin = row["rewards"], row.get("given_pairs"), groups.weights == "margin"
    if given is not None:
        preferred, margin = [(win, lose) for win, lose in given], False
    else:
        preferred = pairs(rewards, groups.threshold, groups.max_pairs)
    win, lose = row.get("win_masks"), row.get("lose_masks")
    return TokenGroup(
        prompt_id=row["prompt_id"],
        prompt=row["prompt_tokens"],
        responses=row["response_tokens"],
        pairs=preferred,
        weights=[rewards[w] - rewards[x] if margin else 1.0 for w, x in preferred],
        masks=None if win is None or lose is None else list(zip(win, lose, strict=True)),
    )


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count), the same on every machine for equal seed and epoch."""
    rng = np.random.Generator(np.random.PCG64(seed_from("epoch", seed, epoch)))
    return rng.permutation(count).tolist()


def steps_of(order: Sequence[int], pairs_G: Sequence[int], train: TrainConfig) -> list[list[int]]:
    """Groups of each optimizer step of an epoch: `groups_per_step` groups, or with `pairs_per_step`
    the smallest number of groups with as many pairs. The last step may be smaller."""
    steps: list[list[int]] = []
    count = size = train.pairs_per_step or train.groups_per_step
    for g in order:
        if count >= size:
            steps.append([])
            count = 0
        steps[-1].append(g)
        count += pairs_G[g] if train.pairs_per_step else 1
    return steps
