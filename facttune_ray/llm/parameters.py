"""What is sent with a prompt, and how the prompt itself is sent.

parameters(cfg.llm, sample=0)   ->  {"temperature": 0.0, "max_tokens": 512}
as_sent(cfg.llm, messages)      ->  the same messages, or without the role "system"
"""

from __future__ import annotations

from typing import Any

from facttune_ray.config import LLMConfig

Prompt = list[dict[str, str]] | str  # messages of a chat, or the text that `completions` continues


def parameters(cfg: LLMConfig, sample: int, own: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is sent beside model and messages. `own`: of this one request. A null of the config
    takes a parameter away, whoever gives it."""
    limit = "max_tokens" if cfg.max_completion_tokens is None else "max_completion_tokens"
    params = {"temperature": cfg.temperature, limit: getattr(cfg, limit)} | cfg.params
    if isinstance(params.get("seed"), int):
        params["seed"] += sample  # the same seed would give the same refusal
    params |= own or {}
    away = {name for name, value in cfg.params.items() if value is None}
    return {k: v for k, v in params.items() if v is not None and k not in away}


def as_sent(cfg: LLMConfig, prompt: Prompt) -> Prompt:
    """The prompt as the model takes it: with llm.system=user the system's text begins the first
    message of the user, for models without that role."""
    if cfg.system == "message" or isinstance(prompt, str):
        return prompt
    said = [m["content"] for m in prompt if m["role"] == "system"]
    left = [m for m in prompt if m["role"] != "system"]
    if not said or not left:
        return prompt
    return [left[0] | {"content": "\n\n".join([*said, left[0]["content"]])}, *left[1:]]
