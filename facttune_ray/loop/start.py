"""The start of a run: the knowledge source, the prompts, the base model, imported responses.

out/knowledge                  the articles that verdicts are read from
out/topics, out/prompts        every topic
out/base/pretrain/model        a tiny base model, where model.path names none
out/imported/all/responses     responses of data.files, where data.source is a file of them
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facttune_ray.config import Config
from facttune_ray.config.wanted import needed, wanted
from facttune_ray.errors import UserError
from facttune_ray.knowledge import source
from facttune_ray.loop.models import Snapshot, model_digest
from facttune_ray.loop.nodes import Artifact, DriverTable
from facttune_ray.loop.run import Run
from facttune_ray.quickstart import base_model
from facttune_ray.sources import ready
from facttune_ray.sources import topics as topic_files
from facttune_ray.stages import prompts as prompts_stage
from facttune_ray.storage.folders import Folder, join
from facttune_ray.storage.schema import made_of
from facttune_ray.storage.scopes import IMPORTED


def knowledge(run: Run) -> None:
    """{title, text} articles -> knowledge/knowledge.db. If data.knowledge is a database, it is used
    where it is."""
    from facttune_ray.knowledge import build
    from facttune_ray.storage.records import file_digest

    cfg = run.cfg
    given, from_world = cfg.data.knowledge, cfg.data.source == "world"
    database = source.is_database(given)
    columns = needed(cfg, wanted(cfg))
    unread = "facts" in cfg.data.ready or (bool(columns) and not made_of(columns, "verdicts"))
    if database:
        recipe = {"data.knowledge": source.fingerprint(join(cfg.data.folder, given))}
    elif from_world:
        recipe = prompts_stage.source_recipe(cfg)
    elif given:
        recipe = {"data.knowledge": file_digest(cfg.data.folder, given)}
    elif unread:
        recipe = {"data.knowledge": ""}
    else:
        raise UserError("data.knowledge is empty: name a file of {title, text} rows or a database")

    def make(here: Path) -> dict[str, Any]:
        rows, out = 0, here / "knowledge.db"
        if not database and from_world:
            rows = build.write(prompts_stage.world_of(cfg).articles, out)
        elif unread and not given:
            build.write([], out, least=0)  # no topic has an article: verdicts are null
        elif not database:
            rows = build.build([join(cfg.data.folder, given)], out)
        return {"rows": rows}

    run.make(Artifact("knowledge", "knowledge", make), recipe)


def knowledge_file(cfg: Config) -> str:
    """The database that verdicts read: data.knowledge if it is a database, else the run's own."""
    if source.is_database(cfg.data.knowledge):
        return join(cfg.data.folder, cfg.data.knowledge)
    return (Folder.of(cfg.run.out) / "knowledge" / "knowledge.db").uri


def prompts(run: Run) -> None:
    """The table `prompts`: made from a file of topics, or written by the driver."""
    cfg = run.cfg
    if cfg.data.source == "topics":
        topics = DriverTable("topics", "topics", lambda: topic_files.topics(cfg))
        run.make(topics, prompts_stage.driver_recipe(cfg))
        run.table("", "prompts", ["topics"])
    else:
        rows = functools.partial(prompts_stage.prompts, cfg)
        table = DriverTable("prompts", "prompts", rows, prompts_stage.once)
        run.make(table, prompts_stage.driver_recipe(cfg))


def base(run: Run) -> Snapshot:
    """The base model: model.path, the model of an endpoint, or a tiny model trained from
    scratch."""
    cfg = run.cfg
    if cfg.model.path:
        return Snapshot("base", cfg.model.path, model_digest(cfg.model.path))
    if cfg.sampling.engine == "api":
        return Snapshot("base", f"api:{cfg.sampling.llm.model}", "api")
    settings = vars(cfg.model.pretrain)
    recipe = {f"model.pretrain.{k}": v for k, v in settings.items()}
    recipe |= prompts_stage.source_recipe(cfg) | {"version": base_model.VERSION}

    def make(here: Path) -> dict[str, Any]:
        training = {k: v for k, v in settings.items() if k != "documents"}
        figures = base_model.pretrain_shown(
            _documents(cfg), here / "model", seed=cfg.run.seed, **training
        )
        return {"rows": 1, "figures": figures}

    name = run.make(Artifact("base/pretrain", "pretrain", make), recipe)
    return Snapshot("base", (run.root / "base/pretrain/model").uri, run.fingerprint(name))


def _documents(cfg: Config) -> list[str]:
    """Texts that the tiny base model is trained on."""
    if cfg.model.pretrain.documents == "world":
        return list(prompts_stage.world_of(cfg).documents)
    return [f"{r['prompt']}\n{r['text']}" for r in prompts_stage.imported_responses(cfg)]


def imported(run: Run) -> None:
    """The responses of data.files, and the tables of data.ready in the same folder."""
    cfg = run.cfg
    recipe = prompts_stage.driver_recipe(cfg)
    rows = functools.partial(prompts_stage.imported_responses, cfg)
    table = DriverTable(f"{IMPORTED}/responses", "responses", rows, prompts_stage.numbered)
    run.make(table, recipe | {"responses": "imported"})
    for kind in cfg.data.ready:
        for name in ready.TABLES[kind]:
            topics = (responses[0]["topic"] for responses in _by_topic(cfg, kind))
            own = recipe | {"ready": name} | ready.recipe(cfg.data, name, topics)
            rows = functools.partial(_ready, cfg, kind, name)
            run.make(DriverTable(f"{IMPORTED}/{name}", name, rows), own)


def _ready(cfg: Config, kind: str, name: str) -> Iterator[dict]:
    for responses in _by_topic(cfg, kind):
        yield from ready.rows(cfg.data, name, responses)


def _by_topic(cfg: Config, kind: str) -> Iterator[list[dict]]:
    """Imported responses, topic by topic. Except for the files of facts only train responses, which
    the other files are about."""
    responses = prompts_stage.numbered(prompts_stage.imported_responses(cfg))
    for _, rows in itertools.groupby(responses, key=lambda r: r["topic"]):
        chosen = [r for r in rows if kind == "facts" or r["split"] == "train"]
        if chosen:
            yield chosen
