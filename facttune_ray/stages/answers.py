"""questions -> answers: the model's own answers, sampled n times (paper, section 3.2: 20).

in   questions  {"fact_id": "c07e", "question_id": "77d0", "topic": "Mara Veldt",
                 "question": "What does Mara Veldt play?"}
out  answers    {"question_id": "77d0", "answers": ["the cello", "cello", "the harp", ...], ...}

One row per distinct question of a topic.
"""

from __future__ import annotations

from collections.abc import Mapping

from facttune_ray.config import Config
from facttune_ray.config.stages import EXAMPLES
from facttune_ray.prompts import template
from facttune_ray.sampling import engines
from facttune_ray.sampling.protocol import SampleRequest, failure, texts
from facttune_ray.stages.context import Context
from facttune_ray.storage.schema import seed_from

VERSION = 2


def recipe(cfg: Config) -> dict:
    keys = ("samples", "max_tokens", "temperature", "top_p", "examples")
    out = {f"answers.{k}": getattr(cfg.answers, k) for k in keys}
    if cfg.answers.examples != "none" and cfg.answers.examples in EXAMPLES:
        name = f"answers_{cfg.answers.examples}"
        out[f"prompts/{name}.txt"] = template.fingerprint(name)
    return out | {"run.seed": cfg.run.seed} | engines.recipe(cfg)


async def run(context: Context, shard: int) -> list[dict]:
    asked: dict[str, dict] = {}
    for q in context.rows("questions", shard):
        if q["question"]:
            asked.setdefault(q["question_id"], q)
    sampled = await context.sample(request(context.cfg, context.work.snapshot, asked))
    return [
        {
            "question_id": qid,
            "topic": q["topic"],
            "question": q["question"],
            "answers": [t.strip() for t in texts(samples) or ()] or None,
            "error": failure(samples),
        }
        for (qid, q), samples in zip(asked.items(), sampled, strict=True)
    ]


def request(cfg: Config, model: str, asked: Mapping[str, dict]) -> SampleRequest:
    """The answers to sample from `model`, a snapshot's name. `asked`: question_id -> its row."""
    a = cfg.answers
    return SampleRequest(
        [f"Question: {q['question']}\nAnswer:" for q in asked.values()],
        n=a.samples,
        seeds=[seed_from(cfg.run.seed, model, qid) for qid in asked],
        max_tokens=a.max_tokens,
        temperature=a.temperature,
        top_p=a.top_p,
        prefix=_prefix(a.examples),
        stop=("\n",),
        raw=True,
    )


def _prefix(examples: str) -> str:
    """The worked questions of a name, or of the text that a file had."""
    if examples == "none":
        return ""
    return (template.text(f"answers_{examples}") if examples in EXAMPLES else examples) + "\n"
