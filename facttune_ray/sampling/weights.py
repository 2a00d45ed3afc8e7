"""Load a model and its tokenizer from a folder, a hub or an object store.

    load("s3://bucket/llama-2-7b", "bfloat16", device="cuda")  ->  (tokenizer, model)
    local_weights("s3://bucket/llama-2-7b")
    -> "/tmp/facttune-models/4f1c.../llama-2-7b"    one process a node copies, the others wait
    local_weights("SmolLM2-135M-Instruct.Q4_1.gguf")
    -> "/tmp/facttune-models/90aa.../SmolLM2-135M-Instruct.Q4_1"    with float32 weights

Weights must be safetensors, or one GGUF file. No code from the folder runs unless
`trust_remote_code` allows it.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from facttune_ray.errors import UserError, one_line

Quantize = Literal["none", "8bit", "4bit"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Weights in other file formats, which are not copied.
OTHER_FORMS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx")


def load(
    path: str,
    dtype: str,
    *,
    device: str = "cpu",
    quantize: Quantize = "none",
    key: str = "sampling.quantize",
    trust_remote_code: bool = False,
    auto_class: str = "AutoModelForCausalLM",
) -> tuple[Any, Any]:
    """(tokenizer, model on `device`, in evaluation mode) from a folder, hub name or URI.

    `quantize`: weights in 8 or 4 bits by bitsandbytes, on a GPU, multiplied in `dtype`. `key`: the
    setting that errors name. `trust_remote_code`: run the Python code of the model's folder.
    `auto_class`: the class of transformers that opens the weights. UserError when it cannot.
    """
    import transformers

    quantized = quantization(quantize, dtype, device, key)
    folder = local_weights(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
        model = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **quantized,
        )
    except (OSError, ValueError) as error:
        reason = one_line(error)[:200]
        if not Path(path).exists() and "/" in path:
            reason = "no such folder"
        elif "for this kind of AutoModel" in str(error):
            reason = f"its model type has no {auto_class} (a vision-language model, an encoder?)"
        raise UserError(
            f"Cannot load a model from {path} (a folder with config.json, tokenizer and "
            f"safetensors weights, its URI, a GGUF file, or a hub name): {reason}"
        ) from error
    if not quantized:  # from_pretrained has put quantised weights onto the device
        model.to(device)
    return tokenizer, model.eval()


def quantization(
    quantize: Quantize, dtype: str, device: str, key: str = "sampling.quantize"
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for quantised weights; {} for "none". UserError without a
    GPU or bitsandbytes."""
    if quantize == "none":
        return {}
    if not device.startswith("cuda"):
        raise UserError(f"{key}={quantize} needs a GPU: set {key.split('.')[0]}.gpus, or none.")
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{key}={quantize} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    from transformers import BitsAndBytesConfig

    bits = BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )
    return {"quantization_config": bits, "device_map": {"": device}}


def local_weights(path: str, cache: str | None = None) -> str:
    """A name that transformers and vLLM can open: the path itself, a local copy if it is a URI, or
    a local folder with the weights of a GGUF file.

    `cache`: folder of the copies (default: facttune-models in the system's folder for temporary
    files). UserError when the folder is missing, has no config.json, or the disk is full.
    """
    from facttune_ray.sampling import gguf_file

    if "://" not in path and not gguf_file.is_gguf(path):
        return path
    import pyarrow.fs as pafs

    from facttune_ray.storage.folders import Folder, fetched

    root = Path(cache or Path(tempfile.gettempdir(), "facttune-models"))
    source = Folder.of(path)
    try:
        if gguf_file.is_gguf(path):
            return str(gguf_file.dequantized(source, root))
        selector = pafs.FileSelector(source.path, allow_not_found=True, recursive=True)
        files = {
            info.path[len(source.path) :].lstrip("/"): info
            for info in source.fs.get_file_info(selector)
            if info.is_file and not info.path.endswith(OTHER_FORMS)
        }
        if "config.json" not in files:
            raise UserError(
                f"No model at {path}: no config.json there. "
                f"Give the folder that save_pretrained wrote, or a hub name."
            )
        return str(fetched(source, files, root))
    except OSError as e:
        reason = " ".join((e.strerror or str(e)).split())
        raise UserError(f"The model {path} cannot be copied to {root}: {reason}") from None
