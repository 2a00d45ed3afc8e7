"""Topics -> prompts: where a run begins. Runs on the driver: it only writes strings.

out  prompts  {"prompt_id": "8f2c", "topic": "Mara Veldt", "split": "train",
               "prompt": "Write a biography of Mara Veldt."}

A topic lies in one shard, by its digest, and in one split. `data.source: factscore` brings its
own responses too: they become a `responses` table whose model is the file's name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from facttune_ray.config import Config, DataConfig
from facttune_ray.interop import factscore
from facttune_ray.quickstart import world
from facttune_ray.schema import digest, seed_from

VERSION = 1


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
        for split, topics in world_of(cfg).splits.items():
            for topic in topics:
                yield _prompt(topic, split, world.biography_prompt(topic))
        return
    seen = set()
    for _, record in factscore.read_all(cfg.data.folder, cfg.data.files):
        row = _prompt(record.topic, _split(record.topic, cfg), record.prompt)
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            yield row


def imported_responses(cfg: Config) -> Iterator[dict]:
    """The labelled files' own responses as rows of `responses`."""
    for model, record in factscore.read_all(cfg.data.folder, cfg.data.files):
        prompt = _prompt(record.topic, _split(record.topic, cfg), record.prompt)
        yield {
            **prompt,
            "response_id": digest(prompt["prompt_id"], model, 0),
            "model": model,
            "sample": 0,
            "text": record.response,
            "tokens": None,
            "abstained": record.abstained,
            "error": None,
        }


def by_shard(rows: Iterable[dict], shards: int) -> dict[int, list[dict]]:
    out: dict[int, list[dict]] = {s: [] for s in range(shards)}
    for row in rows:
        out[shard_of(row["topic"], shards)].append(row)
    return out


def _prompt(topic: str, split: str, prompt: str) -> dict:
    ids = {"prompt_id": digest(topic, prompt), "topic": topic}
    return ids | {"split": split, "prompt": prompt}


def _split(topic: str, cfg: Config) -> str:
    """A topic's split by its own digest and the seed: adding topics moves no other."""
    data: DataConfig = cfg.data
    place = seed_from("split", cfg.run.seed, topic) % 10_000 / 10_000
    return "test" if place < data.test else "val" if place < data.test + data.val else "train"
