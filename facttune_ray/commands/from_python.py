"""`facttune_ray.run`: the command `run`, for notebooks.

run(["bio"], {"train": {"lr": 3e-5}, "run.seed": 1})  ->  SavedRun
overrides({"train": {"lr": 3e-5}})                    ->  ["train.lr=3e-05"]
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from facttune_ray import config
from facttune_ray.commands import process
from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.secrets import redact
from facttune_ray.storage import saved_run
from facttune_ray.storage.saved_run import SavedRun


def run(words: Sequence[str], settings: Mapping[str, Any]) -> SavedRun:
    """Make what is missing of the run that presets, "key=value" and settings describe."""
    presets = [w for w in words if "=" not in w]
    if not presets:
        raise UserError('name a preset, as in facttune_ray.run("quickstart")')
    given = [w for w in words if "=" in w]
    cfg = _absolute(config.load(presets, [*given, *overrides(settings)]))
    process.prepare()
    from facttune_ray.commands import run as command

    try:
        with saved_run.reading():
            command.run(cfg)
    except UserError as error:
        raise type(error)(redact(str(error))) from None
    return saved_run.load(cfg.run.out)


def _absolute(cfg: Config) -> Config:
    """The config with absolute places of the run, its data, ledger, checkpoints and model: a
    notebook may change its folder after it has started Ray, whose workers stay in the first one."""
    path = cfg.model.path
    local = os.path.exists(os.path.expanduser(path))  # else it is the name of a model on the hub
    return replace(
        cfg,
        run=replace(cfg.run, out=_place(cfg.run.out)),
        data=replace(cfg.data, folder=_place(cfg.data.folder)),
        llm=replace(cfg.llm, ledger=_place(cfg.llm.ledger)),
        train=replace(cfg.train, checkpoints=_place(cfg.train.checkpoints)),
        model=replace(cfg.model, path=_place(path) if local else path),
    )


def _place(path: str) -> str:
    return path if "://" in path or not path else os.path.abspath(os.path.expanduser(path))


def overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested settings as `key=value`, in the form of the command line."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from overrides(value, f"{key}.")
        elif isinstance(value, str | os.PathLike):
            yield f"{key}={os.fspath(value)}"
        else:
            yield f"{key}={_written(key, value)}"


def _written(key: str, value: Any) -> str:
    try:
        return json.dumps(value, default=os.fspath)
    except (TypeError, ValueError):
        raise UserError(
            f"{key}: a {type(value).__name__} is no value of a setting: give a number, a text, "
            f"true or false, a list or a dict"
        ) from None
