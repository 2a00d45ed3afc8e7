from __future__ import annotations

import os
from pathlib import Path

import pytest

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling.weights import load, local_weights, quantization


def folder(at: Path) -> str:
    at.mkdir(parents=True)
    (at / "config.json").write_text('{"model_type": "llama"}')
    (at / "model.safetensors").write_bytes(b"x" * 100)
    (at / "pytorch_model.bin").write_bytes(b"y" * 100)
    (at / "templates").mkdir()
    (at / "templates" / "a.jinja").write_text("{{ x }}")
    return f"file://{at}"


def test_hub_names_and_local_folders_are_unchanged(tmp_path):
    for path in ("huggyllama/llama-7b", str(tmp_path), "models/base"):
        assert local_weights(path) == path


def test_a_uri_is_copied_once_without_other_file_formats(tmp_path):
    uri = folder(tmp_path / "far" / "llama")
    cache = str(tmp_path / "cache")
    copy = Path(local_weights(uri, cache))
    assert copy.name == "llama" and copy.is_relative_to(cache)
    names = sorted(str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file())
    assert names == ["config.json", "model.safetensors", "templates/a.jinja"]
    (copy / "mark").touch()
    assert local_weights(uri, cache) == str(copy) and (copy / "mark").exists()
    os.utime(tmp_path / "far" / "llama" / "model.safetensors", (1, 1))  # new weights
    assert local_weights(uri, cache) != str(copy)


def test_an_incomplete_copy_is_made_again(tmp_path):
    uri = folder(tmp_path / "far" / "llama")
    cache = str(tmp_path / "cache")
    copy = Path(local_weights(uri, cache))
    copy.rename(copy.with_name("llama.tmp"))
    (copy.with_name("llama.tmp") / "half").touch()
    assert local_weights(uri, cache) == str(copy)
    assert not (copy / "half").exists() and not copy.with_name("llama.tmp").exists()


def test_a_missing_model_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (f"file://{tmp_path}/absent", f"file://{tmp_path}/empty"):
        with pytest.raises(UserError, match=r"no config\.json") as said:
            local_weights(path, str(tmp_path / "cache"))
        assert path in str(said.value) and "\n" not in str(said.value)
    assert not list((tmp_path).glob("cache/*/*"))


def test_a_vision_language_model_is_one_short_line(tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model("llava").save_pretrained(tmp_path)
    train_tokenizer(["Who is Mara?"], 99, 64).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its model type has no AutoModelForCausalLM") as said:
        load(str(tmp_path), "float32")
    assert len(str(said.value)) - len(str(tmp_path)) < 240 and "\n" not in str(said.value)


def test_pickled_weights_are_not_opened(tmp_path):
    uri = folder(tmp_path / "llama")
    (tmp_path / "llama" / "model.safetensors").unlink()
    for path in (str(tmp_path / "llama"), uri):
        with pytest.raises(UserError, match="Cannot load a model from"):
            load(path, "float32")


def test_quantised_weights_need_a_gpu_and_a_library():
    assert quantization("none", "float16", "cpu") == {}
    with pytest.raises(UserError, match="needs a GPU"):
        quantization("8bit", "float16", "cpu")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install bitsandbytes"):
            quantization("4bit", "float16", "cuda")
