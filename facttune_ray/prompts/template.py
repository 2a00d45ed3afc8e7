"""Prompt templates: one `.txt` file each, with blocks headed `### system` and `### user`.

`{name}` is a slot. Only slots of the file are filled, and filled text is never searched for slots,
so a response that contains braces cannot change the prompt.
"""

from __future__ import annotations

import functools
import hashlib
import re
from importlib.resources import files

_SLOT = re.compile(r"\{(\w+)\}")


@functools.cache
def text(name: str) -> str:
    """The template file's text."""
    return files("facttune_ray.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8")


def fingerprint(name: str) -> str:
    """Hash of the template's text, which is part of the recipe of every table made with it."""
    return hashlib.sha256(text(name).encode()).hexdigest()[:12]


def blocks(name: str) -> list[tuple[str, str]]:
    """The blocks of a template as (role, text), in file order."""
    parts = re.split(r"^### (system|user|assistant)\n", text(name), flags=re.M)[1:]
    return [(role, body.strip("\n")) for role, body in zip(parts[::2], parts[1::2], strict=True)]


def system(name: str) -> str:
    """The template's system text, by which tasks are recognised."""
    return dict(blocks(name))["system"]


def messages(name: str, **slots: str) -> list[dict[str, str]]:
    """Chat messages with every slot filled. A missing or unknown slot raises KeyError."""
    used: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        used.add(match[1])
        return slots[match[1]]

    out = [{"role": role, "content": _SLOT.sub(fill, body)} for role, body in blocks(name)]
    if unknown := set(slots) - used:
        raise KeyError(f"prompts/{name}.txt has no slot {sorted(unknown)}")
    return out
