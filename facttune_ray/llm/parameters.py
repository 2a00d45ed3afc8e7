"""The parameters that are sent with a prompt, and the form in which the prompt is sent.

parameters(cfg.llm, sample=0)   ->  {"temperature": 0.0, "max_tokens": 512}
as_sent(cfg.llm, messages)      ->  the same messages, or messages without the role "system"
"""

from __future__ import annotations

from typing import Any

from facttune_ray.config import LLMConfig

Prompt = list[dict[str, str]] | str  # messages of a chat, or a text for `completions`


def parameters(cfg: LLMConfig, sample: int, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of a request, without model and messages. `extra`: of this request alone. A
    null in the config removes a parameter, also one of `extra`."""
    limit = "max_tokens" if cfg.max_completion_tokens is None else "max_completion_tokens"
    params = {"temperature": cfg.temperature, limit: getattr(cfg, limit)} | cfg.params
    if isinstance(params.get("seed"), int):
        params["seed"] += sample  # the same seed would give the same refusal
    params |= extra or {}
    removed = {name for name, value in cfg.params.items() if value is None}
    return {k: v for k, v in params.items() if v is not None and k not in removed}


def as_sent(cfg: LLMConfig, prompt: Prompt) -> Prompt:
    """The prompt in the form that the model takes: with llm.system=user, which is for models
    without a system role, the text of the system begins the first message of the user."""
    if cfg.system == "message" or isinstance(prompt, str):
        return prompt
    system = [m["content"] for m in prompt if m["role"] == "system"]
    others = [m for m in prompt if m["role"] != "system"]
    if not system or not others:
        return prompt
    return [others[0] | {"content": "\n\n".join([*system, others[0]["content"]])}, *others[1:]]
