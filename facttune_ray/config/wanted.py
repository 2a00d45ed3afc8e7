"""Rewards that a config makes, and the columns and tables behind them."""

from __future__ import annotations

from facttune_ray.config.sections import Config
from facttune_ray.storage.schema import made_of


def wanted(cfg: Config) -> set[str]:
    """Rewards of the base model's responses: the rewards that `tune` uses, and rewards.columns."""
    return {t.reward for t in cfg.tune.values() if t.rounds} | {*cfg.rewards.columns}


def needed(cfg: Config, wanted: set[str]) -> set[str]:
    """Columns of `rewards` behind these rewards: a mix needs every reward that it sums."""
    return {c for name in wanted for c in cfg.rewards.mix.get(name, {name: 1.0})}


def by_verdicts(cfg: Config, reward: str) -> bool:
    """Whether the reward is computed from verdicts."""
    return made_of(needed(cfg, {reward}), "verdicts")


def asks_model(cfg: Config, columns: set[str]) -> bool:
    """Whether these columns need the base model, because data.ready does not bring their tables."""
    sampled = {t for t in ("questions", "entities") if t not in cfg.data.ready}
    return any(made_of(columns, table) for table in (*sampled, "p_true"))
