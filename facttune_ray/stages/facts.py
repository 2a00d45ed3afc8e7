"""responses -> facts: sentences, then atomic facts, one LLM request per sentence (FActScore).

in   responses  {"response_id": "51ab", "topic": "Mara Veldt",
                 "text": "Mara Veldt was born in Ostrava. She plays the cello."}
out  facts      {"fact_id": "c07e", "response_id": "51ab", "position": 1, "sentence": 1,
                 "sentence_text": "She plays the cello.", "start": 32, "end": 52,
                 "fact": "Mara Veldt plays the cello.", "repeated": False, ...}

Equal sentences of a topic are one request. A sentence whose request failed is one row with `fact`
null and an `error`; a response that declines to answer is one row with `fact` null and `abstained`.
`facts.method: rules` and `spacy` ask no LLM. `labels` takes the human facts and labels of a
labelled file, `atomic_facts` takes its model facts, like FActScore's --use_atomic_facts.
"""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from facttune_ray.config import Config
from facttune_ray.config.stages import FactsConfig
from facttune_ray.errors import RowError
from facttune_ray.prompts import abstention as abstention_prompt
from facttune_ray.prompts import facts as prompt
from facttune_ray.prompts import template
from facttune_ray.sources import factscore
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context
from facttune_ray.stages.pipelines import version, version_or_rules
from facttune_ray.storage.schema import digest
from facttune_ray.text import abstention, cleanup
from facttune_ray.text.decompose import normal_fact, rule_facts
from facttune_ray.text.parsed import parsed_facts
from facttune_ray.text.pipelines import load_for_facts
from facttune_ray.text.sentences import Sentence, carry, split

VERSION = 2
RULES_VERSION = 4  # raised when `facts.method=rules` gives other facts
PARSED_VERSION = 2  # raised when only `facts.method=spacy` gives other facts
MODEL = "facts.spacy_model"


@dataclass(frozen=True)
class Unit:
    """A sentence and its facts, or the reason why there are none."""

    sentence: Sentence | None
    facts: tuple[tuple[str, str | None], ...] = ()  # (fact, human label)
    error: str | None = None
    abstained: bool = False


def recipe(cfg: Config) -> dict:
    f = cfg.facts
    if f.method in ("labels", "atomic_facts"):
        return {"facts.method": f.method}
    keys = ["method", "abstention", "cleanup"]
    keys += ["domain", "carry_words", "decontextualize"] if f.method == "llm" else []
    settings: dict = {f"facts.{k}": getattr(f, k) for k in keys}
    if f.cleanup == "entities":
        settings[MODEL] = version_or_rules(MODEL, f.spacy_model)
    if f.method in ("rules", "spacy"):
        settings["facts.rules"] = RULES_VERSION
    if f.method == "spacy":
        settings["facts.parsed"] = PARSED_VERSION
        settings[MODEL] = version(MODEL, f.spacy_model)
    names = [prompt.template_name(f.domain, f.decontextualize)] if f.method == "llm" else []
    names += [abstention_prompt.TEMPLATE] if f.abstention == "llm" else []
    if names:
        settings |= connect.recipe(cfg)
    return settings | {f"prompts/{n}.txt": template.fingerprint(n) for n in names}


def hints(cfg: Config) -> list[str]:
    """Warnings of the clean-up, which the user would not see if a worker printed them. A missing
    pipeline of `facts.method=spacy` raises UserError here, before any worker starts."""
    if cfg.facts.method == "spacy":
        load_for_facts(MODEL, cfg.facts.spacy_model)
    if cfg.facts.cleanup == "none":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cleanup.load.cache_clear()
        cleanup.load(cfg.facts.spacy_model)
    return [str(w.message) for w in caught if "facts.cleanup" in str(w.message)]


async def run(context: Context, shard: int) -> list[dict]:
    responses = context.rows("responses", shard)
    units = list(await asyncio.gather(*(_units(context, r) for r in responses)))
    if context.cfg.facts.method == "spacy":
        units = _parsed(context, responses, units)
    return [row for r, u in zip(responses, units, strict=True) for row in _rows(r, u)]


def _rows(response: dict, units: Iterable[Unit]) -> Iterator[dict]:
    seen: set[str] = set()
    position = 0
    for index, unit in enumerate(units):
        facts: list[tuple[str | None, str | None]] = [*unit.facts]
        if not facts and (unit.error is not None or unit.abstained):
            facts = [(None, None)]
        for fact, label in facts:
            normal = normal_fact(fact) if fact else None
            yield {
                "fact_id": digest(response["response_id"], position),
                **{k: response[k] for k in ("response_id", "topic", "split")},
                "position": position,
                "sentence": index if unit.sentence else None,
                "sentence_text": unit.sentence.text if unit.sentence else None,
                "start": unit.sentence.start if unit.sentence else None,
                "end": unit.sentence.end if unit.sentence else None,
                "fact": fact,
                "repeated": normal in seen if normal else None,
                "human_label": label,
                "abstained": unit.abstained,
                "error": unit.error,
            }
            position += 1
            if normal:
                seen.add(normal)


async def _units(context: Context, response: dict) -> list[Unit]:
    cfg = context.cfg.facts
    if response["error"]:
        return []
    try:
        if await _abstained(context, response):
            return [Unit(None, abstained=True)]
    except RowError as e:
        return [Unit(None, error=f"abstention: {e}")]
    if cfg.method in ("labels", "atomic_facts"):
        return _labelled_facts(context.cfg, response)
    sentences = split(response["text"])
    if cfg.method == "llm":
        sentences = carry(sentences, cfg.carry_words)
    return list(await asyncio.gather(*(_unit(context, response, s) for s in sentences)))


async def _abstained(context: Context, response: dict) -> bool:
    if response["abstained"] is not None:
        return response["abstained"]
    name, text = context.cfg.facts.abstention, response["text"] or ""
    if name != "llm" or not text.strip():
        return abstention.detector("none" if name == "llm" else name)(text)
    messages = abstention_prompt.render(response["prompt"], text)
    return await context.client.ask(messages, abstention_prompt.parse)


def messages(cfg: FactsConfig, response: dict, sentence: str, start: int) -> list[dict[str, str]]:
    """The request for the facts of a sentence, which begins at character `start` of the response's
    text."""
    return prompt.render(
        response["topic"],
        sentence,
        domain=cfg.domain,
        context=response["text"][:start],
        decontextualize=cfg.decontextualize,
    )


async def _unit(context: Context, response: dict, sentence: Sentence) -> Unit:
    cfg = context.cfg.facts
    if cfg.method == "spacy":
        return Unit(sentence)  # `_parsed` adds the facts of all responses
    if cfg.method == "rules":
        facts = rule_facts(response["topic"], sentence.text)
    else:
        try:
            asked = messages(cfg, response, sentence.text, sentence.start)
            facts = await context.client.ask(asked, prompt.parse, reject_cut=True)
        except RowError as e:
            return Unit(sentence, error=str(e))
    return _cleaned(context, response, sentence, facts)


def _cleaned(context: Context, response: dict, sentence: Sentence, facts: list[str]) -> Unit:
    if context.cfg.facts.cleanup == "entities":
        known = [response["topic"], response["text"][: sentence.start]]
        facts = cleanup.clean(sentence.text, facts, context.entities, known)
    return Unit(sentence, tuple((fact, None) for fact in facts))


def _parsed(context: Context, responses: list[dict], units: list[list[Unit]]) -> list[list[Unit]]:
    """The units of the responses with their facts. All sentences go through the parser together."""
    texts = [
        (r["topic"], [u.sentence.text for u in some if u.sentence])
        for r, some in zip(responses, units, strict=True)
    ]
    facts = iter(parsed_facts(context.parser, texts))
    return [
        [_cleaned(context, r, u.sentence, next(facts)) if u.sentence else u for u in some]
        for r, some in zip(responses, units, strict=True)
    ]


def _labelled_facts(cfg: Config, response: dict) -> list[Unit]:
    """The facts of the response in the labelled file. UserError when the file has none."""
    records = _records(cfg.data.folder, tuple(cfg.data.files))
    record = records[response["model"], response["topic"], response["text"]]
    at, units = 0, []
    human = cfg.facts.method == "labels"
    for text, facts in factscore.given_facts(record, "human" if human else "model"):
        start = response["text"].find(text, at)
        at = start + len(text) if start >= 0 else at
        span = (start, at) if start >= 0 else (at, at)  # the file has another text
        units.append(Unit(Sentence(text, *span), facts))
    return units


@functools.cache
def _records(folder: str, files: tuple[str, ...]) -> dict:
    records = factscore.read_all(folder, files)
    return {(model, r.topic, r.response): r for model, r in records}
