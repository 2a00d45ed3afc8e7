"""Turn a GGUF file into a folder that transformers, vLLM and DeepSpeed open like any other model.

    dequantized(Folder.of("SmolLM2-135M-Instruct.Q4_1.gguf"), cache)
    ->  cache/90aa.../SmolLM2-135M-Instruct.Q4_1     config, tokenizer, float32 safetensors

transformers reads the file by the package `gguf`. A GGUF file holds config, tokenizer and weights,
so nothing else is needed. The numbers are those that llama.cpp computes from the quantised weights.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from facttune_ray.errors import UserError, one_line
from facttune_ray.storage.folders import Folder, fetched, made_once
from facttune_ray.storage.schema import digest

ENDING = ".gguf"


def is_gguf(path: str) -> bool:
    """Whether a path names a GGUF file, by its ending."""
    return path.lower().partition("?")[0].endswith(ENDING)


def check(path: str) -> None:
    """UserError without the file, or without the packages that read it."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{path}: a GGUF file needs {' and '.join(missing)}: "
            f'pip install "facttune_ray[gguf]", or {" ".join(missing)}'
        )
    if not Folder.of(path).is_file():
        raise UserError(f"{path}: no such file: check the path")


def dequantized(file: Folder, cache: Path) -> Path:
    """The folder of the model in a GGUF file, made once per host; made again when the file's size
    or modification time has changed. UserError when transformers cannot read the file."""
    check(file.uri)
    info = file.fs.get_file_info(file.path)
    parent, _, name = file.path.rpartition("/")
    if not file.local:
        file = Folder.of(str(fetched(replace(file, path=parent), {name: info}, cache) / name))
    place = cache / digest("gguf", file.uri, info.size, info.mtime_ns) / Path(name).stem
    return made_once(place, lambda folder: _convert(Path(file.path), folder))


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    named = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **named)
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            **named,
        )
    except (ValueError, KeyError, IndexError, RuntimeError, struct.error) as e:
        raise UserError(
            f"{file}: transformers cannot read it ({type(e).__name__}: {one_line(e)[:200]}): "
            f"download it again, or use the model's folder with safetensors"
        ) from e
    # save_pretrained refuses a model whose config names the quantisation that it was read from.
    settings = packed.config.to_dict()
    for read in ("quantization_config", "_name_or_path"):
        settings.pop(read, None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(packed.config).from_dict(settings))
    model.generation_config = packed.generation_config
    model.save_pretrained(folder, state_dict=packed.state_dict())
    tokenizer.save_pretrained(folder)
