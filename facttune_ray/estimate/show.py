"""Print an estimate as text."""

from __future__ import annotations

from typing import Any

from facttune_ray.config import Config
from facttune_ray.config.wanted import needed, wanted
from facttune_ray.estimate import gpu_hours
from facttune_ray.llm.cost import price_of
from facttune_ray.storage.schema import made_of


def show(
    rows: list[dict],
    cfg: Config,
    rates: gpu_hours.Rates | None = None,
    parameters: float | None = None,
) -> str:
    """The rows of `estimate` as text."""
    if not rows:
        return "this config asks no LLM: nothing to pay"
    work = [r for r in rows if "gpu_hours" in r]
    rows = [r for r in rows if "gpu_hours" not in r]
    lines = [
        f"{'stage':<10} {'tables':>6} {'requests':>10} {'in ledger':>10} {'prompt tok':>12} "
        f"{'answer tok':>12} {'dollars':>10} {'hours':>8}"
    ]
    for r in rows:
        lines.append(
            f"{r['stage']:<10} {r['tables'] - r['finished']:>6} {r['requests']:>10,} "
            f"{r['cached']:>10,} {r['prompt_tokens']:>12,} {r['completion_tokens']:>12,} "
            f"{r['cost_usd']:>10,.2f} {_hours(r['hours']):>8}"
        )
    price = price_of(cfg.llm)
    if price.source:
        prices = f"${price.input:g} and ${price.output:g} a million tokens ({price.source})"
    else:
        prices = "no price is known: set llm.usd_per_million_input and llm.usd_per_million_output"
    lines.append(f"\n{cfg.llm.model}, {cfg.llm.mode}: {prices}")
    for name in _uncounted(cfg):
        lines.append(f"not counted: {name}, which depends on samples that do not exist yet")
    if rows[-1]["hours"] is None and cfg.llm.mode == "online":
        lines.append("hours: set llm.requests_per_minute and llm.tokens_per_minute")
    if work:
        known = gpu_hours.parameters(cfg) if parameters is None else parameters
        lines += ["", show_gpu_hours(work, rates or gpu_hours.Rates(), known)]
    return "\n".join(lines)


def show_gpu_hours(
    rows: list[dict[str, Any]], rates: gpu_hours.Rates, parameters: float | None
) -> str:
    """The rows of `gpu_rows` as text, with the rates that they assume."""
    lines = [
        f"{'stage':<10} {'tables':>6} {'sampled tok':>14} {'read tok':>14} {'trained tok':>14} "
        f"{'GPU hours':>10}"
    ]
    total: dict[str, Any] = {"stage": "total"} | {
        k: sum(r[k] for r in rows) for k in ("tables", *gpu_hours.COLUMNS)
    }
    known = [r["gpu_hours"] for r in rows if r["gpu_hours"] is not None]
    total["gpu_hours"] = sum(known) if len(known) == len(rows) else None
    for r in (*rows, total):
        lines.append(
            f"{r['stage']:<10} {r['tables']:>6} {r['sampled_tokens']:>14,} {r['read_tokens']:>14,} "
            f"{r['trained_tokens']:>14,} {_hours(r['gpu_hours']):>10}"
        )
    if parameters is None:
        lines.append("\nGPU hours: the model's parameters are not known: give --parameters")
    else:
        lines.append(
            f"\n{parameters / 1e9:.2g} billion parameters, at {rates.tokens_per_s:,g} "
            f"sampled tokens/s and {rates.tflops:g} TFLOP/s a GPU: assumed, not measured; "
            f"give your own: --tokens-per-second, --tflops"
        )
    return "\n".join(lines)


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:,.2f}"


def _uncounted(cfg: Config) -> list[str]:
    """Stages that ask an endpoint about samples that do not exist yet."""
    columns = needed(cfg, wanted(cfg))
    confident = made_of(columns, "questions") or made_of(columns, "entities")
    names = ["classes"] if cfg.classes.method == "llm" and confident else []
    if cfg.evaluation.judge_samples and cfg.evaluation.tuned and cfg.tune:
        names.append("judgements")
    return names + (["samples of sampling.engine=api"] if cfg.sampling.engine == "api" else [])
