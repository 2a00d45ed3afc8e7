from __future__ import annotations

import os
from pathlib import Path

import pytest

from facttune_ray.errors import UserError
from facttune_ray.loop.models import model_digest
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.runtime.preflight import check_model
from facttune_ray.sampling import gguf_file
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


def test_a_gguf_file_needs_its_package(tmp_path, monkeypatch):
    file = tmp_path / "m.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None if name == "gguf" else name)
    for call in (local_weights, lambda path: check_model("model.path", path)):
        with pytest.raises(UserError, match=r'needs gguf: pip install "facttune_ray\[gguf\]"') as e:
            call(str(file))
        assert "m.Q4_1.gguf" in str(e.value) and "\n" not in str(e.value)


def test_a_gguf_file_is_converted_once_and_counts_by_content(tmp_path, monkeypatch):
    file, cache, made = tmp_path / "m.Q4_1.gguf", str(tmp_path / "cache"), []
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: name)

    def convert(source: Path, folder: Path) -> None:
        made.append(source.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf_file, "_convert", convert)
    with pytest.raises(UserError, match="m.Q4_1.gguf: no such file"):
        local_weights(str(file), cache)
    file.write_bytes(b"GGUF one")
    first = Path(local_weights(str(file), cache))
    assert local_weights(str(file), cache) == str(first) and (first / "config.json").exists()
    assert first.name == "m.Q4_1" and not list(first.parent.glob("*.tmp"))
    far = Path(local_weights(f"file://{file}", cache))  # as from an object store
    before, other = model_digest(str(file)), tmp_path / "elsewhere.gguf"
    other.write_bytes(b"GGUF one")
    file.write_bytes(b"GGUF two!")
    assert local_weights(str(file), cache) not in (str(first), str(far))
    assert made[0] == b"GGUF one" and made[-1] == b"GGUF two!"
    assert model_digest(str(file)) != before


@pytest.mark.parametrize("content", [b"no", b"GGUF", b"GGUF" + bytes(40)])
def test_a_file_that_is_no_gguf_is_one_line(tmp_path, content):
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match="m.gguf: transformers cannot read it .*: download it"):
        local_weights(str(tmp_path / "m.gguf"), str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))
