"""answers, entities -> classes: the samples of a unit by meaning (paper, section 3.2).

in   answers  {"question_id": "77d0", "answers": ["the cello", "cello", "the harp", ...], ...}
     entities {"entity_id": "b1d0", "text": "Ostrava", "answers": ["Ostrava", "Brno", ...], ...}
out  classes  {"unit_id": "77d0", "unit": "question", "classes": [0, 0, 1, ...],
               "originals": ["the cello"], "shares": [0.85], ...}

Strings (`heuristic`, `exact`, `reference`), an LLM that judges pairs, or an entailment model decide
which samples are equal. Classes are a stage of their own, so another method needs no new samples.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.prompts import equivalence as prompt
from facttune_ray.prompts import template
from facttune_ray.scoring import equivalence
from facttune_ray.scoring.judged import Pair, PairPlan
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context

VERSION = 2


@dataclass(frozen=True)
class Unit:
    """A question or an entity, with its samples."""

    unit_id: str
    unit: str  # question | entity
    topic: str
    question: str  # what the samples answer or continue
    answers: list[str | None] | None
    originals: list[str]  # what the response itself says
    error: str | None


def recipe(cfg: Config) -> dict:
    c = cfg.classes
    settings: dict = {"classes.method": c.method}
    if c.method in ("llm", "nli"):
        settings["classes.max_pairs"] = c.max_pairs
    if c.method == "llm":
        settings |= connect.recipe(cfg)
        settings[f"prompts/{prompt.TEMPLATE}.txt"] = template.fingerprint(prompt.TEMPLATE)
    if c.method == "nli":
        settings |= {"classes.nli_model": c.nli_model, "classes.dtype": c.dtype}
    return settings


async def run(context: Context, shard: int) -> list[dict]:
    units = _units(context, shard)
    results = await METHODS[context.cfg.classes.method](context, units)
    return [_row(unit, *result) for unit, result in zip(units, results, strict=True)]


Result = tuple[list[int] | None, list[float | None], str | None]  # classes, shares, error


def _row(unit: Unit, classes: list[int] | None, shares: list, error: str | None) -> dict:
    failed = unit.error or error
    return {
        "unit_id": unit.unit_id,
        "unit": unit.unit,
        "topic": unit.topic,
        "classes": None if failed else classes,
        "originals": unit.originals,
        "shares": [None] * len(unit.originals) if failed else shares,
        "error": failed,
    }


def _units(context: Context, shard: int) -> list[Unit]:
    originals: dict[str, dict[str, None]] = {}
    for q in context.rows("questions", shard):
        if q["question_id"] and q["answer"]:
            originals.setdefault(q["question_id"], {})[q["answer"]] = None
    questions = [
        Unit(
            unit_id=a["question_id"],
            unit="question",
            topic=a["topic"],
            question=a["question"],
            answers=a["answers"],
            originals=list(originals.get(a["question_id"], ())),
            error=a["error"],
        )
        for a in context.rows("answers", shard)
    ]
    return questions + [
        Unit(
            unit_id=e["entity_id"],
            unit="entity",
            topic=e["topic"],
            question=f"How does this text about {e['topic']} go on? {e['prefix']} ...",
            answers=e["answers"],
            originals=[e["text"]],
            error=e["error"],
        )
        for e in context.rows("entities", shard)
        if e["text"] is not None
    ]


async def _by_strings(context: Context, units: list[Unit]) -> list[Result]:
    import pyarrow as pa

    strings, method = pa.list_(pa.string()), context.cfg.classes.method
    answers = pa.array([u.answers for u in units], strings)
    classes = equivalence.classes_of(answers, method).to_pylist()
    originals = pa.array([u.originals for u in units], strings)
    shares = equivalence.shares_of(answers, originals, method).to_pylist()
    return [(c, s, None) for c, s in zip(classes, shares, strict=True)]


async def _by_llm(context: Context, units: list[Unit]) -> list[Result]:
    async def judge(unit: Unit, plan: PairPlan, pair: Pair) -> bool:
        # Sort, so that the same two answers are one request in either order.
        first, second = sorted(plan.texts[i] for i in pair)
        return await context.client.ask(prompt.render(unit.question, first, second), prompt.parse)

    async def judge_unit(unit: Unit) -> Result:
        plan = _plan(context, unit)
        try:
            judged = await asyncio.gather(*(judge(unit, plan, pair) for pair in plan.pairs))
        except RowError as e:
            return None, [], str(e)
        same = {pair for pair, yes in zip(plan.pairs, judged, strict=True) if yes}
        return plan.classes(same), plan.shares(same), None

    return list(await asyncio.gather(*(judge_unit(u) for u in units)))


async def _by_nli(context: Context, units: list[Unit]) -> list[Result]:
    plans = [_plan(context, u) for u in units]
    pairs = [
        (f"{u.question} {plan.texts[a]}", f"{u.question} {plan.texts[b]}")
        for u, plan in zip(units, plans, strict=True)
        for a, b in plan.pairs
    ]
    judged = iter(context.entailment.same(pairs))
    results: list[Result] = []
    for plan in plans:
        same = {pair for pair in plan.pairs if next(judged)}
        results.append((plan.classes(same), plan.shares(same), None))
    return results


def _plan(context: Context, unit: Unit) -> PairPlan:
    return PairPlan.of_unit(unit.answers or [], unit.originals, context.cfg.classes.max_pairs)


METHODS = {
    "heuristic": _by_strings,
    "exact": _by_strings,
    "reference": _by_strings,
    "llm": _by_llm,
    "nli": _by_nli,
}
