"""The stages that sample, from the command line, with an endpoint as the engine."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli


@pytest.fixture
def stage(ray_cluster, small_preset, tmp_path, capsys):
    """A function that runs one stage of a quickstart with samples from the embedded endpoint."""

    def run(name, *more):
        words = ["quickstart", small_preset, f"run.out={tmp_path / 'out'}"]
        words += ["sampling.engine=api", "sampling.llm.model=annotator"]
        words += ["tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0"]
        code = cli.main(["stage", name, *words, "evaluation.tuned=false", *more])
        return code, capsys.readouterr().err

    return run


def responses(out):
    parts = sorted(out.glob("base/tune/responses/part-*"))
    return [row for p in parts for row in pq.read_table(p).to_pylist()]


def test_an_endpoint_samples_each_response_once_for_any_number_of_choices(stage, tmp_path):
    settings = ["sampling.form=completions", "sampling.choices=4", "responses.samples=6"]
    for name in ("knowledge", "prompts", "responses"):
        assert stage(name, *settings)[0] == 0
    first = responses(tmp_path / "out")
    assert len(first) == 12 * 6 + 4 * 2  # train and val prompts
    assert all(r["text"] and r["tokens"] and r["error"] is None for r in first)
    assert len({r["text"] for r in first}) > 40
    manifest = tmp_path / "out" / "base/tune/responses/_MANIFEST.json"
    assert json.loads(manifest.read_text())["calls"] == 12 * 2 + 4  # four choices a request
    shutil.rmtree(manifest.parent)
    # a budget needs the price of the model that is asked alone
    words = ["sampling.form=completions", "responses.samples=6", "llm.budget_usd=9"]
    code, said = stage("responses", *words)
    assert code == 2 and "no price is known for sampling.llm.model=annotator" in said
    words += [f"sampling.llm.usd_per_million_{side}=1" for side in ("input", "output")]
    assert stage("responses", *words)[0] == 0
    assert responses(tmp_path / "out") == first
    assert json.loads(manifest.read_text())["calls"] == 0


def test_an_unreachable_endpoint_ends_the_stage_with_its_address(stage, tmp_path, capsys):
    for name in ("knowledge", "prompts"):
        assert stage(name)[0] == 0
    code, said = stage(
        "responses",
        "sampling.llm.base_url=http://127.0.0.1:9/v1",
        "sampling.llm.max_attempts=1",
        "sampling.llm.timeout_s=2",
    )
    assert code == 2 and "127.0.0.1:9" in said and "Traceback" not in said
    assert not list((tmp_path / "out").glob("base/tune/responses/_MANIFEST.json"))


def test_a_missing_package_is_named_in_one_line(stage):
    for name in ("knowledge", "prompts"):
        assert stage(name, "sampling.engine=transformers")[0] == 0
    code, said = stage(
        "responses",
        "sampling.engine=transformers",
        "rewards.columns=[ne_max_conf]",
        "entities.spacy_model=en_core_web_none",
    )
    assert code == 2 and "python -m spacy download en_core_web_none" in said
