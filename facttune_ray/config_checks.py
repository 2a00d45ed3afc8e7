"""Ranges of the settings that their types cannot say."""

from __future__ import annotations

import math

from facttune_ray.config import Config, flatten, to_dict
from facttune_ray.errors import UserError


def check(cfg: Config) -> None:
    """Ranges that types cannot say. UserError names the key."""
    at_least = {
        "run.shards": 1,
        "run.workers": 0,
        "responses.samples": 1,
        "responses.max_tokens": 1,
        "answers.samples": 1,
        "answers.max_tokens": 1,
        "evaluation.samples": 1,
        "llm.concurrency": 1,
        "llm.max_attempts": 1,
        "llm.requests_per_minute": 1,
        "llm.tokens_per_minute": 1,
        "llm.reasks": 0,
        "llm.flush_rows": 1,
        "llm.batch_requests": 1,
        "llm.batch_mb": 1,
        "train.epochs": 1,
        "train.groups_per_step": 1,
        "train.workers": 1,
        "verdicts.passages": 1,
        "verdicts.npm_passages": 1,
        "verdicts.facts_per_request": 1,
        "verdicts.batch_tokens": 1,
        "facts.carry_words": 0,
    }
    flat = flatten(to_dict(cfg))
    for key, low in at_least.items():
        if flat[key] is not None and flat[key] < low:
            raise UserError(f"{key}={flat[key]}: must be at least {low}")
    for key in ("timeout_s", "max_elapsed_s", "flush_s", "batch_poll_s", "budget_usd"):
        if (value := flat[f"llm.{key}"]) is not None and value <= 0:
            raise UserError(f"llm.{key}={value}: must be above 0")
    for key in ("responses.top_p", "answers.top_p"):
        if not 0 < flat[key] <= 1:
            raise UserError(f"{key}={flat[key]}: must be above 0 and at most 1")
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
    world = cfg.data.world
    if cfg.data.source == "world" and world.train + world.val + world.test > world.people:
        raise UserError(
            f"data.world: train + val + test = {world.train + world.val + world.test} topics, "
            f"but people={world.people}"
        )
    taken = {"model", "messages", "temperature", "max_tokens", "n", "stream"} & set(cfg.llm.params)
    if taken:
        raise UserError(f"llm.params.{min(taken)}: set llm.{min(taken)}, or leave it out")
    for i, endpoint in enumerate(cfg.llm.endpoints):
        for key in ("requests_per_minute", "tokens_per_minute"):
            if (value := getattr(endpoint, key)) is not None and value < 1:
                raise UserError(f"llm.endpoints[{i}].{key}={value}: must be at least 1")
    for name, tune in cfg.tune.items():
        if tune.rounds < 0:
            raise UserError(f"tune.{name}.rounds={tune.rounds}: must be at least 0")
        if not name.isidentifier() or name in {"base", "imported", "world"}:
            raise UserError(f'tune.{name}: name a tuned model in letters, digits, "_", not "base"')
