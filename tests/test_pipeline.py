"""Where a stage runs, whom it asks, and what a model is told by."""

import pytest

from facttune_ray import config, pipeline
from facttune_ray.sampling import engines
from facttune_ray.stages.context import Work


def gpus(stage, *overrides, base_url=""):
    cfg = config.load([], list(overrides))
    return pipeline._gpus(Work(stage, stage, {}, cfg, base_url=base_url))[0]


@pytest.mark.parametrize("stage", ["responses", "answers", "entities", "p_true"])
def test_sampling_stages_take_the_engines_gpus(stage):
    assert gpus(stage) == 0
    assert gpus(stage, "sampling.gpus=0.5") == 0.5
    assert gpus(stage, "sampling.gpus=1", base_url="http://host/v1") == 0  # others' GPUs


def test_vllm_takes_as_many_gpus_as_hold_the_model():
    vllm = ["sampling.engine=vllm", "sampling.gpus=1", "sampling.tensor_parallel=4"]
    assert gpus("answers", *vllm) == 4
    assert gpus("p_true", *vllm) == 1
    assert gpus("questions", *vllm) == 0
    assert gpus("classes", "classes.gpus=1", *vllm) == 1


def test_a_stage_asks_an_endpoint_by_its_recipe():
    api = config.load([], ["sampling.engine=api", "sampling.llm.model=m"])
    assert pipeline._asks(engines.recipe(api))
    assert pipeline._asks({"llm.model": "m"})
    assert not pipeline._asks(engines.recipe(config.load([])))


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
    before = pipeline.model_digest(uri), pipeline.model_digest(str(tmp_path))
    assert before == (pipeline.model_digest(uri), pipeline.model_digest(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert pipeline.model_digest(uri) != before[0]
    assert pipeline.model_digest(str(tmp_path)) != before[1]


def test_kinds_of_gpus_are_named_where_gpus_are():
    cfg = config.load([], ["train.gpus=1", "train.accelerator=H100", "sampling.accelerator=L4"])
    assert pipeline._gpus(Work("reference", "reference", {}, cfg)) == (1.0, "H100")
    assert pipeline._gpus(Work("answers", "answers", {}, cfg)) == (0.0, "L4")
    assert pipeline._gpus(Work("facts", "facts", {}, cfg)) == (0.0, "")
