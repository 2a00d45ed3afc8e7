"""Topics -> prompts: where a run begins. Runs on the driver: it only writes strings.

out  prompts  {"prompt_id": "8f2c", "topic": "Mara Veldt", "split": "train",
               "prompt": "Write a biography of Mara Veldt.", "pronoun": "her", ...}

A topic lies in one shard, by its digest, and in one split. `data.source: factscore` and `tuning`
bring responses, too: they become a `responses` table, whose model is the file's name or "imported".
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator

from facttune_ray.config import Config, DataConfig
from facttune_ray.errors import UserError
from facttune_ray.interop import factscore, tuning
from facttune_ray.quickstart import world
from facttune_ray.schema import digest, seed_from
from facttune_ray.tables import Folder

VERSION = 2


def recipe(cfg: Config) -> dict:
    """What decides the tables of prompts and imported responses."""
    return {"run.shards": cfg.run.shards, "version": VERSION} | source_recipe(cfg)


def source_recipe(cfg: Config) -> dict:
    """What decides topics and texts; the labelled files count by content, not by path."""
    if cfg.data.source == "world":
        return {
            "data.source": "world",
            "world.version": world.VERSION,
            "run.seed": cfg.run.seed,
            **{f"data.world.{k}": v for k, v in vars(cfg.data.world).items()},
        }
    if cfg.data.source == "tuning":
        return {"data.source": "tuning"} | {
            f"data.folder/{name}": factscore.file_digest(cfg.data.folder, name)
            for split, topics in _tuning_topics(cfg).items()
            for name in _tuning_files(split, topics)
        }
    return {
        "data.source": "factscore",
        "run.seed": cfg.run.seed,
        "data.val": cfg.data.val,
        "data.test": cfg.data.test,
        **{f"data.files/{f}": factscore.file_digest(cfg.data.folder, f) for f in cfg.data.files},
    }


def shard_of(topic: str, shards: int) -> int:
    return seed_from("shard", topic) % shards


@functools.lru_cache(maxsize=1)
def make_world(seed: int, people: int, train: int, val: int, test: int) -> world.World:
    return world.make(seed, people, train=train, val=val, test=test)


def world_of(cfg: Config) -> world.World:
    """The run's fictional world, made again from its seed."""
    return make_world(cfg.run.seed, **vars(cfg.data.world))


def prompts(cfg: Config) -> Iterator[dict]:
    """Every prompt row, topics in order."""
    if cfg.data.source == "world":
        made = world_of(cfg)
        fame = world.fame(made)
        pronouns = {p.name: {"She": "her", "He": "him"}[p.pronoun] for p in made.people}
        for split, topics in made.splits.items():
            for topic in topics:
                row = _prompt(topic, split, world.biography_prompt(topic))
                yield row | {"pronoun": pronouns[topic], "group": fame[topic]}
        return
    if cfg.data.source == "tuning":
        for name, asked in _tuning_topics(cfg).items():
            yield from tuning.prompts(asked, name)
        return
    seen = set()
    for _, record in factscore.read_all(cfg.data.folder, cfg.data.files):
        row = _prompt(record.topic, _split(record.topic, cfg), record.prompt)
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            yield row | {"group": record.group}


def imported_responses(cfg: Config) -> Iterator[dict]:
    """The responses that stand in the files, as rows of `responses`."""
    if cfg.data.source == "tuning":
        for split, topics in _tuning_topics(cfg).items():
            yield from tuning.responses(topics, split, cfg.data.folder, "imported")
        return
    seen: Counter[tuple[str, str]] = Counter()
    for model, record in factscore.read_all(cfg.data.folder, cfg.data.files):
        prompt = _prompt(record.topic, _split(record.topic, cfg), record.prompt)
        sample = seen[model, prompt["prompt_id"]]  # a file may hold several responses to one
        seen[model, prompt["prompt_id"]] += 1
        yield {
            **prompt,
            "response_id": digest(prompt["prompt_id"], model, sample),
            "model": model,
            "sample": sample,
            "text": record.response,
            "tokens": None,
            "abstained": record.abstained,
            "error": None,
        }


def _tuning_topics(cfg: Config) -> dict[str, list[tuning.Topic]]:
    """Topics of each questions file that is there. UserError when there is none, or when a topic
    stands in two: it would be trained on and measured."""
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
                    f'{cfg.data.folder}: topic "{t.topic}" stands in questions_per_topic_{other}'
                    f".json and questions_per_topic_{split}.json: leave it in one"
                )
    return found


def _tuning_files(split: str, topics: list[tuning.Topic]) -> list[str]:
    names = [f"responses/{tuning.file_name(t.topic, '_generations.json')}" for t in topics]
    return [f"questions_per_topic_{split}.json", *names]


def by_shard(rows: Iterable[dict], shards: int) -> dict[int, list[dict]]:
    out: dict[int, list[dict]] = {s: [] for s in range(shards)}
    for row in rows:
        out[shard_of(row["topic"], shards)].append(row)
    return out


def _prompt(topic: str, split: str, prompt: str) -> dict:
    ids = {"prompt_id": digest(topic, prompt), "topic": topic, "split": split}
    return ids | {"prompt": prompt, "pronoun": None, "lower_case": None}


def _split(topic: str, cfg: Config) -> str:
    """A topic's split by its own digest and the seed: adding topics moves no other."""
    data: DataConfig = cfg.data
    place = seed_from("split", cfg.run.seed, topic) % 10_000 / 10_000
    return "test" if place < data.test else "val" if place < data.test + data.val else "train"
