"""What `facttune config`, conf/README.md and conf/schema.json say of the settings."""

from __future__ import annotations

import json

import jsonschema
import pytest
from omegaconf import OmegaConf

from facttune_ray import cli, config
from facttune_ray.config import listing, reference

CONF = config.conf_dir()
PRESETS = sorted([*CONF.glob("*.yaml"), *CONF.glob("gpus/*.yaml")])


def test_the_generated_files_are_current():
    """After a change of a setting: python -m facttune_ray.config.reference"""
    readme = (CONF / "README.md").read_text()
    assert readme == reference.markdown(readme)
    assert json.loads((CONF / "schema.json").read_text()) == reference.schema()


def test_every_setting_has_a_sentence():
    for section in listing.sections(config.Config()):
        assert section.description.endswith((".", ").")), section.name
        for row in section.rows:
            assert row.description.endswith("."), (section.name, row.key)


@pytest.mark.parametrize("file", PRESETS, ids=lambda f: f.stem)
def test_a_preset_names_the_schema_and_agrees_with_it(file):
    first = file.read_text().splitlines()[0]
    assert (file.parent / first.partition("$schema=")[2]).resolve() == CONF / "schema.json"
    preset = OmegaConf.to_container(OmegaConf.load(file))  # 5e-7 is a number, as in YAML 1.2
    jsonschema.validate(preset, reference.schema())


@pytest.mark.parametrize(
    "preset",
    [
        {"train": {"beta": 0}},
        {"train": {"bta": 1}},
        {"tune": {"fs": {"rounds": -1}}},
        {"contenders": {"a": {"facts": {}}}},
        {"contenders": {"a": {"sampling": {"decoder": "x"}}}},
    ],
)
def test_the_schema_refuses_what_load_refuses(preset):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(preset, reference.schema())


def test_config_marks_what_presets_and_overrides_change(capsys):
    assert cli.main(["config", "train.sft", "bio", "train.sft.lr=1e-6"]) == 0
    out = capsys.readouterr().out
    assert "*epochs                1 [0]" in out and "*lr                    1e-06 [5e-07]" in out
    assert " targets               all  " in out and "all | best" in out
    assert cli.main(["config", "medicine"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "contenders.facttune_fs_dola.sampling: " in out and "*of " in out


def test_config_prints_json(capsys):
    assert cli.main(["config", "tune", "quickstart", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["tune.facttune_mc.reward"]["value"] == "max_conf"
    rounds = rows["tune.facttune_mc.rounds"]
    assert (rounds["default"], rounds["value"], rounds["changed"]) == (1, 2, True)
    assert (rounds["type"], rounds["range"]) == ("int", ">= 0")


def test_config_of_an_unknown_section_is_one_line(capsys):
    assert cli.main(["config", "train.lor"]) == 2
    assert 'no section "train.lor". Did you mean "train.lora"?' in capsys.readouterr().err
    assert cli.main(["config", "trian"]) == 2
    said = capsys.readouterr().err
    assert 'no preset "trian"' in said and 'Did you mean "train"?' in said
