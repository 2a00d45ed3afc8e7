"""Facts -> the passages that each is judged by: from the topic's article, or from all articles.

in   topic "Mara Veldt", facts ["Mara Veldt plays the cello."]
out  Evidence(passages=("Mara Veldt plays the cello and ...",), of=((0,),), titles=("Mara Veldt",))

One retrieval a distinct fact. `verdicts.retrieval`: bm25 and dense rank the passages of the topic's
article; fts searches every article, so it needs no title; none shows nothing. A topic without an
article has no evidence and the reason "no article", unless `verdicts.no_article: search` looks for
passages anywhere that name the topic.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from facttune_ray.knowledge.retrieval import BM25
from facttune_ray.stages.context import Context
from facttune_ray.text.words import stems

HITS = 20  # of a search in all articles, before those that do not name the topic are left out


@dataclass(frozen=True)
class Evidence:
    """Passages that a topic's facts are judged by."""

    passages: tuple[str, ...] = ()  # whole article, or what was found
    titles: tuple[str, ...] = ()  # of each passage
    of: tuple[tuple[int, ...], ...] = ()  # fact -> its passages, best first
    reason: str | None = None  # why there is none

    def shown(self, fact: int) -> list[str]:
        return [self.passages[i] for i in self.of[fact]]


async def evidence(context: Context, topic: str, facts: list[str], k: int) -> Evidence:
    """Up to k passages for each fact; k 0: the article, with none chosen."""
    cfg = context.cfg.verdicts
    if cfg.retrieval == "none":
        return Evidence(of=((),) * len(facts))
    if cfg.retrieval != "fts":
        article = context.articles.find(topic)
        if article is not None and article.passages:
            passages = tuple(article.passages)
            titles = (article.title,) * len(passages)
            queries = [f"{topic} {fact}" for fact in facts]
            if k == 0:
                of: list[list[int]] = [[] for _ in facts]
            elif cfg.retrieval == "bm25":
                index = BM25(passages)
                of = [index.top(query, k) for query in queries]
            else:
                of = await asyncio.to_thread(context.dense.top, article.title, passages, queries, k)
            return Evidence(passages, titles, tuple(map(tuple, of)))
        if cfg.no_article == "null":
            return Evidence(of=((),) * len(facts), reason="no article")
    return await asyncio.to_thread(_searched, context, topic, facts, k)


def _searched(context: Context, topic: str, facts: list[str], k: int) -> Evidence:
    """Passages of any article that hold every word of the topic's name."""
    name = set(stems(topic))
    place: dict[tuple[str, str], int] = {}
    of = []
    for fact in facts:
        hits = context.articles.search(f"{topic} {fact}", HITS)
        named = [h for h in hits if name <= set(stems(f"{h.title} {h.passage}"))]
        of.append(
            tuple(place.setdefault((h.title, h.passage), len(place)) for h in named[: k or HITS])
        )
    # a fact for which no such passage was found is judged by those of the topic's other facts
    some = tuple(range(min(k or HITS, len(place))))
    of = [found or some for found in of]
    reason = None if place else "no article, and no passage names the topic"
    titles, passages = zip(*place, strict=True) if place else ((), ())
    return Evidence(passages, titles, tuple(of), reason)
