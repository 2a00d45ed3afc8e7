"""Responses of some topics: the sample that an estimate counts from.

    topic_sample(cfg, "base/tune", ("train", "val"), topics=100)
    -> TopicSample(responses=[...], prompts=[...], topics=100, all_topics=355, counts={})

A topic is chosen by its digest, so the same topics are chosen each time.

Before any response is sampled, placeholder responses take their place. The text of a placeholder is
sentences of the topic's article, drawn by its id: it is about the same things as a real response,
and has half as many words as `responses.max_tokens` allows tokens. A topic without an article
borrows sentences of the other topics.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.estimate.trial import CountingClient, RequestCounts, TrialContext
from facttune_ray.knowledge.articles import Articles
from facttune_ray.loop.start import knowledge_file
from facttune_ray.sources import topics as topics_files
from facttune_ray.stages import connect, prompts
from facttune_ray.stages.responses import count
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.schema import digest, seed_from
from facttune_ray.storage.tables import Folder
from facttune_ray.text.sentences import split


@dataclass
class TopicSample:
    """All prompts and responses of some topics."""

    responses: list[dict]
    prompts: list[dict]
    topics: int  # topics in the sample
    all_topics: int
    counts: dict[str, RequestCounts] = field(default_factory=dict)  # stage -> its trial requests


def topic_sample(cfg: Config, scope: str, splits: tuple[str, ...], topics: int) -> TopicSample:
    """A sample of `topics` topics of these splits. UserError if there is nothing to count from."""
    folder = Folder.of(cfg.run.out) / scope / "responses"
    if cfg.data.source in prompts.IMPORTED:
        responses: Iterable[dict] = prompts.numbered(prompts.imported_responses(cfg))
    elif tables.has_manifest(folder):
        responses = tables.rows(folder)
    elif cfg.data.source == "topics":
        return _placeholder_sample(cfg, splits, topics)
    else:
        raise UserError(
            "an estimate needs responses to count from: run `facttune stage pretrain` and "
            "`facttune stage responses` with the same config first (no LLM request is made)"
        )
    by_topic: dict[str, list[dict]] = {}
    for row in responses:
        by_topic.setdefault(row["topic"], []).append(row)
    chosen = _chosen(by_topic, topics)
    if cfg.data.source == "topics":
        every: Iterable[dict] = tables.rows(Folder.of(cfg.run.out) / "prompts")
    else:
        every = prompts.once(prompts.prompts(cfg))
    asked = [p for p in every if p["topic"] in set(chosen) and p["prompt"] is not None]
    rows = [row for topic in chosen for row in by_topic[topic]]
    return TopicSample(rows, asked, len(chosen), len(by_topic))


def _placeholder_sample(cfg: Config, splits: tuple[str, ...], topics: int) -> TopicSample:
    """Placeholder responses to prompts that the stage `prompts` makes here, on trial."""
    by_topic = {row["topic"]: row for row in topics_files.topics(cfg) if row["split"] in splits}
    chosen = [by_topic[topic] for topic in _chosen(by_topic, topics)]
    client = CountingClient(cfg, connect.open_ledger(cfg), None)
    context = TrialContext(Work("prompts", "prompts", {}, cfg), {"topics": chosen}, client)
    asked = [p for p in asyncio.run(prompts.run(context, 0)) if p["prompt"] is not None]
    responses = list(placeholder_responses(cfg, asked, knowledge_file(cfg)))
    return TopicSample(responses, asked, len(chosen), len(by_topic), {"prompts": client.counts})


def _chosen(topics: Iterable[str], most: int) -> list[str]:
    return sorted(topics, key=lambda topic: seed_from("estimate", topic))[:most]


def placeholder_responses(cfg: Config, asked: list[dict], knowledge: str) -> Iterator[dict]:
    """Rows of `responses` to these prompts. UserError when none of their topics has an article."""
    articles = Articles(knowledge)
    words = max(1, cfg.responses.max_tokens // 2)
    by_topic = {
        topic: [s.text for passage in articles.passages(topic) or [] for s in split(passage)]
        for topic in {p["topic"] for p in asked}
    }
    every = [sentence for topic in sorted(by_topic) for sentence in by_topic[topic]]
    if not every:
        raise UserError(
            "data.knowledge: no article about any of these topics, from which an estimate takes "
            "the text of responses that are not sampled yet: run `facttune stage responses` with "
            "the same config first (no LLM request is made)"
        )
    for prompt in asked:
        for sample in range(count(cfg, prompt["split"])):
            key = digest(prompt["prompt_id"], "base", sample)
            sentences = by_topic[prompt["topic"]] or every
            yield prompt | {
                "response_id": key,
                "model": "base",
                "sample": sample,
                "text": _text(sentences, words, random.Random(key)),
                "tokens": None,
                "abstained": None,
                "error": None,
            }


def _text(sentences: list[str], words: int, rng: random.Random) -> str:
    """Shuffled sentences, as many as are needed for so many words."""
    chosen: list[str] = []
    for sentence in rng.sample(sentences, len(sentences)):
        if words <= 0:
            break
        chosen.append(sentence)
        words -= len(sentence.split())
    return " ".join(chosen)
