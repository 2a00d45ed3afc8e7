"""Settings whose value is a text or the name of a file with this text.

prompts.template   a value with {topic} in it is the text; any other value is a file's name
answers.examples   a value with a line end is the text; any other value is none, bio, medicine,
                   general or a file's name

`load` puts the file's text in the place of its name, so workers need no file and the recipe of a
table holds the text.
"""

from __future__ import annotations

from dataclasses import replace

from facttune_ray.config.sections import Config
from facttune_ray.config.stages import EXAMPLES
from facttune_ray.errors import UserError


def with_texts(cfg: Config) -> Config:
    """The config with the texts of the files that it names. UserError names the setting of a file
    that is missing or empty."""
    template, examples = cfg.prompts.template, cfg.answers.examples
    if template and "{topic}" not in template:
        hint = "give a file, or a text with {topic} in it"
        read = _text("prompts.template", template, hint).rstrip("\n")
        cfg = replace(cfg, prompts=replace(cfg.prompts, template=read))
    if examples not in EXAMPLES and "\n" not in examples:
        read = _text("answers.examples", examples, f"give a file, or one of {', '.join(EXAMPLES)}")
        cfg = replace(cfg, answers=replace(cfg.answers, examples=read.rstrip("\n") + "\n"))
    return cfg


def _text(key: str, path: str, hint: str) -> str:
    from facttune_ray.storage import records  # imports pyarrow, which most configs do not need

    try:
        text = "".join(records.lines(path, key))
    except UserError as e:
        shown = path if len(path) <= 80 else f"{path[:77]}..."  # perhaps a text, not a name
        raise UserError(f"{str(e).replace(path, shown)}: {hint}") from None
    if not text.strip():
        raise UserError(f"{key}={path}: the file is empty: {hint}")
    return text
