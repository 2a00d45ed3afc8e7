"""topics -> prompts: the start of a run.

in   topics   {"topic": "Mara Veldt", "split": "train", "pronoun": "her", "lower_case": None}
out  prompts  {"prompt_id": "8f2c", "topic": "Mara Veldt", "split": "train",
               "prompt": "Write a biography of Mara Veldt.", "pronoun": "her", ...}

With `data.source: topics` this stage makes the prompts: one sentence per topic, or questions by an
LLM, which is asked until there are `prompts.questions` distinct questions or no new question comes.
A topic with fewer questions keeps them and has a row with the `error`.

The other sources have prompts, which the driver writes. `responses`, `factscore` and `tuning` also
have responses. They become a table `responses`, whose model is the name of the file or "imported".
A topic lies in one shard, by its digest, and in one split.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Iterable, Iterator

from facttune_ray.config import Config, DataConfig
from facttune_ray.errors import RowError, UserError
from facttune_ray.prompts import prompts as prompt
from facttune_ray.prompts import template
from facttune_ray.sources import factscore, topic_files, tuning, world
from facttune_ray.sources import topics as files
from facttune_ray.stages import connect
from facttune_ray.stages.context import Context
from facttune_ray.storage import records
from facttune_ray.storage.schema import digest, seed_from
from facttune_ray.storage.tables import Folder

IMPORTED = ("responses", "factscore", "tuning")  # sources that bring responses
VERSION = 2


def driver_recipe(cfg: Config) -> dict:
    """The settings that change the tables that the driver writes: `topics`, or else `prompts` and
    imported responses."""
    return {"run.shards": cfg.run.shards, "version": VERSION} | source_recipe(cfg)


def recipe(cfg: Config) -> dict:
    """The settings that turn topics into prompts."""
    p = cfg.prompts
    if p.method == "template":
        return {"prompts.template": prompt.sentence(p.domain, p.form, p.template)}
    name = prompt.template_name(p.domain)
    found = {"prompts.questions": p.questions, f"prompts/{name}.txt": template.fingerprint(name)}
    return connect.recipe(cfg) | {"prompts.domain": p.domain} | found


async def run(context: Context, shard: int) -> list[dict]:
    cfg = context.cfg.prompts
    rows = context.rows("topics", shard)
    if cfg.method == "template":
        settings = (cfg.domain, cfg.form, cfg.template)
        return [
            _asked(row, prompt.filled(row["topic"], *settings, row["lower_case"])) for row in rows
        ]
    by_topic = await asyncio.gather(*(_questions(context, row) for row in rows))
    return [row for questions in by_topic for row in questions]


async def _questions(context: Context, row: dict) -> list[dict]:
    """Rows of a topic's questions, and a row with an error if they are too few."""
    cfg, topic, lower = context.cfg.prompts, row["topic"], row["lower_case"]
    questions: dict[frozenset[str], str] = {}
    error, before = "", -1
    while before < len(questions) < cfg.questions:
        before = len(questions)
        number = cfg.questions - before
        messages = prompt.render(topic, number, cfg.domain, list(questions.values()), lower)
        try:
            answer = await context.client.ask(
                messages, lambda text: prompt.parse(text, topic, lower)
            )
        except RowError as e:
            error = f"; {e}"
            break
        for question in answer:
            if len(questions) < cfg.questions:
                questions.setdefault(prompt.distinct(question), question)
    out = [_asked(row, question) for question in questions.values()]
    if len(questions) < cfg.questions:
        line = f"{len(questions)} of {cfg.questions} distinct questions{error}"
        out.append(_asked(row, None) | {"error": line})
    return out


def _asked(row: dict, text: str | None) -> dict:
    return row | {"prompt_id": digest(row["topic"], text), "prompt": text, "error": None}


def source_recipe(cfg: Config) -> dict:
    """The settings that change topics and texts. Files count by content, not by path."""
    if cfg.data.source in ("topics", "responses"):
        return files.recipe(cfg)
    if cfg.data.source == "world":
        return {
            "data.source": "world",
            "world.version": world.VERSION,
            "run.seed": cfg.run.seed,
            **{f"data.world.{k}": v for k, v in vars(cfg.data.world).items()},
        }
    if cfg.data.source == "tuning":
        return {"data.source": "tuning"} | {
            f"data.folder/{name}": records.file_digest(cfg.data.folder, name)
            for split, topics in _tuning_topics(cfg).items()
            for name in _tuning_files(split, topics)
        }
    return {
        "data.source": "factscore",
        "run.seed": cfg.run.seed,
        "data.val": cfg.data.val,
        "data.test": cfg.data.test,
        **{f"data.files/{f}": records.file_digest(cfg.data.folder, f) for f in cfg.data.files},
    }


@functools.lru_cache(maxsize=1)
def make_world(seed: int, people: int, train: int, val: int, test: int) -> world.World:
    return world.make(seed, people, train=train, val=val, test=test)


def world_of(cfg: Config) -> world.World:
    """The run's fictional world, made again from its seed."""
    return make_world(cfg.run.seed, **vars(cfg.data.world))


def prompts(cfg: Config) -> Iterator[dict]:
    """Prompt rows, topics in order. An import repeats a prompt for each response: see `once`."""
    if cfg.data.source == "world":
        made = world_of(cfg)
        fame = world.fame(made)
        pronouns = {p.name: {"She": "her", "He": "him"}[p.pronoun] for p in made.people}
        for split, topics in made.splits.items():
            for topic in topics:
                row = _prompt(topic, split, world.biography_prompt(topic))
                yield row | {"pronoun": pronouns[topic], "group": fame[topic]}
    elif cfg.data.source == "tuning":
        for name, asked in _tuning_topics(cfg).items():
            yield from tuning.prompts(asked, name)
    else:
        yield from imported_responses(cfg)


def imported_responses(cfg: Config) -> Iterator[dict]:
    """The responses of the files, as rows of `responses`. `numbered` adds missing ids."""
    if cfg.data.source == "responses":
        yield from files.responses(cfg)
        return
    if cfg.data.source == "tuning":
        for split, topics in _tuning_topics(cfg).items():
            yield from tuning.responses(topics, split, cfg.data.folder, "imported")
        return
    for model, record in factscore.read_all(cfg.data.folder, cfg.data.files):
        yield {
            **_prompt(record.topic, _split(record.topic, cfg), record.prompt),
            "group": record.group,
            "response_id": None,
            "model": model,
            "sample": None,
            "text": record.response,
            "tokens": None,
            "abstained": record.abstained,
            "error": None,
        }


def once(rows: Iterable[dict]) -> Iterator[dict]:
    """The first row of each prompt. Memory grows with the rows, so give it one shard's rows."""
    seen: set[str] = set()
    for row in _in_one_split(rows):
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            yield row


def numbered(rows: Iterable[dict]) -> Iterator[dict]:
    """Responses with ids: a file may hold several responses of a model to one prompt. Memory grows
    with the rows, so give it one shard's rows."""
    seen: Counter[tuple[str, str]] = Counter()
    for row in _in_one_split(rows):
        if row["sample"] is None:
            key = row["prompt_id"], row["model"]
            row = row | {"response_id": digest(*key, seen[key]), "sample": seen[key]}
            seen[key] += 1
        yield row


def _in_one_split(rows: Iterable[dict]) -> Iterator[dict]:
    splits: dict[str, str] = {}
    for row in rows:
        first = splits.setdefault(row["topic"], row["split"])
        if first != row["split"]:
            raise UserError(
                f'{row["where"]}: topic "{row["topic"]}" is in split {first}, too: leave it in one'
            )
        yield row


def _tuning_topics(cfg: Config) -> dict[str, list[tuning.Topic]]:
    """Topics of each questions file. UserError when there is no file, or when a topic is in two
    files: a model would be trained and measured on it."""
    names = set(Folder.of(cfg.data.folder).names())
    splits = [s for s in tuning.SPLITS if f"questions_per_topic_{s}.json" in names]
    if not splits:
        raise UserError(f"{cfg.data.folder}: no questions_per_topic_*.json: check data.folder")
    found = {split: tuning.read_topics(cfg.data.folder, split) for split in splits}
    seen: dict[str, str] = {}
    for split, topics in found.items():
        for t in topics:
            if (other := seen.setdefault(t.topic, split)) != split:
                raise UserError(
                    f'{cfg.data.folder}: topic "{t.topic}" is in questions_per_topic_{other}'
                    f".json and questions_per_topic_{split}.json: leave it in one"
                )
    return found


def _tuning_files(split: str, topics: list[tuning.Topic]) -> list[str]:
    names = [f"responses/{topic_files.file_name(t.topic, '_generations.json')}" for t in topics]
    return [f"questions_per_topic_{split}.json", *names]


def _prompt(topic: str, split: str, prompt: str) -> dict:
    ids = {"prompt_id": digest(topic, prompt), "topic": topic, "split": split}
    return ids | {"prompt": prompt, "pronoun": None, "lower_case": None}


def _split(topic: str, cfg: Config) -> str:
    """A topic's split, by its digest and the seed: a new topic does not move the others."""
    data: DataConfig = cfg.data
    place = seed_from("split", cfg.run.seed, topic) % 10_000 / 10_000
    return "test" if place < data.test else "val" if place < data.test + data.val else "train"
