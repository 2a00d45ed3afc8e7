"""What a run will ask of the LLM, before it is paid: requests, tokens, dollars, hours; and what it
will sample and train on, in tokens and GPU hours (`gpu_hours.py`).

    rows = estimate(cfg, topics=100)
    [{"stage": "facts", "requests": 9120, "cached": 0, "prompt_tokens": 2.1e6, ...}, ...]

The stages' own code runs on a sample of topics with a stand-in for the LLM (`trial.py`). So
prompts, retrieval and the merging of identical requests are the run's own. Tokens of answers and
tokens a character are taken from the ledger once it holds 20 completions of the stage; before, four
tokens for three words. Tables of models that are not trained yet are counted as the sample's,
response by response.
Where no response is there yet, `placeholder.py` makes some.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from facttune_ray.config import Config
from facttune_ray.config.wanted import needed, wanted
from facttune_ray.errors import UserError
from facttune_ray.estimate import gpu_hours, placeholder
from facttune_ray.estimate.dry_run import DryRun, judged_scope
from facttune_ray.estimate.trial import Need, StandIn, Trial, words_to_tokens
from facttune_ray.evaluation.breakdowns import SECOND
from facttune_ray.llm.cost import price_of
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.ledger_tools import stats
from facttune_ray.loop.facttune import facttune
from facttune_ray.loop.run import SPLITS, full_name
from facttune_ray.loop.start import knowledge, knowledge_file
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import preflight
from facttune_ray.runtime.run import Run
from facttune_ray.sources import topics as topics_files
from facttune_ray.stages import STAGES, connect, prompts, stage
from facttune_ray.stages.responses import count
from facttune_ray.stages.verdicts import estimators
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.schema import made_of, seed_from
from facttune_ray.storage.tables import Folder

ASKING = ("facts", "verdicts", "questions")  # of responses
_RATE = ("measured_tokens", "prompt_chars")
MEASURED = 20  # completions of a stage in the ledger from which its tokens are taken


@dataclass
class Sample:
    """Responses of some topics, whole."""

    rows: list[dict] = field(default_factory=list)
    prompts: list[dict] = field(default_factory=list)  # of these topics
    topics: int = 0
    all_topics: int = 0
    needs: dict[str, Need] = field(default_factory=dict)  # of what had to be made for it


def estimate(
    cfg: Config,
    topics: int = 100,
    rates: gpu_hours.Rates | None = None,
    parameters: float | None = None,
) -> list[dict]:
    """One row a stage that samples or trains, one a stage that asks the LLM, then the total of the
    latter. UserError when there is nothing to estimate from yet.

    `parameters`: of the model; None: counted from its config, or read from its name.
    """
    plan = DryRun(cfg)
    preflight.check(plan.cfg, knowledge_file(cfg), models=False)
    outcome = facttune(plan, plan.cfg)
    asked = [t for t in plan.tables if _asks(t.cfg, t.stage)]
    if not any(t.stage in ASKING for t in asked):
        return []
    with Run(cfg, embedded, only="knowledge") as this:
        knowledge(this, this.cfg)
    first = outcome.scored
    drawn = plan.sampled.get(first)
    sample = _sample(cfg, first, drawn.splits if drawn else SPLITS, topics)
    tried = {t.stage: SPLITS for t in asked} | {
        t.stage: t.splits for t in asked if t.scope == first
    }
    second = next((t.cfg for t in asked if t.scope != judged_scope(t.scope)), None)
    made, needs = _try(cfg, sample, tried, second)
    needs |= sample.needs
    totals: dict[str, Counter[str]] = {}
    for t in asked:
        total = totals.setdefault(t.stage, Counter())
        total["tables"] += 1
        if _finished(cfg, t.scope, t.stage):
            total["finished"] += 1
            continue
        scope = judged_scope(t.scope)
        name = t.stage if scope == t.scope else SECOND
        need = needs.get(name, Need())
        if name == "prompts":
            scale = sum(_topics(cfg).values()) / sample.topics
            total["requests"] += round(scale * (need.requests - need.cached))
            total["cached"] += round(scale * need.cached)
            total["prompt_tokens"] += round(scale * need.prompt_tokens)
            total["completion_tokens"] += round(scale * need.completion_tokens)
            continue
        responses = sum(r["split"] in tried.get(name, SPLITS) for r in sample.rows)
        if not responses:
            continue
        if scope == first:
            scale, cached = sample.all_topics / sample.topics, need.cached
        else:  # other models, other responses: nothing of theirs is in the ledger
            drawn = plan.sampled.get(scope)  # a contender's by its own settings
            scale, cached = _responses(drawn.cfg if drawn else cfg, t.splits) / responses, 0
        fresh = max(1, need.requests - need.cached)
        share = (need.requests - cached) / fresh
        total["requests"] += round(scale * (need.requests - cached))
        total["cached"] += round(scale * cached)
        total["prompt_tokens"] += round(scale * share * need.prompt_tokens)
        total["completion_tokens"] += round(scale * share * need.completion_tokens)
    if parameters is None:
        parameters = _parameters(cfg)
    fresh_tables = [t for t in plan.tables if not _finished(cfg, t.scope, t.stage)]
    trained = [scope for scope in plan.trained if not _finished(cfg, scope, "train")]
    work = gpu_hours.gpu_rows(
        cfg, fresh_tables, trained, _counts(cfg, made), rates or gpu_hours.Rates(), parameters
    )
    return [*work, *_priced(cfg, totals)]


def _parameters(cfg: Config) -> float | None:
    if not cfg.model.path:
        found = (Folder.of(cfg.run.out) / "base/pretrain" / tables.MANIFEST).read_json()
        return found and found["figures"]["parameters"]
    return gpu_hours.parameters(cfg.model.path)


def _counts(cfg: Config, made: dict[str, list[dict]]) -> gpu_hours.Counts:
    """Means over the sample, for what is sampled and trained on."""
    responses, questions = made["responses"], made.get("questions", [])
    train = {r["prompt_id"] for r in responses if r["split"] == "train"}
    distinct = {(q["topic"], q["question"]) for q in questions if q.get("question")}
    texts = [r["text"] or "" for r in responses]
    lengths = [
        r["tokens"] or words_to_tokens(text) for r, text in zip(responses, texts, strict=True)
    ]
    asked = [p["prompt"] for p in made["prompts"]]
    return gpu_hours.Counts(
        prompts=_prompts(cfg),
        prompt_tokens=sum(map(words_to_tokens, asked)) / max(1, len(asked)),
        response_tokens=sum(lengths) / max(1, len(lengths)),
        questions=len(distinct) / max(1, len(train)),
        question_tokens=sum(words_to_tokens(q) for _, q in distinct) / max(1, len(distinct)),
    )


def _asks(cfg: Config, name: str) -> bool:
    return name in (*ASKING, "prompts") and STAGES[name].endpoint(cfg) == "llm"


def _finished(cfg: Config, scope: str, name: str) -> bool:
    return tables.has_manifest(Folder.of(cfg.run.out) / full_name(scope, name))


def _responses(cfg: Config, splits: tuple[str, ...]) -> int:
    """Responses that a model gives to the prompts of these splits."""
    found = _prompts(cfg)
    return sum(found[s] * count(cfg, s) for s in splits)


def _topics(cfg: Config) -> Counter[str]:
    """Topics of a topics file, by split."""
    return Counter(row["split"] for row in topics_files.topics(cfg))


def _prompts(cfg: Config) -> Counter[str]:
    """Prompts by split."""
    if cfg.data.source != "topics":
        return Counter(p["split"] for p in prompts.once(prompts.prompts(cfg)))
    each = cfg.prompts.questions if cfg.prompts.method == "llm" else 1
    return Counter({split: each * number for split, number in _topics(cfg).items()})


def _foreseen(cfg: Config, splits: tuple[str, ...], topics: int) -> Sample:
    """Stand-ins for responses that are not sampled yet, to prompts that may not be there yet."""
    every = [row for row in topics_files.topics(cfg) if row["split"] in splits]
    chosen = sorted(every, key=lambda r: seed_from("estimate", r["topic"]))[:topics]
    stand_in = StandIn(cfg, connect.open_ledger(cfg), None)
    trial = Trial(Work("prompts", "prompts", {}, cfg), {"topics": chosen}, stand_in)
    asked = placeholder.asked(trial)
    rows = placeholder.responses(cfg, asked, knowledge_file(cfg))
    needs = {"prompts": stand_in.need}
    return Sample(list(rows), asked, len(chosen), len(every), needs)


def _sample(cfg: Config, scope: str, splits: tuple[str, ...], topics: int) -> Sample:
    """Responses of `topics` topics, chosen by their digests: the same ones each time."""
    if cfg.data.source in prompts.IMPORTED:
        rows: Iterable[dict] = prompts.numbered(prompts.imported_responses(cfg))
    else:
        folder = Folder.of(cfg.run.out) / scope / "responses"
        there = tables.has_manifest(folder)
        if not there and cfg.data.source == "topics":
            return _foreseen(cfg, splits, topics)
        if not there:
            raise UserError(
                "an estimate needs responses to count from: run `facttune stage pretrain` and "
                "`facttune stage responses` with the same config first (no LLM request is made)"
            )
        shards = range(tables.manifest(folder)["shards"])
        rows = (row for s in shards for row in tables.rows(folder, s))
    by_topic: dict[str, list[dict]] = {}
    for row in rows:
        by_topic.setdefault(row["topic"], []).append(row)
    chosen = sorted(by_topic, key=lambda t: seed_from("estimate", t))[:topics]
    if cfg.data.source == "topics":
        folder = Folder.of(cfg.run.out) / "prompts"
        shards = range(tables.manifest(folder)["shards"])
        every: Iterable[dict] = (row for s in shards for row in tables.rows(folder, s))
    else:
        every = prompts.once(prompts.prompts(cfg))
    asked = [p for p in every if p["topic"] in set(chosen) and p["prompt"] is not None]
    rows = [row for t in chosen for row in by_topic[t]]
    return Sample(rows, asked, len(chosen), len(by_topic))


Made = dict[str, list[dict]]


def _try(
    cfg: Config, sample: Sample, tried: dict[str, tuple[str, ...]], second: Config | None
) -> tuple[Made, dict[str, Need]]:
    """Run the asking stages on the sample's rows of these splits with stand-ins, and `verdicts` by
    the settings `second`, too. -> (tables that they made, stage or SECOND: need)"""
    ledger = connect.open_ledger(cfg)
    measured = _measured(ledger)
    made: Made = {"responses": sample.rows, "prompts": sample.prompts}
    needs = {}
    trials = [(name, name, cfg) for name in ASKING if name in tried or name == "facts"]
    trials += [(SECOND, "verdicts", second)] if second else []
    knowledge = knowledge_file(cfg)
    for key, name, own in trials:
        own = _asking_alone(own)
        stand_in = StandIn(own, ledger, measured.get(name))
        work = Work(name, name, {}, own, splits=tried.get(key, SPLITS), knowledge=knowledge)
        made[key] = asyncio.run(stage(name).run(Trial(work, made, stand_in), 0))
        needs[key] = stand_in.need
    return made, needs


def _asking_alone(cfg: Config) -> Config:
    """Without estimators that load a model and ask nothing: the LLM judges all facts, whatever they
    find."""
    if "chat" not in estimators(cfg.verdicts):
        return cfg
    return replace(cfg, verdicts=replace(cfg.verdicts, estimator="chat"))


def _measured(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Tokens a character and tokens an answer, by stage, where the ledger knows enough."""
    if not ledger.segments:
        return {}
    found: dict[str, Counter[str]] = {}
    for row in stats(ledger.folder):
        found.setdefault(row["stage"], Counter()).update(
            {k: row[k] for k in ("completions", "completion_tokens", *_RATE)}
        )
    return {
        name: {
            "tokens_per_char": c["measured_tokens"] / c["prompt_chars"],
            "completion_tokens": c["completion_tokens"] / c["completions"],
        }
        for name, c in found.items()
        if c["completions"] >= MEASURED and c["prompt_chars"]
    }


def _priced(cfg: Config, totals: dict[str, Counter[str]]) -> list[dict]:
    price = price_of(cfg.llm)
    ends = connect.endpoints_of(cfg, "")
    limits = {
        "requests": [e.requests_per_minute for e in ends],
        "tokens": [e.tokens_per_minute for e in ends],
    }
    rows: list[dict[str, Any]] = []
    for name, counted in totals.items():
        rows.append({"stage": name} | {k: counted[k] for k in COLUMNS})
    rows.append({"stage": "total"} | {k: sum(r[k] for r in rows) for k in COLUMNS})
    for row in rows:
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        row["cost_usd"] = price.usd(row["prompt_tokens"], row["completion_tokens"])
        hours = [
            amount / sum(filter(None, limit)) / 60
            for amount, limit in ((row["requests"], limits["requests"]), (tokens, limits["tokens"]))
            if all(limit)
        ]
        row["hours"] = max(hours) if hours and cfg.llm.mode == "online" else None
    return rows


COLUMNS = ("tables", "finished", "requests", "cached", "prompt_tokens", "completion_tokens")


def table(
    rows: list[dict],
    cfg: Config,
    rates: gpu_hours.Rates | None = None,
    parameters: float | None = None,
) -> str:
    """The estimate as text."""
    if not rows:
        return "this config asks no LLM: nothing to pay"
    work = [r for r in rows if "gpu_hours" in r]
    rows = [r for r in rows if "gpu_hours" not in r]
    lines = [
        f"{'stage':<10} {'tables':>6} {'requests':>10} {'in ledger':>10} {'prompt tok':>12} "
        f"{'answer tok':>12} {'dollars':>10} {'hours':>8}"
    ]
    for r in rows:
        hours = "" if r["hours"] is None else f"{r['hours']:,.2f}"
        lines.append(
            f"{r['stage']:<10} {r['tables'] - r['finished']:>6} {r['requests']:>10,} "
            f"{r['cached']:>10,} {r['prompt_tokens']:>12,} {r['completion_tokens']:>12,} "
            f"{r['cost_usd']:>10,.2f} {hours:>8}"
        )
    price = price_of(cfg.llm)
    if price.source:
        said = f"${price.input:g} and ${price.output:g} a million tokens ({price.source})"
    else:
        said = "no price is known: set llm.usd_per_million_input and llm.usd_per_million_output"
    lines.append(f"\n{cfg.llm.model}, {cfg.llm.mode}: {said}")
    for stage_name in _uncounted(cfg):
        lines.append(f"not counted: {stage_name}, which depends on samples that are not there yet")
    if rows[-1]["hours"] is None and cfg.llm.mode == "online":
        lines.append("hours: set llm.requests_per_minute and llm.tokens_per_minute")
    if work:
        known = parameters if parameters is not None else _parameters(cfg)
        lines += ["", gpu_hours.table(work, rates or gpu_hours.Rates(), known)]
    return "\n".join(lines)


def _uncounted(cfg: Config) -> list[str]:
    """Stages that ask an endpoint for what nobody can foresee."""
    columns = needed(cfg, wanted(cfg))
    confident = made_of(columns, "questions") or made_of(columns, "entities")
    judged = ["classes"] if cfg.classes.method == "llm" and confident else []
    if cfg.evaluation.judge_samples and cfg.evaluation.tuned and cfg.tune:
        judged.append("judgements")
    return judged + (["samples of sampling.engine=api"] if cfg.sampling.engine == "api" else [])
