"""One setting: a field of a frozen dataclass, with its default, unit, range and description.

    max_tokens: int = setting(256, "Most tokens of a response.", unit="tokens", ge=1)

The metadata of a field uses pydantic's names, so `layers.validated` checks the range, and
`reference` prints it. The sections themselves do not need pydantic: a Ray worker or a GPU script
that builds a section in code imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar

T = TypeVar("T")

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def setting(default: T, description: str, unit: str = "", **bounds: float) -> T:
    """A dataclass field. `bounds`: ge, gt, le, lt for numbers, min_length for texts."""
    metadata: dict[str, Any] = {"description": description, **bounds}
    if unit:
        metadata["json_schema_extra"] = {"unit": unit}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


def bounds_text(metadata: Mapping[str, Any], words: Mapping[str, str] = BOUNDS) -> str:
    """`{"gt": 0, "le": 1} -> "above 0 and at most 1"`"""
    return " and ".join(f"{word} {metadata[b]}" for b, word in words.items() if b in metadata)
