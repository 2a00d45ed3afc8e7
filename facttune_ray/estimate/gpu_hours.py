"""Count the tokens that a run samples and trains on, and the GPU hours that they take.

    rows = gpu_rows(cfg, tables, counts, Rates())
    [{"stage": "responses", "tables": 5, "sampled_tokens": 710000, "read_tokens": 96000,
      "trained_tokens": 0, "gpu_hours": 0.08}, ...]

Sampling runs at `tokens_per_s`. A token takes 2 floating-point operations per parameter to read, 6
to train on, and 8 with train.recompute (Kaplan et al. 2020, arXiv 2001.08361, section 2.1;
Narayanan et al. 2021, arXiv 2104.04473). Both rates are assumptions until you measure your own.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facttune_ray.config import Config
from facttune_ray.loop.dry_run import splits_of
from facttune_ray.loop.nodes import StageTable
from facttune_ray.stages import responses
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

COLUMNS = ("sampled_tokens", "read_tokens", "trained_tokens")


@dataclass(frozen=True)
class Rates:
    """The speed of one GPU."""

    tokens_per_s: float = 2000.0  # sampled tokens of all sequences together
    tflops: float = 150.0  # 10^12 operations a second that are reached


@dataclass(frozen=True)
class Counts:
    """Sizes of the tables: totals by split, and means."""

    prompts: dict[str, int]  # split -> prompts
    prompt_tokens: float  # mean of a prompt
    response_tokens: float  # mean of a response
    questions: float  # mean number of distinct questions of a train prompt
    question_tokens: float  # mean of a question, without its worked examples: they are read once


def parameters(cfg: Config) -> float | None:
    """The number of parameters of the run's model; None where it is unknown."""
    if cfg.model.path:
        return parameters_of(cfg.model.path)
    pretrained = (Folder.of(cfg.run.out) / "base/pretrain" / tables.MANIFEST).read_json()
    return pretrained and pretrained["figures"]["parameters"]


def parameters_of(path: str) -> float | None:
    """The number of parameters of a model: read from a hub name such as "Llama-2-7b", else counted
    from its config without loading weights; None where neither is possible."""
    named = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z])", Path(path).name.lower())
    if named and "://" not in path and not Path(path).is_dir():
        return float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]]
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from facttune_ray.sampling.weights import local_weights

        config = AutoConfig.from_pretrained(local_weights(path))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return float(sum(p.numel() for p in model.parameters()))
    except (OSError, ValueError):
        return None


def gpu_rows(
    cfg: Config,
    planned: list[StageTable],
    trained: list[str],
    counts: Counts,
    rates: Rates,
    model_parameters: float | None,
) -> list[dict[str, Any]]:
    """One row per stage that samples or trains. `planned`: the tables that are not there yet;
    `trained`: scopes with a model to train. `gpu_hours` is None where the number of parameters is
    unknown."""
    stages: dict[str, Counter[str]] = {}
    for table in planned:
        name, table_cfg = table.step, table.cfg
        if name not in ("responses", "answers", "reference"):
            continue
        if name == "responses" and table_cfg.sampling.engine == "api":
            continue
        total = stages.setdefault(name, Counter())
        total["tables"] += 1
        for split in splits_of(table) if name == "responses" else ("train",):
            prompts = counts.prompts.get(split, 0)
            if name == "responses":
                samples = prompts * responses.count(table_cfg, split)
                total["read_tokens"] += round(prompts * counts.prompt_tokens)
                total["sampled_tokens"] += round(samples * counts.response_tokens)
            elif name == "answers":
                questions = prompts * counts.questions
                most = cfg.answers.samples * cfg.answers.max_tokens
                total["read_tokens"] += round(questions * counts.question_tokens)
                total["sampled_tokens"] += round(questions * most)
            else:
                total["read_tokens"] += _sequences(cfg, counts)
    if trained:
        passes = sum(_epochs(cfg, scope) for scope in trained)
        stages["train"] = Counter(
            tables=len(trained), trained_tokens=round(passes * _sequences(cfg, counts))
        )
    return [
        {"stage": name, "tables": total["tables"]}
        | {k: total[k] for k in COLUMNS}
        | {"gpu_hours": _hours(cfg, total, rates, model_parameters)}
        for name, total in stages.items()
    ]


def _sequences(cfg: Config, counts: Counts) -> int:
    """Tokens of one pass over all train groups, each prompt once if prefixes are shared."""
    samples = responses.count(cfg, "train")
    copies = 1 if cfg.train.share_prefix else samples  # of the prompt
    group = copies * counts.prompt_tokens + samples * counts.response_tokens
    return round(counts.prompts.get("train", 0) * group)


def _epochs(cfg: Config, scope: str) -> int:
    if scope.endswith("/sft"):
        return cfg.train.sft.epochs
    epochs = cfg.tune[scope.split("/", 1)[0]].epochs
    return cfg.train.epochs if epochs is None else epochs


def _hours(cfg: Config, c: Counter[str], rates: Rates, parameters: float | None) -> float | None:
    if parameters is None:
        return None
    per_trained = 8 if cfg.train.recompute else 6
    operations = parameters * (2 * c["read_tokens"] + per_trained * c["trained_tokens"])
    return (c["sampled_tokens"] / rates.tokens_per_s + operations / (rates.tflops * 1e12)) / 3600
