"""Whom a stage asks, and what a model is told by."""

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.loop.models import model_digest
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import pipeline, settings
from facttune_ray.runtime.maker import Maker
from facttune_ray.runtime.pipeline import Planned
from facttune_ray.sampling import engines
from facttune_ray.stages import STAGES, stage
from facttune_ray.stages.work import Work
from facttune_ray.storage.folders import Folder


@pytest.mark.parametrize("name", sorted(p.stem for p in config.conf_dir().glob("*.yaml")))
def test_the_settings_of_a_run_are_kept_in_its_folder(tmp_path, name):
    out, moved = tmp_path / "out", tmp_path / "moved"
    out.mkdir()
    cfg = config.load([name], [f"run.out={out}"])
    settings.keep(Folder.of(str(out)), cfg)
    assert settings.kept(Folder.of(str(out))) == cfg
    out.rename(moved)
    assert settings.kept(Folder.of(str(moved))).run.out == str(moved)
    assert settings.kept(Folder.of(str(out))) is None


def test_a_text_that_looks_like_a_variable_is_kept_as_it_is(tmp_path):
    (tmp_path / "prompt.txt").write_text("Say {topic} and ${HOME}.")
    words = [f"prompts.template={tmp_path}/prompt.txt", f"run.out={tmp_path}"]
    cfg = config.load(["quickstart"], words)
    settings.keep(Folder.of(str(tmp_path)), cfg)
    assert settings.kept(Folder.of(str(tmp_path))) == cfg and "${HOME}" in str(cfg.prompts)


@pytest.mark.parametrize(
    ("stage", "setting"), [("answers", "sampling"), ("reference", "train"), ("classes", "classes")]
)
def test_a_machine_without_the_gpus_is_not_waited_for(tmp_path, ray_cluster, stage, setting):
    words = [f"{setting}.gpus=1", f"{setting}.accelerator=NONE-SUCH", f"run.out={tmp_path}"]
    maker = Maker(config.load([], [*words, "run.shards=1"]), embedded)
    with pytest.raises(UserError, match=f"x: {setting}.gpus: .* the 1 NONE-SUCH GPU"):
        list(pipeline.make([Planned(Work(stage, "x", {}, maker.cfg), {})], maker._services))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["facts.method=rules", "verdicts.estimator=lexical"],
        ["facts.method=rules", "facts.abstention=llm"],
        ["facts.method=labels", "verdicts.estimator=lexical", "facts.abstention=llm"],
        ["verdicts.estimator=chat+lexical", "classes.method=llm"],
        ["sampling.engine=api", "sampling.llm.model=m"],
        ["data.source=topics", "data.topics=t.txt", "prompts.method=llm"],
    ],
    ids=str,
)
def test_a_stage_is_declared_to_ask_where_its_recipe_has_a_model(words, spacy_pipeline):
    cfg = config.load([], [*words, f"entities.spacy_model={spacy_pipeline}"])
    for name, declared in STAGES.items():
        recipe = stage(name).recipe(cfg) if name != "prompts" or cfg.data.source == "topics" else {}
        asks = {"llm"} if "llm.model" in recipe else {""}
        if recipe.get("sampling.engine") == "api":
            asks = {"sampling.llm"}
        assert {declared.endpoint(cfg)} == asks, name


def test_the_endpoint_of_samples_shares_ledger_and_budget():
    cfg = config.load(
        [],
        [
            "sampling.engine=api",
            "sampling.llm.model=m",
            "sampling.llm.requests_per_minute=60",
            "llm.base_url=http://judge/v1",
            "llm.ledger=/shared/ledger",
            "llm.budget_usd=3",
            "llm.usd_per_million_input=1",
            "llm.usd_per_million_output=1",
        ],
    )
    llm = engines.endpoint(cfg)
    assert (llm.base_url, llm.ledger, llm.budget_usd) == ("http://judge/v1", "/shared/ledger", 3)
    assert (llm.model, llm.requests_per_minute, llm.temperature) == ("m", 60, None)


def test_what_does_not_change_samples_is_in_no_recipe():
    plain = engines.recipe(config.load([]))
    faster = config.load([], ["sampling.gpus=1", "sampling.max_rows=9", "sampling.gpu_memory=0.5"])
    assert engines.recipe(faster) == plain
    assert engines.recipe(config.load([], ["model.dtype=bfloat16"])) != plain


def test_a_model_on_a_file_system_is_told_by_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    uri = f"file://{tmp_path}"
    before = model_digest(uri), model_digest(str(tmp_path))
    assert before == (model_digest(uri), model_digest(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert model_digest(uri) != before[0]
    assert model_digest(str(tmp_path)) != before[1]
