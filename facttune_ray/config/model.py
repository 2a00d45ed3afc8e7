"""The base model: the config section `model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from facttune_ray.config.setting import setting

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class PretrainConfig:
    """The tiny Llama that stands for the base model when model.path is empty."""

    documents: Literal["world", "responses"] = setting("world", "Text that it is trained on.")
    epochs: float = setting(2.5, "Passes over the documents; 0: random weights.", ge=0)
    batch_tokens: int = setting(512, "Tokens of one optimizer step.", unit="tokens", ge=1)
    lr: float = setting(3e-3, "Peak learning rate of AdamW.", ge=0)
    hidden: int = setting(128, "Width of the hidden layers.", ge=1)
    layers: int = setting(2, "Number of layers.", ge=1)
    heads: int = setting(4, "Attention heads of each layer.", ge=1)
    vocab_size: int = setting(3000, "Most entries of the tokenizer.", unit="tokens", ge=1)
    max_length: int = setting(512, "Positions; a longer document is cut.", unit="tokens", ge=1)


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    path: str = setting(
        "", "Hugging Face folder or hub id, or a GGUF file; empty: a tiny model is pre-trained."
    )
    chat: Literal["auto", "never"] = setting(
        "auto", "auto: use the chat template of the tokenizer, if it has one."
    )
    template_args: dict[str, Any] = setting(
        {}, "Values that the chat template reads, such as enable_thinking: false."
    )
    template_date: str = setting(
        "2024-07-26", "The date (YYYY-MM-DD) that a chat template shows as today's date."
    )
    dtype: Dtype = setting("float32", "Type of the weights that sample.")
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
