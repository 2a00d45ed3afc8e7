"""Find the passages that facts are judged by, in the topic's article or in all articles.

in   topic "Mara Veldt", facts ["Mara Veldt plays the cello."]
out  Evidence("Mara Veldt", [...], passages=("Mara Veldt plays the cello and ...",),
              titles=("Mara Veldt",), by_fact=((0,),))

`verdicts.retrieval` is bm25 or dense, which rank the passages of the topic's article; fts, which
searches every article and needs no title; or none, which shows no passage. A topic without an
article has no evidence and the reason "no article", unless `verdicts.no_article: search` searches
every article for passages that name the topic.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from facttune_ray.knowledge.retrieval import BM25
from facttune_ray.stages.context import Context
from facttune_ray.text.words import stems

HITS = 20  # passages of a search in all articles, before passages without the topic are dropped


@dataclass(frozen=True)
class Evidence:
    """A topic's facts and the passages that they are judged by."""

    topic: str
    facts: list[str]
    passages: tuple[str, ...] = ()  # of the article, in its order, or of a search
    titles: tuple[str, ...] = ()  # article of each passage
    by_fact: tuple[tuple[int, ...], ...] = ()  # fact -> indices of its passages, best first
    reason: str | None = None  # why there is no passage

    def shown(self, fact: int) -> list[str]:
        return [self.passages[i] for i in self.by_fact[fact]]


async def find_evidence(context: Context, topic: str, facts: list[str], k: int) -> Evidence:
    """`evidence_of`, in a thread if it runs a model or searches all articles."""
    cfg = context.cfg.verdicts
    if cfg.retrieval in ("dense", "fts") or cfg.no_article != "null":
        return await asyncio.to_thread(evidence_of, context, topic, facts, k)
    return evidence_of(context, topic, facts, k)


def evidence_of(context: Context, topic: str, facts: list[str], k: int) -> Evidence:
    """Up to k passages for each fact. k=0: the whole article, and no passages by fact."""
    cfg = context.cfg.verdicts
    if cfg.retrieval == "none":
        return Evidence(topic, facts, by_fact=((),) * len(facts))
    if cfg.retrieval != "fts":
        article = context.articles.find(topic)
        if article is not None and article.passages:
            passages = tuple(article.passages)
            titles = (article.title,) * len(passages)
            queries = [f"{topic} {fact}" for fact in facts]
            if k == 0:
                by_fact: list[list[int]] = [[] for _ in facts]
            elif cfg.retrieval == "bm25":
                index = BM25(passages)
                by_fact = [index.top(query, k) for query in queries]
            else:
                by_fact = context.dense.top(article.title, passages, queries, k)
            return Evidence(topic, facts, passages, titles, tuple(map(tuple, by_fact)))
        if cfg.no_article == "null":
            return Evidence(topic, facts, by_fact=((),) * len(facts), reason="no article")
    return _search(context, topic, facts, k)


def _search(context: Context, topic: str, facts: list[str], k: int) -> Evidence:
    """Passages of any article that contain every word of the topic's name."""
    name = set(stems(topic))
    place: dict[tuple[str, str], int] = {}  # (title, passage) -> its index
    by_fact = []
    for fact in facts:
        hits = context.articles.search(f"{topic} {fact}", HITS)
        named = [h for h in hits if name <= set(stems(f"{h.title} {h.passage}"))]
        by_fact.append(
            tuple(place.setdefault((h.title, h.passage), len(place)) for h in named[: k or HITS])
        )
    # A fact without such a passage is judged by the first passages of the topic's other facts.
    first = tuple(range(min(k or HITS, len(place))))
    by_fact = [indices or first for indices in by_fact]
    reason = None if place else "no article, and no passage names the topic"
    titles, passages = zip(*place, strict=True) if place else ((), ())
    return Evidence(topic, facts, passages, titles, tuple(by_fact), reason)
