"""Other models and decoders on the run's test topics: the config section `contenders`.

    contenders:
      dola: {sampling: {decoder: dola}}                        the base model, decoded by DoLa
      fs_dola: {of: facttune_fs, sampling: {decoder: dola}}    a tuned model, the same
      chat: {model: {path: meta-llama/Llama-2-7b-chat-hf}, prompts: {form: chat}}
      gpt: {sampling: {engine: api, llm: {model: gpt-4o-mini}}, prompts: {form: chat}}

A contender is the run's own config with some settings changed. It may change the sections of
`ContenderSettings` alone, so the same judges score every contender.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from facttune_ray.config.layers import Layer, validated
from facttune_ray.config.sections import Config
from facttune_ray.config.texts import with_texts
from facttune_ray.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Contender:
    name: str
    of: str  # tuned model to sample from; "": the base model, or the model.path of `cfg`
    cfg: Config  # the run's config with the contender's changes
    own_prompts: bool  # its prompts differ from the run's


def contenders(cfg: Config) -> Iterator[Contender]:
    """Every contender, in the config's order. UserError names the key of a wrong setting."""
    for name, given in cfg.contenders.items():
        yield _contender(cfg, name, given)


def _contender(cfg: Config, name: str, given: dict[str, Any]) -> Contender:
    key = f"contenders.{name}"
    layer = dict(given)
    of = layer.pop("of", "") or ""
    tuned = [n for n, t in cfg.tune.items() if t.rounds]
    if of and of not in tuned:
        raise UserError(f'{key}.of: no tuned model "{of}".{did_you_mean(of, tuned)}')
    if layer.get("prompts") and cfg.data.source != "topics":
        raise UserError(f"{key}.prompts: only with data.source=topics, whose prompts are made")
    if of and (layer.get("model") or {}).get("path"):
        raise UserError(f"{key}: set `of` or `model.path`, not both")
    changed = with_texts(validated(Config, [Layer(key, layer)], cfg))
    if of and changed.sampling.engine == "api":
        raise UserError(f"{key}.of: sampling.engine=api cannot sample a tuned model")
    return Contender(name, of, changed, changed.prompts != cfg.prompts)
