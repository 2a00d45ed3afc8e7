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

import functools
import hashlib
import importlib.metadata
from pathlib import Path

from facttune_ray.config import Config
from facttune_ray.sampling import engines, templates
from facttune_ray.sampling.protocol import SampleRequest, failure, texts
from facttune_ray.stages.context import Context
from facttune_ray.storage.schema import digest, seed_from
from facttune_ray.text import entities
from facttune_ray.text.entities import Entity

VERSION = 1


def recipe(cfg: Config) -> dict:
    keys = ("samples", "temperature", "top_p")
    return {f"entities.{k}": getattr(cfg.entities, k) for k in keys} | {
        "entities.spacy_model": pipeline_version(cfg.entities.spacy_model),
        **templates.recipe(cfg.model),
        "run.seed": cfg.run.seed,
        **engines.recipe(cfg),
    }


@functools.cache
def pipeline_version(name: str) -> str:
    """Name and version of a package, or a digest of the files of a folder, wherever it lies.
    UserError when the pipeline is neither."""
    folder = Path(name)
    if folder.is_dir():
        return digest(*(_file(p, folder) for p in sorted(folder.rglob("*")) if p.is_file()))
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return f"{name} {entities.load(name).meta['version']}"  # raises UserError


def _file(path: Path, folder: Path) -> str:
    with path.open("rb") as file:
        return f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def hints(cfg: Config) -> list[str]:
    """No lines. A missing pipeline raises UserError here, before any worker starts."""
    entities.load(cfg.entities.spacy_model)
    return []


async def run(context: Context, shard: int) -> list[dict]:
    nlp = entities.load(context.cfg.entities.spacy_model)
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
