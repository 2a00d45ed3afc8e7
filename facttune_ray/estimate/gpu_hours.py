"""Tokens that a run samples and trains on, and the GPU hours that they take at stated rates.

    rows = gpu_rows(cfg, tables, counts, Rates())
    [{"stage": "responses", "tables": 5, "sampled_tokens": 710000, "read_tokens": 96000,
      "trained_tokens": 0, "gpu_hours": 0.08}, ...]

Sampling takes its tokens over `tokens_per_s`. Reading a token takes 2 floating-point operations a
parameter, training on one 6, and 8 with train.recompute (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1; Narayanan et al. 2021, arXiv 2104.04473). Both rates are assumptions until you have
measured your own.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facttune_ray.config import Config
from facttune_ray.estimate.dry_run import Planned
from facttune_ray.stages import responses

COLUMNS = ("sampled_tokens", "read_tokens", "trained_tokens")


@dataclass(frozen=True)
class Rates:
    """Of one GPU."""

    tokens_per_s: float = 2000.0  # sampled, all sequences together
    tflops: float = 150.0  # 10^12 operations a second, reached


@dataclass(frozen=True)
class Counts:
    """What the tables hold, by split where it differs."""

    prompts: dict[str, int]
    prompt_tokens: float  # of a prompt
    response_tokens: float
    questions: float  # distinct ones a train prompt
    question_tokens: float  # with nothing before it: worked questions are read once


def parameters(path: str) -> float | None:
    """Of a model: counted from its config without loading weights; of a hub name, read from it such
    as "Llama-2-7b", where it tells. None if nothing does."""
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
    tables: list[Planned],
    trained: list[str],
    counts: Counts,
    rates: Rates,
    model_parameters: float | None,
) -> list[dict[str, Any]]:
    """One row a stage that samples or trains. `tables`: those that are not there yet; `trained`:
    scopes with a round to train. `gpu_hours` is None where the parameters are not known."""
    stages: dict[str, Counter[str]] = {}
    for _, name, splits, own in tables:
        if name not in ("responses", "answers", "reference"):
            continue
        if name == "responses" and own.sampling.engine == "api":
            continue
        found = stages.setdefault(name, Counter())
        found["tables"] += 1
        for split in splits if name == "responses" else ("train",):
            asked = counts.prompts.get(split, 0)
            drawn = asked * responses.count(own, split)
            if name == "responses":
                found["read_tokens"] += round(asked * counts.prompt_tokens)
                found["sampled_tokens"] += round(drawn * counts.response_tokens)
            elif name == "answers":
                questions = asked * counts.questions
                found["read_tokens"] += round(questions * counts.question_tokens)
                most = cfg.answers.samples * cfg.answers.max_tokens
                found["sampled_tokens"] += round(questions * most)
            else:
                found["read_tokens"] += _sequences(cfg, counts)
    if trained:
        passes = sum(_epochs(cfg, scope) for scope in trained)
        stages["train"] = Counter(
            tables=len(trained), trained_tokens=round(passes * _sequences(cfg, counts))
        )
    rows: list[dict[str, Any]] = []
    for name, c in stages.items():
        row = {"stage": name, "tables": c["tables"]} | {k: c[k] for k in COLUMNS}
        rows.append(row | {"gpu_hours": _hours(cfg, c, rates, model_parameters)})
    return rows


def _sequences(cfg: Config, counts: Counts) -> int:
    """Tokens of one pass over all train groups, each prompt once where prefixes are shared."""
    drawn = responses.count(cfg, "train")
    once = 1 if cfg.train.share_prefix else drawn
    one = once * counts.prompt_tokens + drawn * counts.response_tokens
    return round(counts.prompts.get("train", 0) * one)


def _epochs(cfg: Config, scope: str) -> int:
    name = scope.split("/", 1)[0]
    if scope.endswith("/sft"):
        return cfg.train.sft.epochs
    own = cfg.tune[name].epochs
    return own if own is not None else cfg.train.epochs


def _hours(cfg: Config, c: Counter[str], rates: Rates, p: float | None) -> float | None:
    if p is None:
        return None
    each = 8 if cfg.train.recompute else 6
    work = p * (2 * c["read_tokens"] + each * c["trained_tokens"])
    return (c["sampled_tokens"] / rates.tokens_per_s + work / (rates.tflops * 1e12)) / 3600


def table(rows: list[dict[str, Any]], rates: Rates, model_parameters: float | None) -> str:
    """The rows as text, and what they were counted by."""
    lines = [
        f"{'stage':<10} {'tables':>6} {'sampled tok':>14} {'read tok':>14} {'trained tok':>14} "
        f"{'GPU hours':>10}"
    ]
    total: dict[str, Any] = {"stage": "total"} | {
        k: sum(r[k] for r in rows) for k in ("tables", *COLUMNS)
    }
    known = [r["gpu_hours"] for r in rows if r["gpu_hours"] is not None]
    total["gpu_hours"] = sum(known) if len(known) == len(rows) else None
    for r in (*rows, total):
        hours = "" if r["gpu_hours"] is None else f"{r['gpu_hours']:,.2f}"
        lines.append(
            f"{r['stage']:<10} {r['tables']:>6} {r['sampled_tokens']:>14,} {r['read_tokens']:>14,} "
            f"{r['trained_tokens']:>14,} {hours:>10}"
        )
    if model_parameters is None:
        lines.append("\nGPU hours: the model's parameters are not known: give --parameters")
    else:
        lines.append(
            f"\n{model_parameters / 1e9:.2g} billion parameters, at {rates.tokens_per_s:,g} "
            f"sampled tokens/s and {rates.tflops:g} TFLOP/s a GPU: assumed, not measured; "
            f"give your own: --tokens-per-second, --tflops"
        )
    return "\n".join(lines)
