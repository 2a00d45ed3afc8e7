"""prompts -> responses: n samples per prompt (paper, section 3: 10 at temperature 1.0).

in   prompts    {"prompt_id": "8f2c", "topic": "Mara Veldt", "split": "train",
                 "prompt": "Write a biography of Mara Veldt."}
out  responses  {"response_id": "51ab", "prompt_id": "8f2c", "model": "base", "sample": 3,
                 "text": "Mara Veldt was born in Ostrava. She ...", "tokens": 31, ...}
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.llm.replies import split_thoughts
from facttune_ray.sampling import engines, templates
from facttune_ray.sampling.protocol import Sample, SampleRequest
from facttune_ray.stages.context import Context
from facttune_ray.storage.schema import digest, seed_from

VERSION = 2


def recipe(cfg: Config) -> dict:
    keys = ("samples", "max_tokens", "temperature", "top_p")
    stop = {"responses.stop": cfg.responses.stop} if cfg.responses.stop else {}
    return (
        {f"responses.{k}": getattr(cfg.responses, k) for k in keys}
        | stop
        | {
            "evaluation.samples": cfg.evaluation.samples,
            **templates.recipe(cfg.model),
            "run.seed": cfg.run.seed,
            **engines.recipe(cfg),
        }
    )


async def run(context: Context, shard: int) -> list[dict]:
    cfg, snapshot = context.cfg, context.work.snapshot
    prompts = [p for p in context.rows("prompts", shard) if p["prompt"] is not None]
    out: list[dict] = []
    for n, chosen in _by_count(prompts, cfg).items():
        sampled = await context.sample(
            SampleRequest(
                [p["prompt"] for p in chosen],
                n=n,
                seeds=[seed_from(cfg.run.seed, snapshot, p["prompt_id"]) for p in chosen],
                max_tokens=cfg.responses.max_tokens,
                temperature=cfg.responses.temperature,
                top_p=cfg.responses.top_p,
                stop=tuple(cfg.responses.stop),
            )
        )
        for prompt, samples in zip(chosen, sampled, strict=True):
            out += [
                {
                    **prompt,
                    "response_id": digest(prompt["prompt_id"], snapshot, i),
                    "model": snapshot,
                    "sample": i,
                    "text": s.text if s.error is None else None,
                    "thoughts": s.thoughts or None,
                    "tokens": s.tokens if s.error is None else None,
                    "abstained": None,
                    "error": s.error,
                }
                for i, s in enumerate(apart(samples))
            ]
    return out


def apart(samples: list[Sample]) -> list[Sample]:
    """Move the thoughts of a reasoning model out of the texts. Only the text is scored and trained
    on."""
    return [
        s if s.thoughts else s._replace(text=text.lstrip() if thoughts else text, thoughts=thoughts)
        for s in samples
        for text, thoughts in [split_thoughts(s.text)]
    ]


def _by_count(prompts: list[dict], cfg: Config) -> dict[int, list[dict]]:
    """number of responses -> the prompts that get so many."""
    out: dict[int, list[dict]] = {}
    for p in prompts:
        out.setdefault(count(cfg, p["split"]), []).append(p)
    return out


def count(cfg: Config, split: str) -> int:
    """The number of responses to a prompt of this split."""
    return cfg.responses.samples if split == "train" else cfg.evaluation.samples
