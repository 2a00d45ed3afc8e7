"""facts -> verdicts: is each fact supported by the topic's article? (paper, section 3.1)

in   facts     {"fact_id": "c07e", "topic": "Mara Veldt", "fact": "Mara Veldt plays the cello."}
out  verdicts  {"fact_id": "c07e", "supported": True, "score": 1.0, "title": "Mara Veldt",
                "evidence": "Mara Veldt plays the cello and ...", "estimator": "chat", ...}

A topic without an article gets null verdicts with the reason "no article"; so does a fact that a
labelled file calls irrelevant, which is in no human score. Identical facts of one topic are judged
once. Of several estimators joined by "+" all must support a fact.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from facttune_ray.config import Config, VerdictsConfig
from facttune_ray.errors import RowError, UserError, did_you_mean
from facttune_ray.prompts import template
from facttune_ray.prompts import verdicts as prompt
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context
from facttune_ray.stages.evidence import Evidence, evidence
from facttune_ray.text.decompose import normal_fact
from facttune_ray.verifiers import lexical

VERSION = 3
_UNKNOWN = {
    "supported": None,
    "score": None,
    "evidence": None,
    "title": None,
    "reason": None,
    "error": None,
}
IRRELEVANT = "IR"  # FActScore's label
PRESETS = {  # the reference's combinations by its own names (FActScore, factscorer.py)
    "retrieval+ChatGPT": ("chat",),
    "retrieval+llama": ("local_lm",),
    "retrieval+llama+npm": ("local_lm", "npm"),
    "retrieval+ChatGPT+npm": ("chat", "npm"),
    "npm": ("npm",),
}


def estimators(cfg: VerdictsConfig) -> tuple[str, ...]:
    """Names in ESTIMATORS of `verdicts.estimator`; UserError for an unknown one."""
    asked = cfg.estimator.lower()
    presets = {name.lower(): names for name, names in PRESETS.items()}
    names = presets.get(asked) or tuple(asked.split("+"))
    for name in names:
        if name not in ESTIMATORS:
            known = [*ESTIMATORS, *PRESETS]
            raise UserError(
                f'verdicts.estimator: no "{name}": one of {", ".join(ESTIMATORS)}, several joined '
                f'by "+", or {", ".join(PRESETS)}.{did_you_mean(name, known)}'
            )
    if len(names) > 1 and cfg.threshold is not None:
        raise UserError(
            f"verdicts.threshold={cfg.threshold:g} is of one estimator's scores, but "
            f"verdicts.estimator={cfg.estimator} has several: leave it null"
        )
    blind = cfg.retrieval == "none" and {"lexical", "npm"}.intersection(names)
    if blind:
        raise UserError(
            f"verdicts.retrieval=none shows no passages, but {min(blind)} compares with them: "
            f"set bm25, dense or fts"
        )
    if "local_lm" in names and not cfg.local_lm:
        raise UserError("verdicts.local_lm is empty: name a causal LM, by folder or hub id")
    return names


def second_opinion(cfg: Config) -> Config | None:
    """The settings of `evaluation.estimator`; None where there is no second opinion: none is
    wanted, it is the same as the first, or, for auto, a part of it or without articles."""
    asked, first = cfg.evaluation.estimator, estimators(cfg.verdicts)
    if asked == "none" or (asked == "auto" and not knows(cfg)):
        return None
    name = "lexical" if asked == "auto" else asked
    shown = "bm25" if cfg.verdicts.retrieval == "none" else cfg.verdicts.retrieval
    other = replace(cfg.verdicts, estimator=name, retrieval=shown, threshold=None)
    try:
        names = set(estimators(other))
    except UserError as e:
        raise UserError(str(e).replace("verdicts.estimator", "evaluation.estimator")) from None
    if names == set(first) or (asked == "auto" and names & set(first)):
        return None
    return replace(cfg, verdicts=other)


def knows(cfg: Config) -> bool:
    """Whether the run has a knowledge source."""
    return cfg.data.source == "world" or bool(cfg.data.knowledge)


def threshold(cfg: VerdictsConfig, name: str) -> float:
    return THRESHOLDS[name] if cfg.threshold is None else cfg.threshold


def recipe(cfg: Config) -> dict:
    """Only the settings that the chosen estimators use."""
    v, names = cfg.verdicts, estimators(cfg.verdicts)
    found: dict = {"verdicts.estimator": "+".join(names), "verdicts.no_article": v.no_article}
    keys: list[str] = []
    if names != ("lexical",):
        keys += ["retrieval", "dense"] if v.retrieval == "dense" else ["retrieval"]
    if {"chat", "local_lm"} & set(names):
        keys.append("passages")
    if "npm" in names:
        keys += ["npm", "npm_passages"]
    if "local_lm" in names:
        keys.append("local_lm")
    if "chat" in names:
        keys += ["facts_per_request", "logprobs"]
        found |= connect.recipe(cfg)
        templates = [prompt.CLOSED if v.retrieval == "none" else prompt.TEMPLATE]
        templates += [prompt.MANY] * (v.facts_per_request > 1)
        found |= {f"prompts/{t}.txt": template.fingerprint(t) for t in templates}
    if {"npm", "local_lm"} & set(names):
        keys.append("dtype")
    if "chat" not in names or v.threshold is not None:
        found |= {f"threshold.{name}": threshold(v, name) for name in names}
    return found | {f"verdicts.{key}": getattr(v, key) for key in keys}


async def run(context: Context, shard: int) -> list[dict]:
    facts = context.rows("facts", shard)
    by_topic: dict[str, dict[str, str]] = {}  # topic -> normal form -> first wording
    for f in facts:
        if f["fact"] and f.get("human_label") != IRRELEVANT:
            by_topic.setdefault(f["topic"], {}).setdefault(normal_fact(f["fact"]), f["fact"])
    judged = await asyncio.gather(
        *(_judge(context, topic, list(found.values())) for topic, found in by_topic.items())
    )
    verdict = {
        (topic, normal): v
        for (topic, found), values in zip(by_topic.items(), judged, strict=True)
        for normal, v in zip(found, values, strict=True)
    }
    return [_row(f, context.cfg, verdict) for f in facts]


def _row(fact: dict, cfg: Config, verdict: dict[tuple[str, str], dict]) -> dict:
    if fact.get("human_label") == IRRELEVANT:
        value = _UNKNOWN | {"reason": "irrelevant: the labelled file says so"}
    elif fact["fact"]:
        value = verdict[fact["topic"], normal_fact(fact["fact"])]
    else:
        value = _UNKNOWN | {"reason": "no fact"}
    return {
        "fact_id": fact["fact_id"],
        "response_id": fact["response_id"],
        "topic": fact["topic"],
        "estimator": cfg.verdicts.estimator,
        **value,
    }


async def _judge(context: Context, topic: str, facts: list[str]) -> list[dict]:
    """One verdict a fact: of every estimator, then all together."""
    cfg, names = context.cfg.verdicts, estimators(context.cfg.verdicts)
    # lexical looks at the whole article: nothing to rank
    most = 0 if names == ("lexical",) else max(cfg.passages, cfg.npm_passages)
    found = await evidence(context, topic, facts, most)
    if found.reason is not None:
        return [_UNKNOWN | {"reason": found.reason}] * len(facts)
    by_estimator = [await ESTIMATORS[name](context, topic, facts, found) for name in names]
    return [_together(verdicts) for verdicts in zip(*by_estimator, strict=True)]


def _together(verdicts: tuple[dict, ...]) -> dict:
    """All must support; one that does not decides, even when another is unknown."""
    if len(verdicts) == 1:
        return verdicts[0]
    deciding = [v for v in verdicts if v["supported"] is False] or [
        v for v in verdicts if v["supported"] is None
    ]
    chosen = (deciding or list(verdicts))[0]
    if chosen["supported"] is None:
        return chosen
    known = [v["score"] for v in verdicts if v["score"] is not None]
    return chosen | {"score": min(known) if known else None, "reason": None, "error": None}


def _verdict(
    found: Evidence, fact: int, score: float | None, least: float, at: int | None = None
) -> dict:
    """A verdict from a score; `at`: the passage that decided, else the best."""
    at = at if at is not None else (found.of[fact] or (None,))[0]
    return _UNKNOWN | {
        "score": score,
        "supported": None if score is None else score >= least,
        "evidence": None if at is None else found.passages[at],
        "title": None if at is None else found.titles[at],
        "reason": "nothing to check" if score is None else None,
    }


async def _lexical(context: Context, topic: str, facts: list[str], found: Evidence) -> list[dict]:
    least = threshold(context.cfg.verdicts, "lexical")
    prepared = lexical.prepare(topic, found.passages, context.articles.rarity)
    scored = [lexical.support_prepared(fact, prepared) for fact in facts]
    return [_verdict(found, i, s.score, least, s.evidence) for i, s in enumerate(scored)]


async def _chat(context: Context, topic: str, facts: list[str], found: Evidence) -> list[dict]:
    cfg = context.cfg.verdicts
    if cfg.facts_per_request > 1 and cfg.retrieval != "none":
        size = cfg.facts_per_request
        parts = [range(i, min(i + size, len(facts))) for i in range(0, len(facts), size)]
        many = await asyncio.gather(*(_ask_many(context, topic, facts, found, p) for p in parts))
        return [verdict for verdicts in many for verdict in verdicts]
    return await asyncio.gather(
        *(_ask_one(context, topic, fact, found, i) for i, fact in enumerate(facts))
    )


async def _ask_one(context: Context, topic: str, fact: str, found: Evidence, at: int) -> dict:
    cfg = context.cfg.verdicts
    if cfg.retrieval == "none":
        messages = prompt.render_closed(topic, fact)
    else:
        messages = prompt.render(topic, fact, found.shown(at)[: cfg.passages])
    params = {"logprobs": True, "top_logprobs": 5} if cfg.logprobs else None
    try:
        said, score = await context.client.ask_completion(
            messages, lambda c: (prompt.parse(c.answer), prompt.probability(c.top_logprobs)), params
        )
    except RowError as e:
        return _UNKNOWN | {"error": str(e)}
    if score is None:  # the endpoint told no log-probabilities, or was not asked for them
        score = float(said)
    verdict = _verdict(found, at, score, threshold(cfg, "chat"))
    return verdict if cfg.threshold is not None else verdict | {"supported": said}


async def _ask_many(
    context: Context, topic: str, facts: list[str], found: Evidence, part: range
) -> list[dict]:
    """Several facts in one request, with the passages of all; one by one if that fails."""
    cfg = context.cfg.verdicts
    shown = sorted({i for fact in part for i in found.of[fact][: cfg.passages]})
    messages = prompt.render_many(
        topic, [facts[i] for i in part], [found.passages[i] for i in shown]
    )
    try:
        said = await context.client.ask(messages, lambda text: prompt.parse_many(text, len(part)))
    except RowError:
        alone = (_ask_one(context, topic, facts[i], found, i) for i in part)
        return await asyncio.gather(*alone)
    least = threshold(cfg, "chat")
    return [_verdict(found, i, float(v), least) for i, v in zip(part, said, strict=True)]


async def _local_lm(context: Context, topic: str, facts: list[str], found: Evidence) -> list[dict]:
    cfg = context.cfg.verdicts
    shown = [found.shown(i)[: cfg.passages] for i in range(len(facts))]
    # passages in the article's order share more of their prompts
    model, article = context.local_lm, found.passages
    scores = await asyncio.to_thread(model.judge, topic, facts, shown, article)
    least = threshold(cfg, "local_lm")
    return [_verdict(found, i, score, least) for i, score in enumerate(scores)]


async def _npm(context: Context, topic: str, facts: list[str], found: Evidence) -> list[dict]:
    cfg = context.cfg.verdicts
    shown = [found.shown(i)[: cfg.npm_passages] for i in range(len(facts))]
    scores = await asyncio.to_thread(context.npm.judge, topic, facts, shown)
    least = threshold(cfg, "npm")
    return [_verdict(found, i, score, least) for i, score in enumerate(scores)]


ESTIMATORS = {"lexical": _lexical, "chat": _chat, "local_lm": _local_lm, "npm": _npm}
# supported from this score: FActScore takes logit True > logit False, and npm above 0.3
THRESHOLDS = {"lexical": lexical.THRESHOLD, "chat": 0.5, "local_lm": 0.5, "npm": 0.3}
