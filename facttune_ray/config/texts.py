"""Settings whose value is a text or the name of a file with this text.

prompts.template   its text has {topic} in it, which a file's name has not
answers.examples   its text has a line end, which a file's name has not

`load` puts the file's text in the place of its name, so workers need no file and the recipe of a
table holds the text.
"""

from __future__ import annotations

from dataclasses import replace

from facttune_ray.config.sections import Config
from facttune_ray.config.stages import EXAMPLES
from facttune_ray.errors import UserError, one_line


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
    from facttune_ray.storage.folders import Folder

    shown = path if len(path) <= 80 else f"{path[:77]}..."
    try:
        text = Folder.of(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{key}={path}: not UTF-8: save the file as UTF-8") from None
    except FileNotFoundError:
        raise UserError(f"{key}={shown}: no such file: {hint}") from None
    except OSError as e:
        raise UserError(f"{key}={shown}: {one_line(e)}: {hint}") from None
    if not text.strip():
        raise UserError(f"{key}={path}: the file is empty")
    return text
