"""responses -> facts: sentences, then atomic facts, one LLM request a sentence (FActScore).

in   responses  {"response_id": "51ab", "topic": "Mara Veldt",
                 "text": "Mara Veldt was born in Ostrava. She plays the cello."}
out  facts      {"fact_id": "c07e", "response_id": "51ab", "position": 1, "sentence": 1,
                 "sentence_text": "She plays the cello.", "fact": "Mara Veldt plays the cello.",
                 "repeated": False, ...}

Identical sentences of one topic are asked once. A sentence whose request failed is one row with
`fact` null and the `error`. An abstained response has no facts. With `facts.method: labels` the
labelled file's human facts and labels are taken instead.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable

from facttune_ray.config import Config
from facttune_ray.errors import RowError
from facttune_ray.prompts import facts as prompt
from facttune_ray.prompts import template
from facttune_ray.schema import digest
from facttune_ray.scoring.decompose import normal_fact, rule_facts, sentences
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context

VERSION = 1
Unit = tuple[str, list[tuple[str, str | None]], str | None]  # sentence, (fact, label)s, error


def recipe(cfg: Config) -> dict:
    if cfg.facts.method != "llm":
        return {"facts.method": cfg.facts.method}
    return {
        "facts.method": "llm",
        **connect.recipe(cfg),
        "prompts/facts.txt": template.fingerprint(prompt.TEMPLATE),
    }


async def run(context: Context, shard: int) -> list[dict]:
    responses = context.rows("responses", shard)
    split = METHODS[context.cfg.facts.method]
    units = await asyncio.gather(*(split(context, r) for r in responses))
    return [row for r, u in zip(responses, units, strict=True) for row in _rows(r, u)]


def _rows(response: dict, units: Iterable[Unit]) -> Iterable[dict]:
    seen: set[str] = set()
    position = 0
    for index, (sentence, found, error) in enumerate(units):
        listed: list[tuple[str | None, str | None]] = [*found]
        for fact, label in listed or [(None, None)] * bool(error):
            normal = normal_fact(fact) if fact else None
            yield {
                "fact_id": digest(response["response_id"], position),
                "response_id": response["response_id"],
                "topic": response["topic"],
                "split": response["split"],
                "position": position,
                "sentence": index,
                "sentence_text": sentence,
                "fact": fact,
                "repeated": normal in seen if normal else None,
                "human_label": label,
                "error": error,
            }
            position += 1
            if normal:
                seen.add(normal)


async def _llm(context: Context, response: dict) -> list[Unit]:
    async def one(sentence: str) -> Unit:
        try:
            messages = prompt.render(response["topic"], sentence)
            found = await context.client.ask(messages, prompt.parse)
        except RowError as e:
            return sentence, [], str(e)
        return sentence, [(fact, None) for fact in found], None

    return list(await asyncio.gather(*map(one, _sentences(response))))


async def _rules(context: Context, response: dict) -> list[Unit]:
    return [
        (s, [(fact, None) for fact in rule_facts(response["topic"], s)], None)
        for s in _sentences(response)
    ]


async def _labels(context: Context, response: dict) -> list[Unit]:
    labelled = _labelled(context.cfg.data.folder, tuple(context.cfg.data.files))
    record = labelled[response["model"], response["topic"]]
    return [(s.text, list(s.human_facts), None) for s in record.sentences]


def _sentences(response: dict) -> list[str]:
    if response["abstained"] or response["error"] or not response["text"]:
        return []
    return sentences(response["text"])


@functools.cache
def _labelled(folder: str, files: tuple[str, ...]) -> dict:
    from facttune_ray.interop import factscore

    return {(model, r.topic): r for model, r in factscore.read_all(folder, files)}


METHODS = {"llm": _llm, "rules": _rules, "labels": _labels}
