"""A text setting is the text as it was written, and every error is one line with its source."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from facttune_ray import config
from facttune_ray.config.layers import flatten
from facttune_ray.errors import UserError


def value(cfg, key):
    return flatten(dataclasses.asdict(cfg))[key]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("run.out=runs/exp #2", "runs/exp #2"),
        ("prompts.template=Tell me about {topic} #short", "Tell me about {topic} #short"),
        ("run.name=12:30", "12:30"),
        ("llm.model=no", "no"),
        ("run.name=007", "007"),
        ("run.name=", ""),
        ("run.name=null", "null"),
        ("run.name=a=b: [c", "a=b: [c"),
        ("data.groups=7 #a", "7 #a"),
        ("verdicts.no_article=null", "null"),
    ],
)
def test_a_text_on_the_command_line_is_all_that_follows_the_equals_sign(override, text):
    assert value(config.load([], [override]), override.partition("=")[0]) == text


def test_a_text_in_a_file_is_the_scalar_as_written(tmp_path):
    preset = tmp_path / "a.yaml"
    preset.write_text(
        "run: {name: 007, out: 12:30, seed: 1_0}\n"
        "llm: {model: no, params: {stop: no, x: 1e-3}}\n"
        "verdicts: {no_article: null}\n"
        'data: {files: [007, yes, "q #1"]}\n'
        "contenders: {a: {model: {path: 1.10}}}\n"
    )
    cfg = config.load([str(preset)])
    assert (cfg.run.name, cfg.run.out, cfg.run.seed) == ("007", "12:30", 10)
    assert (cfg.llm.model, cfg.verdicts.no_article) == ("no", "null")
    assert cfg.llm.params == {"stop": False, "x": 1e-3}  # any value: as YAML reads it
    assert cfg.data.files == ["007", "yes", "q #1"]
    assert cfg.contenders == {"a": {"model": {"path": "1.10"}}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr=1", 1.0),
        ("train.lr=3e-5", 3e-5),
        ("run.seed=0x10", 16),
        ("train.recompute=yes", True),
        ("llm.temperature=null", None),
        ("data.sizes.train=null", None),
        ("data.groups=[a, b]", ["a", "b"]),
        ("data.files=[007, no]", ["007", "no"]),
        ("evaluation.k=[5, 10]", [5, 10]),
        ("llm.params.stop=no", False),
    ],
)
def test_other_values_are_yaml(override, expected):
    found = value(config.load([], [override]), override.partition("=")[0])
    assert found == expected and type(found) is type(expected)


def test_interpolation_takes_the_environment_and_other_settings(monkeypatch):
    monkeypatch.setenv("HOW_MANY", "128")
    monkeypatch.setenv("PLACE", "a #2")
    words = ["llm.concurrency=${oc.env:HOW_MANY}", "run.out=${oc.env:PLACE}/${run.name}"]
    cfg = config.load([], words)
    assert (cfg.llm.concurrency, cfg.run.out) == (128, "a #2/run")
    with pytest.raises(UserError, match="^llm.model: Environment variable 'NONE' not found$"):
        config.load([], ["llm.model=${oc.env:NONE}"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("llm.modle=x", '"llm.modle=x": unknown key "llm.modle". Did you mean "model"?'),
        ("lr=1", '"lr=1": unknown key "lr". Did you mean train.lr?'),
        ("run.seed=true", "run.seed=true: must be a number"),
        ("run.seed=", "run.seed: is empty: give a value"),
        ("train.recompute=maybe", "train.recompute=maybe: must be true or false"),
        ("train=x", "train=x: is a section: set one of its keys, such as train.loss"),
        ("tune=3", "tune=3: must be a section, such as {NAME: VALUE}"),
        ("tune.fs.epochs=0", "tune.fs.epochs=0: must be at least 1"),
        ("train={epochs: 0}", '"train={epochs: 0}": train.epochs=0: must be at least 1'),
        (
            "llm.endpoints=[{base_ur: x}]",
            '"llm.endpoints=[{base_ur: x}]": unknown key "llm.endpoints[0].base_ur". Did you mean '
            '"base_url"?',
        ),
        ("data.groups=[{a: 3}]", "data.groups: must be a text, in quotes"),
        ("run.name.first=a", '"run.name.first=a": run.name: must be a text, in quotes'),
        ("contenders.a.sampling.gpus=-1", "contenders.a: sampling.gpus=-1: must be at least 0"),
    ],
)
def test_an_error_names_its_source_once(override, says):
    with pytest.raises(UserError) as caught:
        config.load([], [override])
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run: {shards: -1}", "run.shards=-1: must be at least 0"),
        ("run: {nme: x}", 'unknown key "run.nme". Did you mean "name"?'),
        ("run: {name: }", "run.name: is empty: give a value"),
        ("run:", "run: is a section: set one of its keys, such as run.name"),
        ("train: {loss: dp}", "train.loss=dp: must be one of dpo, cdpo, ipo, hinge"),
        ("train: {lr: true}", "train.lr=true: must be a number"),
        ("3", "expected sections such as `run:`, got '3'"),
    ],
)
def test_an_error_names_the_file_that_holds_the_value(tmp_path, text, says):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(text)
    second.write_text("train: {beta: 0.2}\nrun: {seed: 1}\n")
    with pytest.raises(UserError) as caught:
        config.load([str(first), str(second)], ["train.beta=0.3"])
    assert str(caught.value).startswith(f"{first}: {says}")


def test_a_config_travels_to_workers():
    cfg = config.load(["bio"], ["rewards.mix.both={factscore: 1}"])
    assert pickle.loads(pickle.dumps(cfg)) == cfg
