"""The version of a pipeline in a table's recipe, and that of the clean-up."""

import asyncio
import importlib.metadata

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.stages import facts, pipelines
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

spacy = pytest.importorskip("spacy")
KEY = "facts.spacy_model"


def test_the_version_has_that_of_spacy(spacy_pipeline):
    assert pipelines.version(KEY, spacy_pipeline).endswith(f", spaCy {spacy.__version__}")
    # without rules for noun chunks, which facts do not need
    assert pipelines.version(KEY, "blank:zh").startswith("blank:zh ")


def test_a_package_is_preferred_to_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy").mkdir()  # any package: the version is that of its metadata
    found = importlib.metadata.version("numpy")
    assert pipelines.version(KEY, "numpy") == f"numpy {found}, spaCy {spacy.__version__}"


def test_a_missing_spacy_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match="facts.spacy_model: spaCy is not installed: pip install"):
        pipelines.version.__wrapped__(KEY, "en_core_web_sm")


def recipe(model):
    return facts.recipe(config.load([], ["facts.cleanup=entities", f"{KEY}={model}"]))


def test_the_recipe_of_a_clean_up_says_what_finds_names(spacy_pipeline):
    assert recipe("no_such_model")[KEY] == "rules"
    assert recipe(spacy_pipeline)[KEY] == pipelines.version(KEY, spacy_pipeline)
    with pytest.raises(UserError, match="no pipeline in"):
        recipe("/no/such/folder")


@pytest.mark.filterwarnings("ignore:facts.cleanup")
def test_a_worker_cleans_as_its_driver_does(tmp_path):
    words = ["facts.method=rules", "facts.cleanup=entities", f"{KEY}=no_such_model"]
    cfg = config.load([], [f"run.out={tmp_path}", *words])
    row = {"response_id": "r", "topic": "Mara Veldt", "split": "test", "prompt": "Who?"}
    row |= {"text": "She sings in Lyon.", "abstained": False, "error": None, "model": "m"}

    def made():
        context = Context(Work("facts", "facts", {}, cfg), rows=lambda role, shard: [row])
        return [r["fact"] for r in asyncio.run(facts.run(context, 0))]

    table = Folder.of(str(tmp_path / "facts"))
    tables.begin(table, facts.recipe(cfg))
    assert made() == ["Mara Veldt sings in Lyon."]
    tables.begin(table, facts.recipe(cfg) | {KEY: "en_core_web_sm 3.8.0, spaCy 3.8.18"})
    with pytest.raises(UserError, match='this worker has "rules", the driver "en_core_web_sm'):
        made()
