"""What an estimate counts from before anything is sampled: prompts and responses of some topics.

    responses(cfg, prompts, "knowledge.db")
    -> [{"response_id": "51ab", "topic": "Marie Curie", "text": "Curie was born in ...", ...}]

A response that is not there yet is stood in for by sentences of the topic's article, drawn by the
run's seed: text about the same things, half as many words as `responses.max_tokens` has tokens.
Topics without an article borrow sentences of the others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator

from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.knowledge.articles import Articles
from facttune_ray.stages import prompts
from facttune_ray.stages.context import Context
from facttune_ray.stages.responses import count
from facttune_ray.storage.schema import digest
from facttune_ray.text.sentences import split


def words(cfg: Config) -> int:
    """Words of a response."""
    return max(1, cfg.responses.max_tokens // 2)


def asked(context: Context) -> list[dict]:
    """Rows of `prompts` of the context's topics, as the stage makes them."""
    return [p for p in asyncio.run(prompts.run(context, 0)) if p["prompt"] is not None]


def responses(cfg: Config, rows: Iterable[dict], knowledge: str) -> Iterator[dict]:
    """Rows of `responses` to these prompts. UserError when no topic of them has an article."""
    rows, articles = list(rows), Articles(knowledge)
    told = {
        t: [s.text for p in articles.passages(t) or [] for s in split(p)]
        for t in {r["topic"] for r in rows}
    }
    every = [s for t in sorted(told) for s in told[t]]
    if not every:
        raise UserError(
            "an estimate before any response is there takes their text from the topics' articles, "
            "and none of these topics has one in data.knowledge: run `facttune stage responses` "
            "with the same config first (no LLM request is made)"
        )
    for row in rows:
        for sample in range(count(cfg, row["split"])):
            key = digest(row["prompt_id"], "base", sample)
            text = _text(told[row["topic"]] or every, words(cfg), random.Random(key))
            yield row | {
                "response_id": key,
                "model": "base",
                "sample": sample,
                "text": text,
                "tokens": None,
                "abstained": None,
                "error": None,
            }


def _text(sentences: list[str], most: int, draw: random.Random) -> str:
    """Some of the sentences, in another order, until there are so many words."""
    out: list[str] = []
    count = 0
    for sentence in draw.sample(sentences, len(sentences)):
        if count >= most:
            break
        out.append(sentence)
        count += len(sentence.split())
    return " ".join(out)
