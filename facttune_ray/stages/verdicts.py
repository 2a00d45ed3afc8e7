"""facts -> verdicts: whether the topic's article supports each fact (paper, section 3.1).

in   facts     {"fact_id": "c07e", "topic": "Mara Veldt", "fact": "Mara Veldt plays the cello."}
out  verdicts  {"fact_id": "c07e", "supported": True, "score": 1.0, "title": "Mara Veldt",
                "evidence": "Mara Veldt plays the cello and ...", "estimator": "chat", ...}

A topic without an article gets null verdicts with the reason "no article". A fact that a labelled
file calls irrelevant gets a null verdict, because human scores leave it out. Equal facts of a topic
are judged once. Of several estimators joined by "+", all must support a fact.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from facttune_ray.config import Config, VerdictsConfig
from facttune_ray.errors import RowError, UserError, did_you_mean
from facttune_ray.prompts import template
from facttune_ray.prompts import verdicts as prompt
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context
from facttune_ray.stages.evidence import Evidence, find_evidence
from facttune_ray.text.decompose import normal_fact
from facttune_ray.verifiers import lexical

VERSION = 3
_UNKNOWN: dict[str, Any] = dict.fromkeys(
    ("supported", "score", "evidence", "title", "reason", "error")
)
IRRELEVANT = "IR"  # FActScore's label
PRESETS = {  # combinations by their names in FActScore, factscorer.py
    "retrieval+ChatGPT": ("chat",),
    "retrieval+llama": ("local_lm",),
    "retrieval+llama+npm": ("local_lm", "npm"),
    "retrieval+ChatGPT+npm": ("chat", "npm"),
    "npm": ("npm",),
}


def estimators(cfg: VerdictsConfig) -> tuple[str, ...]:
    """The names in ESTIMATORS that `verdicts.estimator` means. UserError for unknown names
    and for settings that do not fit them."""
    given = cfg.estimator.lower()
    presets = {name.lower(): names for name, names in PRESETS.items()}
    names = presets.get(given) or tuple(given.split("+"))
    for name in names:
        if name not in ESTIMATORS:
            known = [*ESTIMATORS, *PRESETS]
            raise UserError(
                f'verdicts.estimator: no "{name}": one of {", ".join(ESTIMATORS)}, several joined '
                f'by "+", or {", ".join(PRESETS)}.{did_you_mean(name, known)}'
            )
    if len(names) > 1 and cfg.threshold is not None:
        raise UserError(
            f"verdicts.threshold={cfg.threshold:g} applies to one estimator, but "
            f"verdicts.estimator={cfg.estimator} has several: leave it null"
        )
    blind = [name for name in names if ESTIMATORS[name].needs_passages]
    if blind and cfg.retrieval == "none":
        raise UserError(
            f"verdicts.retrieval=none shows no passages, but {min(blind)} compares with them: "
            f"set bm25, dense or fts"
        )
    for name in names:
        if (kind := ESTIMATORS[name].weights) and not getattr(cfg, name):
            raise UserError(f"verdicts.{name} is empty: name {kind}, by folder or hub id")
    return names


def second_opinion(cfg: Config) -> Config | None:
    """The config whose `verdicts.estimator` is `evaluation.estimator`. None if that is none, or is
    the first estimator; or if it is auto, and no estimator is independent of the first."""
    asked, first = cfg.evaluation.estimator, estimators(cfg.verdicts)
    name = _independent(cfg, first) if asked == "auto" else asked
    if name is None or name == "none":
        return None
    shown = "bm25" if cfg.verdicts.retrieval == "none" else cfg.verdicts.retrieval
    other = replace(cfg.verdicts, estimator=name, retrieval=shown, threshold=None)
    try:
        names = set(estimators(other))
    except UserError as e:
        raise UserError(str(e).replace("verdicts.estimator", "evaluation.estimator")) from None
    return None if names == set(first) else replace(cfg, verdicts=other)


def _independent(cfg: Config, first: Sequence[str]) -> str | None:
    """The first of INDEPENDENT that costs no request, is no part of the first estimator and can
    run: a model of pairs or a causal LM runs if its setting names one."""
    if not knows(cfg):
        return None
    free = (n for n in INDEPENDENT if n == "lexical" or getattr(cfg.verdicts, n))
    return next((n for n in free if n not in first), None)


def knows(cfg: Config) -> bool:
    """Whether the run has articles."""
    return cfg.data.source == "world" or bool(cfg.data.knowledge)


def threshold(cfg: VerdictsConfig, name: str) -> float:
    return ESTIMATORS[name].threshold if cfg.threshold is None else cfg.threshold


def recipe(cfg: Config) -> dict:
    """The settings that the chosen estimators use."""
    v, names = cfg.verdicts, estimators(cfg.verdicts)
    settings: dict = {"verdicts.estimator": "+".join(names), "verdicts.no_article": v.no_article}
    keys = [key for name in names for key in ESTIMATORS[name].keys]
    if "lexical" in names:
        settings["lexical.version"] = lexical.VERSION
    if names != ("lexical",):
        keys += ["retrieval", "dense"] if v.retrieval == "dense" else ["retrieval"]
    if "chat" in names:
        settings |= connect.recipe(cfg)
        templates = [prompt.CLOSED if v.retrieval == "none" else prompt.TEMPLATE]
        templates += [prompt.MANY] * (v.facts_per_request > 1)
        settings |= {f"prompts/{t}.txt": template.fingerprint(t) for t in templates}
    if any(ESTIMATORS[name].weights for name in names):
        keys.append("dtype")
    if "chat" not in names or v.threshold is not None:
        settings |= {f"threshold.{name}": threshold(v, name) for name in names}
    return settings | {f"verdicts.{key}": getattr(v, key) for key in keys}


async def run(context: Context, shard: int) -> list[dict]:
    facts = context.rows("facts", shard)
    by_topic = distinct_facts(facts)
    judged = await asyncio.gather(
        *(_judge(context, topic, list(distinct.values())) for topic, distinct in by_topic.items())
    )
    verdict = {
        (topic, normal): v
        for (topic, distinct), verdicts in zip(by_topic.items(), judged, strict=True)
        for normal, v in zip(distinct, verdicts, strict=True)
    }
    return [_row(f, context.cfg, verdict) for f in facts]


def distinct_facts(facts: Iterable[dict]) -> dict[str, dict[str, str]]:
    """topic -> normal form of a fact -> its first wording, which is judged."""
    by_topic: dict[str, dict[str, str]] = {}
    for f in facts:
        if f["fact"] and f.get("human_label") != IRRELEVANT:
            by_topic.setdefault(f["topic"], {}).setdefault(normal_fact(f["fact"]), f["fact"])
    return by_topic


def _row(fact: dict, cfg: Config, verdict: dict[tuple[str, str], dict]) -> dict:
    if fact.get("human_label") == IRRELEVANT:
        value = _UNKNOWN | {"reason": "irrelevant: the labelled file says so"}
    elif fact["fact"]:
        value = verdict[fact["topic"], normal_fact(fact["fact"])]
    else:
        value = _UNKNOWN | {"reason": "no fact"}
    ids = {k: fact[k] for k in ("fact_id", "response_id", "topic")}
    return ids | {"estimator": cfg.verdicts.estimator} | value


async def _judge(context: Context, topic: str, facts: list[str]) -> list[dict]:
    """One verdict per fact, from all estimators together."""
    names = estimators(context.cfg.verdicts)
    evidence = await find_evidence(context, topic, facts, ranked(context.cfg.verdicts))
    if evidence.reason is not None:
        return [_UNKNOWN | {"reason": evidence.reason}] * len(facts)
    by_estimator = [await ESTIMATORS[name].judge(context, evidence) for name in names]
    return [_together(verdicts) for verdicts in zip(*by_estimator, strict=True)]


def ranked(cfg: VerdictsConfig) -> int:
    """The number of passages that are ranked for a fact. 0: the lexical estimator reads the whole
    article."""
    return 0 if estimators(cfg) == ("lexical",) else max(cfg.passages, cfg.npm_passages)


def _together(verdicts: tuple[dict, ...]) -> dict:
    """All must support. A verdict of not supported decides, even when another is unknown."""
    if len(verdicts) == 1:
        return verdicts[0]
    deciding = [v for v in verdicts if v["supported"] is False] or [
        v for v in verdicts if v["supported"] is None
    ]
    chosen = (deciding or list(verdicts))[0]
    if chosen["supported"] is None:
        return chosen
    known = [v["score"] for v in verdicts if v["score"] is not None]
    return chosen | {"score": min(known) if known else None, "error": None}


def _verdict(
    evidence: Evidence,
    fact: int,
    score: float | None,
    least: float,
    at: int | None = None,
    reason: str | None = None,
) -> dict:
    """A verdict from a score. `at`: index of the passage that decided; None: the best passage.
    `reason`: why the score is what it is, or is missing."""
    at = at if at is not None else (evidence.by_fact[fact] or (None,))[0]
    return _UNKNOWN | {
        "score": score,
        "supported": None if score is None else score >= least,
        "evidence": None if at is None else evidence.passages[at],
        "title": None if at is None else evidence.titles[at],
        "reason": reason or ("nothing to check" if score is None else None),
    }


async def _lexical(context: Context, evidence: Evidence) -> list[dict]:
    least = threshold(context.cfg.verdicts, "lexical")
    prepared = lexical.prepare(evidence.topic, evidence.passages, context.articles.rarity)
    scored = [lexical.support_prepared(fact, prepared) for fact in evidence.facts]
    return [
        _verdict(evidence, i, s.score, least, s.evidence, s.reason) for i, s in enumerate(scored)
    ]


async def _chat(context: Context, evidence: Evidence) -> list[dict]:
    facts = range(len(evidence.facts))
    if parts := facts_together(context.cfg.verdicts, facts):
        many = await asyncio.gather(*(_ask_many(context, evidence, part) for part in parts))
        return [verdict for verdicts in many for verdict in verdicts]
    return await asyncio.gather(*(_ask_one(context, evidence, fact) for fact in facts))


def facts_together(cfg: VerdictsConfig, facts: range) -> list[range]:
    """The facts of each request; [] if each fact has its own request."""
    size = cfg.facts_per_request
    several = size > 1 and cfg.retrieval != "none"
    return [facts[i : i + size] for i in facts[::size]] if several else []


def messages(cfg: VerdictsConfig, evidence: Evidence, fact: int) -> list[dict[str, str]]:
    """The request about one fact."""
    if cfg.retrieval == "none":
        return prompt.render_closed(evidence.topic, evidence.facts[fact])
    shown = evidence.shown(fact)[: cfg.passages]
    return prompt.render(evidence.topic, evidence.facts[fact], shown)


def messages_together(cfg: VerdictsConfig, evidence: Evidence, part: range) -> list[dict[str, str]]:
    """The request about several facts, with the passages of all of them."""
    shown = sorted({i for fact in part for i in evidence.by_fact[fact][: cfg.passages]})
    facts, passages = [evidence.facts[i] for i in part], [evidence.passages[i] for i in shown]
    return prompt.render_many(evidence.topic, facts, passages)


def parameters(cfg: VerdictsConfig) -> dict[str, Any] | None:
    """The parameters of the request about one fact."""
    return {"logprobs": True, "top_logprobs": 5} if cfg.logprobs else None


async def _ask_one(context: Context, evidence: Evidence, fact: int) -> dict:
    cfg = context.cfg.verdicts
    try:
        supported, score = await context.client.ask_completion(
            messages(cfg, evidence, fact),
            lambda c: (prompt.parse(c.answer), prompt.probability(c.top_logprobs)),
            parameters(cfg),
        )
    except RowError as e:
        return _UNKNOWN | {"error": str(e)}
    if score is None:  # without log-probabilities
        score = float(supported)
    verdict = _verdict(evidence, fact, score, threshold(cfg, "chat"))
    return verdict if cfg.threshold is not None else verdict | {"supported": supported}


async def _ask_many(context: Context, evidence: Evidence, part: range) -> list[dict]:
    """Ask about several facts in one request, with the passages of all facts. If the answer cannot
    be read, ask about each fact."""
    cfg = context.cfg.verdicts
    asked = messages_together(cfg, evidence, part)
    try:
        judged = await context.client.ask(asked, lambda text: prompt.parse_many(text, len(part)))
    except RowError:
        return await asyncio.gather(*(_ask_one(context, evidence, fact) for fact in part))
    least = threshold(cfg, "chat")
    return [_verdict(evidence, i, float(v), least) for i, v in zip(part, judged, strict=True)]


async def _local_lm(context: Context, evidence: Evidence) -> list[dict]:
    # Passages in the article's order make prompts share longer prefixes.
    judge = functools.partial(context.local_lm.judge, article=evidence.passages)
    return await _by_model(context, evidence, "local_lm", judge, context.cfg.verdicts.passages)


async def _npm(context: Context, evidence: Evidence) -> list[dict]:
    most = context.cfg.verdicts.npm_passages
    return await _by_model(context, evidence, "npm", context.npm.judge, most)


async def _nli(context: Context, evidence: Evidence) -> list[dict]:
    return await _by_windows(context, evidence, "nli", context.nli.judge)


async def _minicheck(context: Context, evidence: Evidence) -> list[dict]:
    return await _by_windows(context, evidence, "minicheck", context.minicheck.judge)


async def _by_windows(
    context: Context, evidence: Evidence, name: str, judge: Callable
) -> list[dict]:
    """Verdicts of a model that judges each passage of a fact by itself and takes the best."""
    cfg = context.cfg.verdicts
    shown = [evidence.shown(i)[: cfg.passages] for i in range(len(evidence.facts))]
    scored = await asyncio.to_thread(judge, evidence.topic, evidence.facts, shown)
    least = threshold(cfg, name)
    return [
        _verdict(evidence, i, score, least, None if at is None else evidence.by_fact[i][at])
        for i, (score, at) in enumerate(scored)
    ]


async def _by_model(
    context: Context, evidence: Evidence, name: str, judge: Callable, most: int
) -> list[dict]:
    """Verdicts of a model that gives a score to each fact and its `most` best passages."""
    shown = [evidence.shown(i)[:most] for i in range(len(evidence.facts))]
    scores = await asyncio.to_thread(judge, evidence.topic, evidence.facts, shown)
    least = threshold(context.cfg.verdicts, name)
    return [_verdict(evidence, i, score, least) for i, score in enumerate(scores)]


@dataclass(frozen=True)
class Estimator:
    """The declaration of an estimator."""

    judge: Callable[[Context, Evidence], Awaitable[list[dict]]]
    keys: tuple[str, ...] = ()  # settings of `verdicts` that change its verdicts
    weights: str = ""  # the kind of model that the setting `verdicts.NAME` names; "": no model
    needs_passages: bool = True  # it compares facts with passages
    threshold: float = 0.5  # smallest score of a supported fact


ESTIMATORS = {
    "lexical": Estimator(_lexical, threshold=lexical.THRESHOLD),
    "chat": Estimator(_chat, ("passages", "facts_per_request", "logprobs"), needs_passages=False),
    "nli": Estimator(
        _nli,
        ("passages", "nli", "nli_label", "nli_template"),
        "a sequence classifier with an entailment label",
    ),
    "minicheck": Estimator(_minicheck, ("passages", "minicheck"), "MiniCheck's Flan-T5"),
    "local_lm": Estimator(_local_lm, ("passages", "local_lm"), "a causal LM", needs_passages=False),
    # FActScore takes a fact above 0.3.
    "npm": Estimator(_npm, ("npm", "npm_passages"), "a masked LM", threshold=0.3),
}
INDEPENDENT = ("minicheck", "nli", "lexical", "local_lm")  # for evaluation.estimator=auto, in order
