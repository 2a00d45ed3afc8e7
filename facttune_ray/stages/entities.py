"""responses -> entities: noun chunks, each sampled again from the text before it.

in   responses  {"response_id": "51ab", "topic": "Mara Veldt", "prompt": "Write a biography of ...",
                 "text": "Mara Veldt was born in Ostrava. She plays the cello."}
out  entities   {"entity_id": "b1d0", "response_id": "51ab", "text": "Ostrava", "start": 23,
                 "end": 30, "prefix": "Mara Veldt was born in", "tokens": 2,
                 "answers": ["Ostrava", "Brno", "Ostrava", ...], ...}

Each occurrence is a unit: the model may be sure of "Paris" at one place and guess it at another.
The model that wrote the response continues the text before the entity n times, each time by as many
tokens as the entity has. A response that cannot be parsed is one row with `text` null and the
`error`.
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.sampling import engines, templates
from facttune_ray.sampling.protocol import SampleRequest, failure, texts
from facttune_ray.stages.context import Context
from facttune_ray.stages.pipelines import version
from facttune_ray.storage.schema import digest, seed_from
from facttune_ray.text import entities, pipelines
from facttune_ray.text.entities import Entity

VERSION = 1
KEY = "entities.spacy_model"


def recipe(cfg: Config) -> dict:
    keys = ("samples", "temperature", "top_p")
    return {f"entities.{k}": getattr(cfg.entities, k) for k in keys} | {
        KEY: version(KEY, cfg.entities.spacy_model),
        **templates.recipe(cfg.model),
        "run.seed": cfg.run.seed,
        **engines.recipe(cfg),
    }


def hints(cfg: Config) -> list[str]:
    """No lines. A missing pipeline raises UserError here, before any worker starts."""
    pipelines.load(KEY, cfg.entities.spacy_model)
    return []


async def run(context: Context, shard: int) -> list[dict]:
    nlp = pipelines.load(KEY, context.cfg.entities.spacy_model)
    responses = [r for r in context.rows("responses", shard) if not r["error"] and r["text"]]
    found = entities.extract(nlp, [r["text"] for r in responses])
    rows: list[dict] = []
    asked: list[tuple[dict, str, str]] = []  # row, prompt, text before the entity
    for response, units in zip(responses, found, strict=True):
        if units is None:
            error = (
                f"not parsed: {len(response['text']):,} characters, more than the spaCy "
                f"pipeline's {nlp.max_length:,}"
            )
            rows.append(_row(response, None, error))
        for unit in units or []:
            rows.append(_row(response, unit, None))
            before = response["text"][: unit.start].rstrip(" ")
            asked.append((rows[-1], response["prompt"], before))
    if asked:
        await _sample(context, asked)
    return rows


def _row(response: dict, unit: Entity | None, error: str | None) -> dict:
    return {
        "entity_id": digest(response["response_id"], unit.start if unit else None),
        **{k: response[k] for k in ("response_id", "topic", "split")},
        "text": unit.text if unit else None,
        "start": unit.start if unit else None,
        "end": unit.end if unit else None,
        "prefix": entities.before(response["text"], unit.start) if unit else None,
        "tokens": None,
        "answers": None,
        "error": error,
    }


async def _sample(context: Context, asked: list[tuple[dict, str, str]]) -> None:
    """Fill in `tokens`, `answers` and `error` of the rows."""
    cfg, rows = context.cfg.entities, [row for row, _, _ in asked]
    counts = [max(1, n) for n in context.sampler.count_tokens([r["text"] for r in rows])]
    seed, snapshot = context.cfg.run.seed, context.work.snapshot
    sampled = await context.sample(
        SampleRequest(
            [prompt for _, prompt, _ in asked],
            n=cfg.samples,
            seeds=[seed_from(seed, snapshot, r["entity_id"]) for r in rows],
            max_tokens=counts,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            beginnings=[before for _, _, before in asked],
        )
    )
    for row, tokens, samples in zip(rows, counts, sampled, strict=True):
        row["tokens"] = tokens
        row["answers"] = [t.strip() for t in texts(samples) or ()] or None
        row["error"] = failure(samples)
