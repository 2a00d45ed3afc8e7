"""Files of topics and their splits, and files of ready-made responses of any model.

    Marie Curie                                  topics in .txt: one per line
    {"topic": "Marie Curie", "pronoun": "her"}   topics in .jsonl, .json, .csv, .parquet: a column
    {"topic": "Marie Curie", "split": "test"}    topics with the splits that the file gives them
    {"topic": "Marie Curie", "prompt": "Who was Marie Curie?", "response": "She ..."}  responses

    topics(cfg)     ->  {"topic": "Marie Curie", "split": "train", "pronoun": "her", ...}, ...
    responses(cfg)  ->  rows of `responses`, not yet numbered, with their place in "where"

Every topic is in one split. The seed gives the topics an order, and `data.sizes` cuts this order
into splits. Files are read twice, line by line; 8 bytes per topic are held in memory.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facttune_ray.config import Config, DataConfig
from facttune_ray.errors import UserError
from facttune_ray.sources.tuning import SPLITS
from facttune_ray.storage import records
from facttune_ray.storage.folders import join
from facttune_ray.storage.schema import digest, seed_from

TEXT = ".txt"
# names of the columns of ready-made responses; the first that a row has is read
PROMPTS, RESPONSES = ("prompt", "input", "question"), ("response", "responses", "output", "text")
Row = dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """Gives each topic the first split whose end is above the topic's place in the seed's order."""

    seed: int
    ends: tuple[tuple[int, str], ...]  # ascending

    def split(self, topic: str) -> str | None:
        """None for a topic beyond the number that data.sizes asks for."""
        at = place(topic, self.seed)
        return next((name for end, name in self.ends if at < end), None)


def place(topic: str, seed: int) -> int:
    return seed_from("split", seed, topic)


def topics(cfg: Config) -> Iterator[Row]:
    """Rows of `topics`, in the file's order.

    UserError names file and line of an empty or repeated topic and of a missing column, or says
    that there are too few topics for `data.sizes`.
    """
    data = cfg.data
    if not data.topics:
        raise UserError("data.topics is empty: name a file of topics")
    path = join(data.folder, data.topics)
    places = _places((row["topic"] for _, row in _rows(path, data)), cfg.run.seed)
    repeated = places[1:][places[1:] == places[:-1]]
    if len(repeated):
        _refuse_repeated(path, data, cfg.run.seed, set(repeated.tolist()))
    has_splits = "split" in next(_rows(path, data))[1]
    cut = None if has_splits else _cut(places, cfg, path)
    for where, row in _rows(path, data):
        split = cut.split(row["topic"]) if cut else _split_of(where, row)
        if split is not None:
            yield {"topic": row["topic"], "split": split} | _about(where, row)


def recipe(cfg: Config) -> dict:
    """The values that decide the tables: the content of the files, not their paths."""
    data, key = cfg.data, "data.topics"
    names = [data.topics] if data.source == "topics" else list(data.files)
    if data.source == "responses":
        key = "data.files"
    if not all(names) or not names:
        raise UserError(f"{key} is empty: name a file")
    hashes = {
        f"{key}/{i}": records.content_digest(join(data.folder, n), key) for i, n in enumerate(names)
    }
    sizes = {f"data.sizes.{k}": v for k, v in vars(data.sizes).items()}
    shares = {"data.val": data.val, "data.test": data.test, "data.topic_column": data.topic_column}
    if data.source == "responses":  # the file's name is the model of rows without a model
        hashes |= {f"data.files/{i}/name": Path(n).stem for i, n in enumerate(names)}
    return {"data.source": data.source, "run.seed": cfg.run.seed} | hashes | sizes | shares


def responses(cfg: Config) -> Iterator[Row]:
    """Rows of `responses` from the rows of `data.files`.

    Columns: topic; prompt (or input, question); response (or output, text), or a list `responses`;
    optionally split and model, else the splits are drawn and the model is the file's name. The
    caller sets `sample` and `response_id`, because they need all rows of a topic.
    """
    data = cfg.data
    if not data.files:
        raise UserError("data.files is empty: name at least one file of responses")
    files = [join(data.folder, f) for f in data.files]
    cut = None
    if "split" not in next(_rows(files[0], data))[1]:
        names = (row["topic"] for f in files for _, row in _rows(f, data))
        cut = _cut(np.unique(_places(names, cfg.run.seed)), cfg, ", ".join(files))
    named: dict[str, str] = {}  # model that a file's name gives -> the file
    for file in files:
        for where, row in _rows(file, data):
            split = cut.split(row["topic"]) if cut else _split_of(where, row)
            if split is None:
                continue
            model = _text_of(where, row, "model")
            if model is None:
                model = Path(file).stem
                if (other := named.setdefault(model, file)) != file:
                    raise UserError(
                        f"{other} and {file}: rows without a model take their file's name, and "
                        f"both files are named {model}: rename one, or give the rows a model"
                    )
            yield from _responses(where, row, split, model)


def _responses(where: str, row: Row, split: str, model: str) -> Iterator[Row]:
    prompt = _first(where, row, PROMPTS)
    texts = _first(where, row, RESPONSES)
    texts = texts if isinstance(texts, list) else [texts]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{where}: "prompt" is empty or no text')
    if not all(isinstance(t, str) for t in texts):
        raise UserError(f'{where}: "response" must be a text')
    about = _about(where, row)
    for text in texts:
        yield about | {
            "prompt_id": digest(row["topic"], prompt),
            "topic": row["topic"],
            "split": split,
            "prompt": prompt,
            "response_id": None,
            "model": model,
            "sample": None,
            "text": text,
            "tokens": None,
            "abstained": None,
            "error": None,
            "where": where,
        }


def _about(where: str, row: Row) -> Row:
    return {k: _text_of(where, row, k) for k in ("pronoun", "lower_case")}


def _text_of(where: str, row: Row, name: str) -> str | None:
    """Value of an optional column."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f'{where}: "{name}" must be a text, not {value!r:.40}')
    return value or None


def _first(where: str, row: Row, names: tuple[str, ...]) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UserError(f'{where}: no column "{names[0]}": it has {", ".join(map(str, row))}')


# ---------------------------------------------------------------- files and splits


def _rows(path: str, data: DataConfig) -> Iterator[tuple[str, Row]]:
    """(place, row) with "topic" in its normal form: one space between words, composed accents."""
    key = "data.topics" if data.source == "topics" else "data.files"
    plain = records.named(path) == TEXT
    read = _text(path, key) if plain else records.read(path, key)
    column = "topic" if plain else data.topic_column
    for where, row in read:
        if column not in row:
            raise UserError(
                f'{where}: no column "{column}": it has {", ".join(map(str, row)) or "none"}: '
                f"name it in data.topic_column"
            )
        if not isinstance(row[column], str):
            raise UserError(f'{where}: "{column}" must be a text, not {row[column]!r:.40}')
        topic = unicodedata.normalize("NFC", " ".join(row[column].split()))
        if not topic:
            raise UserError(f"{where}: the topic is empty: remove the line")
        yield where, row | {"topic": topic}


def _text(path: str, key: str) -> Iterator[tuple[str, Row]]:
    number = 0
    for number, line in enumerate(records.lines(path, key), 1):
        if line.strip():
            yield f"{path}:{number}", {"topic": line}
    if not number:
        raise UserError(f"{path}: the file is empty")


def _refuse_repeated(path: str, data: DataConfig, seed: int, places: set[int]) -> None:
    first: dict[str, str] = {}
    for where, row in _rows(path, data):
        topic = row["topic"]
        if place(topic, seed) not in places:
            continue
        if topic in first:
            raise UserError(
                f'{where}: topic "{topic}" stands at {first[topic]} already: remove one'
            )
        first[topic] = where


def _places(topics: Iterable[str], seed: int) -> np.ndarray:
    """The topics' places in ascending order. `array` grows in place and needs no copy."""
    places = np.frombuffer(array("Q", (place(t, seed) for t in topics)), np.uint64)
    places.sort()
    return places


def _split_of(where: str, row: Row) -> str:
    name = row.get("split")
    if not isinstance(name, str) or name not in SPLITS:
        raise UserError(f'{where}: split "{name}" is none of {", ".join(SPLITS)}')
    return SPLITS[name]


def _cut(places: np.ndarray, cfg: Config, path: str) -> Cut:
    """Cut the sorted places into test, val and train."""
    data, total = cfg.data, len(places)
    sizes = data.sizes
    test = round(data.test * total) if sizes.test is None else sizes.test
    val = (round(data.val * total) if sizes.val is None else sizes.val) + sizes.dpoval
    train = max(0, total - test - val) if sizes.train is None else sizes.train
    if test + val + train > total:
        raise UserError(
            f"{path}: {total:,} topics, but data.sizes asks for {test + val + train:,} "
            f"({train:,} train, {val:,} val, {test:,} test): add topics, or lower data.sizes"
        )
    ends, end = [], 0
    for name, size in (("test", test), ("val", val), ("train", train)):
        end += size
        ends.append((int(places[end]) if end < total else 2**63, name))
    return Cut(cfg.run.seed, tuple(ends))
