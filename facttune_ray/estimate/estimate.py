"""Estimate a run before it is paid: requests to the LLM, tokens, dollars, hours (`show.py` prints
them); tokens to sample and to train on, GPU hours (`gpu_hours.py`).

    rows = estimate(cfg, topics=100)
    [{"stage": "facts", "requests": 9120, "cached": 0, "prompt_tokens": 2.1e6, ...}, ...]

The stages' own code runs on a sample of topics with a client that sends nothing (`trial.py`), so
prompts, retrieval and the merging of equal requests are those of the run. Tokens come from means of
the ledger once it holds 20 completions of the stage; before that, from words. The responses of
models that are not trained yet are assumed to be like those of the sample.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from facttune_ray.config import Config
from facttune_ray.estimate import gpu_hours
from facttune_ray.estimate.topic_sample import TopicSample, topic_sample
from facttune_ray.estimate.trial import CountingClient, RequestCounts, TrialContext
from facttune_ray.llm.cost import price_of
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.ledger_tools import stats
from facttune_ray.loop.dry_run import DryRun, judged_scope, splits_of
from facttune_ray.loop.facttune import facttune
from facttune_ray.loop.nodes import StageTable
from facttune_ray.loop.run import Run
from facttune_ray.loop.start import knowledge, knowledge_file
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import preflight
from facttune_ray.runtime.maker import Maker
from facttune_ray.sources import topics as topics_files
from facttune_ray.stages import STAGES, connect, prompts, stage
from facttune_ray.stages.responses import count
from facttune_ray.stages.verdicts import estimators
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.schema import SPLITS
from facttune_ray.storage.scopes import SECOND
from facttune_ray.storage.tables import Folder
from facttune_ray.text.tokens import estimated_tokens

ON_TRIAL = ("facts", "verdicts", "questions")  # stages whose requests depend on responses
MEASURED = 20  # completions of a stage in the ledger from which its tokens are taken
COLUMNS = ("tables", "finished", "requests", "cached", "prompt_tokens", "completion_tokens")
Made = dict[str, list[dict]]  # table -> its rows
Splits = dict[str, tuple[str, ...]]  # stage -> splits of the responses that it is tried on


def estimate(
    cfg: Config,
    topics: int = 100,
    rates: gpu_hours.Rates | None = None,
    parameters: float | None = None,
) -> list[dict]:
    """Return one row per stage that samples or trains, one per stage that asks the LLM, and the
    total of the latter. UserError when there is nothing to estimate from.

    `parameters`: of the model; None: counted from its config, or read from its name.
    """
    dry = DryRun(cfg)
    preflight.check(dry.cfg, knowledge_file(cfg), models=False)
    first = facttune(Run(dry)).scored
    asking = [t for t in dry.tables if _asks(t.cfg, t.step)]
    if not any(t.step in ON_TRIAL for t in asking):
        return []
    with Maker(cfg, embedded, only="knowledge") as maker:
        knowledge(Run(maker))
    drawn = dry.sampled.get(first)
    sample = topic_sample(cfg, first, splits_of(drawn) if drawn else SPLITS, topics)
    splits: Splits = {t.step: SPLITS for t in asking}
    splits |= {t.step: splits_of(t) for t in asking if t.scope == first}
    second = next((t.cfg for t in asking if t.scope != judged_scope(t.scope)), None)
    made, counts = _try(cfg, sample, splits, second)
    totals = _totals(dry, asking, first, sample, splits, counts | sample.counts)
    if parameters is None:
        parameters = gpu_hours.parameters(cfg)
    work = gpu_hours.gpu_rows(
        cfg,
        [t for t in dry.tables if not _finished(cfg, t.name)],
        [scope for scope in dry.trained if not _finished(cfg, f"{scope}/train")],
        _means(cfg, made),
        rates or gpu_hours.Rates(),
        parameters,
    )
    return [*work, *_priced(cfg, totals)]


def _totals(
    dry: DryRun,
    asking: list[StageTable],
    first: str,
    sample: TopicSample,
    splits: Splits,
    counts: dict[str, RequestCounts],
) -> dict[str, Counter[str]]:
    """stage -> COLUMNS: the counts of the sample, scaled to each table that is not there yet."""
    cfg = dry.cfg
    totals: dict[str, Counter[str]] = {}
    for t in asking:
        total = totals.setdefault(t.step, Counter())
        total["tables"] += 1
        if _finished(cfg, t.name):
            total["finished"] += 1
            continue
        scope = judged_scope(t.scope)
        name = t.step if scope == t.scope else SECOND
        counted = counts.get(name, RequestCounts())
        tried = sum(r["split"] in splits.get(name, SPLITS) for r in sample.responses)
        if name == "prompts":
            scale, cached = sum(_topics(cfg).values()) / sample.topics, counted.cached
        elif not tried:
            continue
        elif scope == first:
            scale, cached = sample.all_topics / sample.topics, counted.cached
        else:  # another model's responses: the ledger has no completion about them
            drawn = dry.sampled.get(scope)  # a contender samples by its own settings
            scale, cached = _responses(drawn.cfg if drawn else cfg, splits_of(t)) / tried, 0
        paid = counted.requests - cached
        share = paid / max(1, counted.requests - counted.cached)
        total["requests"] += round(scale * paid)
        total["cached"] += round(scale * cached)
        total["prompt_tokens"] += round(scale * share * counted.prompt_tokens)
        total["completion_tokens"] += round(scale * share * counted.completion_tokens)
    return totals


def _means(cfg: Config, made: Made) -> gpu_hours.Counts:
    """Means over the sample, for what is sampled and trained on."""
    responses, questions = made["responses"], made.get("questions", [])
    train = {r["prompt_id"] for r in responses if r["split"] == "train"}
    distinct = {(q["topic"], q["question"]) for q in questions if q.get("question")}
    return gpu_hours.Counts(
        prompts=_prompts(cfg),
        prompt_tokens=_mean([estimated_tokens(p["prompt"]) for p in made["prompts"]]),
        response_tokens=_mean([_tokens(r) for r in responses]),
        questions=len(distinct) / max(1, len(train)),
        question_tokens=_mean([estimated_tokens(question) for _, question in distinct]),
    )


def _tokens(response: dict) -> float:
    return response["tokens"] or estimated_tokens(response["text"] or "")


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _asks(cfg: Config, name: str) -> bool:
    return name in (*ON_TRIAL, "prompts") and STAGES[name].endpoint(cfg) == "llm"


def _finished(cfg: Config, name: str) -> bool:
    return tables.has_manifest(Folder.of(cfg.run.out) / name)


def _responses(cfg: Config, splits: tuple[str, ...]) -> int:
    """Responses that a model gives to the prompts of these splits."""
    by_split = _prompts(cfg)
    return sum(by_split[split] * count(cfg, split) for split in splits)


def _topics(cfg: Config) -> Counter[str]:
    """Topics of a topics file, by split."""
    return Counter(row["split"] for row in topics_files.topics(cfg))


def _prompts(cfg: Config) -> Counter[str]:
    """Prompts by split."""
    if cfg.data.source != "topics":
        return Counter(p["split"] for p in prompts.once(prompts.prompts(cfg)))
    each = cfg.prompts.questions if cfg.prompts.method == "llm" else 1
    return Counter({split: each * number for split, number in _topics(cfg).items()})


def _try(
    cfg: Config, sample: TopicSample, splits: Splits, second: Config | None
) -> tuple[Made, dict[str, RequestCounts]]:
    """Run the stages ON_TRIAL on the sample, and `verdicts` by the settings `second`, too.
    -> (tables that they made, stage or SECOND: its requests)"""
    ledger = connect.open_ledger(cfg)
    measured, knowledge = _measured(ledger), knowledge_file(cfg)
    made: Made = {"responses": sample.responses, "prompts": sample.prompts}
    counts = {}
    trials = [(name, name, cfg) for name in ON_TRIAL if name in splits or name == "facts"]
    trials += [(SECOND, "verdicts", second)] if second else []
    for key, name, settings in trials:
        settings = _chat_judges_alone(settings)
        client = CountingClient(settings, ledger, measured.get(name))
        work = Work(name, name, {}, settings, splits.get(key, SPLITS), knowledge=knowledge)
        made[key] = asyncio.run(stage(name).run(TrialContext(work, made, client), 0))
        counts[key] = client.counts
    return made, counts


def _chat_judges_alone(cfg: Config) -> Config:
    """Drop the estimators that load a model. They ask nothing, and the LLM judges every fact,
    whatever they find."""
    if "chat" not in estimators(cfg.verdicts):
        return cfg
    return replace(cfg, verdicts=replace(cfg.verdicts, estimator="chat"))


def _measured(ledger: Ledger) -> dict[str, dict[str, float]]:
    """stage -> mean tokens per character of its prompts and per answer, where the ledger holds
    enough completions."""
    if not ledger.segments:
        return {}
    sums: dict[str, Counter[str]] = {}
    keys = ("completions", "completion_tokens", "measured_tokens", "prompt_chars")
    for row in stats(ledger.folder):
        sums.setdefault(row["stage"], Counter()).update({k: row[k] for k in keys})
    return {
        name: {
            "tokens_per_char": c["measured_tokens"] / c["prompt_chars"],
            "completion_tokens": c["completion_tokens"] / c["completions"],
        }
        for name, c in sums.items()
        if c["completions"] >= MEASURED and c["prompt_chars"]
    }


def _priced(cfg: Config, totals: dict[str, Counter[str]]) -> list[dict]:
    """Rows of the stages and their total, with dollars, and with the hours that the limits of the
    endpoints allow; None where no limit is known."""
    price = price_of(cfg.llm)
    endpoints = connect.endpoints_of(cfg, "")
    request_limits = [e.requests_per_minute for e in endpoints]
    token_limits = [e.tokens_per_minute for e in endpoints]
    rows: list[dict[str, Any]] = [
        {"stage": name} | {k: total[k] for k in COLUMNS} for name, total in totals.items()
    ]
    rows.append({"stage": "total"} | {k: sum(r[k] for r in rows) for k in COLUMNS})
    for row in rows:
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        row["cost_usd"] = price.usd(row["prompt_tokens"], row["completion_tokens"])
        hours = [
            amount / sum(filter(None, limits)) / 60
            for amount, limits in ((row["requests"], request_limits), (tokens, token_limits))
            if all(limits)
        ]
        row["hours"] = max(hours) if hours and cfg.llm.mode == "online" else None
    return rows
