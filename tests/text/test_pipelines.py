"""Pipelines of spaCy: loaded once, refused in one line."""

import pytest

from facttune_ray.errors import UserError
from facttune_ray.text import cleanup
from facttune_ray.text.pipelines import load, load_for_facts

spacy = pytest.importorskip("spacy")
KEY = "entities.spacy_model"


def test_the_pipeline_is_loaded_once_without_its_unused_parts(spacy_pipeline):
    assert load(KEY, spacy_pipeline) is load(KEY, spacy_pipeline)
    assert "ner" in spacy.load(spacy_pipeline).pipe_names
    assert load(KEY, spacy_pipeline).pipe_names == ["morphologizer", "tagger", "parser"]


def test_a_missing_pipeline_gives_one_line_with_the_install_command(tmp_path):
    with pytest.raises(UserError) as e:
        load(KEY, "no_such_pipeline")
    assert "python -m spacy download no_such_pipeline" in str(e.value)
    assert "folder" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="entities.spacy_model: no pipeline in") as e:
        load(KEY, str(tmp_path / "none"))
    assert "\n" not in str(e.value)
    broken = tmp_path / "broken"
    spacy.blank("en").to_disk(broken)
    (broken / "config.cfg").write_text("[nlp]\nlang = [\n")
    for opener in (lambda name: load(KEY, name), cleanup.load):
        with pytest.raises(UserError, match="spacy_model: no pipeline in"):
            opener(str(broken))


def test_the_error_names_the_parts_that_a_pipeline_lacks(spacy_pipeline, tmp_path):
    nlp = spacy.load(spacy_pipeline)
    nlp.remove_pipe("parser")
    nlp.to_disk(tmp_path / "tags")
    with pytest.raises(UserError, match="lacks a dependency parser;"):
        load(KEY, str(tmp_path / "tags"))
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="lacks a dependency parser and parts of speech"):
        load(KEY, str(tmp_path / "blank"))
    spacy.blank("zh").to_disk(tmp_path / "zh")
    with pytest.raises(UserError, match='rules for noun chunks of the language "zh"'):
        load(KEY, str(tmp_path / "zh"))


def test_facts_need_tags_and_whole_words(spacy_pipeline, tmp_path):
    nlp = load_for_facts("facts.spacy_model", spacy_pipeline)
    assert [t.text for t in nlp.make_doc("A co-founder, in 2003-04.")][1] == "co-founder"
    assert [t.text for t in load(KEY, spacy_pipeline).make_doc("A co-founder.")][1] == "co"
    nlp = spacy.load(spacy_pipeline)
    nlp.remove_pipe("tagger")
    nlp.to_disk(tmp_path / "no_tags")
    with pytest.raises(UserError, match=r"facts.spacy_model: .* lacks tags \(a tagger\);"):
        load_for_facts("facts.spacy_model", str(tmp_path / "no_tags"))
