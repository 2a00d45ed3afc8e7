"""Checks before the first table: they find what would stop a run after it has paid for requests.

check(cfg, "enwiki.db", models=True)   UserError for an unknown estimator, a search in a database
without an index, a model that no folder, store or hub has (of the run, of the second judge or of a
contender)
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from facttune_ray.config import Config, LLMConfig, contenders
from facttune_ray.config.wanted import needed, wanted
from facttune_ray.errors import UserError
from facttune_ray.knowledge import source
from facttune_ray.sampling import gguf_file
from facttune_ray.stages import stage
from facttune_ray.storage.schema import made_of
from facttune_ray.training.recipe import check_training


def check(cfg: Config, knowledge: str, models: bool) -> None:
    """`knowledge`: the database that verdicts read. `models`: whether the run may load models."""
    verdicts = stage("verdicts")
    check_training(cfg)
    first, other = cfg.verdicts, verdicts.second_opinion(cfg)
    names = verdicts.estimators(first)
    searched = first.retrieval == "fts" or (
        first.no_article == "search" and first.retrieval != "none"
    )
    if searched and source.is_database(cfg.data.knowledge) and Path(knowledge).is_file():
        from facttune_ray.knowledge.articles import Articles

        Articles(knowledge).search("a", 1)
    if made_of(needed(cfg, wanted(cfg)), "entities"):
        stage("entities").hints(cfg)  # UserError for a missing spaCy pipeline
    if cfg.facts.method == "spacy" and "facts" not in cfg.data.ready:
        stage("facts").hints(cfg)  # the same
    if not models:
        return
    if "facts" not in cfg.data.ready and (cfg.facts.method == "llm" or "chat" in names):
        check_embedded(cfg.llm)
    used = {cfg.model.path: "model.path"}  # model -> the setting that names it
    for one in contenders(cfg):
        if one.cfg.sampling.engine != "api":
            used.setdefault(one.cfg.model.path, f"contenders.{one.name}.model.path")
    judges = [first] * ("facts" not in cfg.data.ready) + ([other.verdicts] if other else [])
    for v in judges:
        names = verdicts.estimators(v)
        dense = v.retrieval == "dense" and names != ("lexical",)
        if dense and find_spec("sentence_transformers") is None:
            raise UserError("verdicts.retrieval=dense needs: pip install sentence-transformers")
        for key in [n for n in names if verdicts.ESTIMATORS[n].weights] + ["dense"] * dense:
            used.setdefault(getattr(v, key), f"verdicts.{key}")
    if cfg.classes.method == "nli":
        used.setdefault(cfg.classes.nli_model, "classes.nli_model")
    for name, key in used.items():
        if name:
            check_model(key, name)


def check_embedded(llm: LLMConfig) -> None:
    """UserError if the embedded endpoint would answer in the name of a real model."""
    if llm.base_url == "embedded" and not llm.endpoints and llm.model != "annotator":
        raise UserError(
            f"llm.model={llm.model}: name its endpoint in llm.base_url, such as "
            f"https://api.openai.com/v1 (embedded is the quickstart's annotator, which is no LLM)"
        )


def check_model(key: str, name: str) -> None:
    """UserError if the model does not exist. Only its config is looked for: one small file of a
    hub."""
    why = "no config.json in this folder"
    if gguf_file.is_gguf(name):
        try:
            return gguf_file.check(name)
        except UserError as e:
            raise UserError(f"{key}={e}") from None
    if "://" in name:
        from facttune_ray.storage.tables import Folder

        there = (Folder.of(name) / "config.json").exists()
    elif Path(name).is_dir():
        there = any(Path(name, f).is_file() for f in ("config.json", "modules.json"))
    else:
        from transformers.utils import cached_file

        try:
            there = cached_file(name, "config.json") is not None
        except (OSError, ValueError) as e:
            told = " ".join(str(e).split())
            there, why = False, "no such folder" if name.count("/") > 1 else told
    if not there:
        raise UserError(f"{key}={name}: no model there: {why[:200]}")
