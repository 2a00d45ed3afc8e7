"""Types of settings: which keys a section has, and which values a key takes."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from facttune_ray.errors import UserError, did_you_mean


@functools.cache
def hints(kind: Any) -> dict[str, Any]:
    """Type of each field of a dataclass, in order."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def child_type(kind: Any, name: Any, parent: str) -> Any:
    """The type of a key inside a dataclass, dict or list type; Any where every value is allowed.
    UserError for a key that a dataclass does not have; `parent` is the dotted key of `kind`."""
    if section := section_of(kind):
        if name not in hints(section):
            key = f"{parent}.{name}" if parent else name
            raise UserError(f'unknown key "{key}".{_suggestion(section, str(name))}')
        return hints(section)[name]
    for part in parts(kind):
        if get_origin(part) in (dict, list):
            return get_args(part)[-1]
    return Any


def _suggestion(kind: Any, name: str) -> str:
    """The nearest key of a section; of a config's top level also `train.lr` for `lr`."""
    inner = ((key, section_of(hint)) for key, hint in hints(kind).items())
    deeper = [f"{key}.{name}" for key, section in inner if section and name in hints(section)]
    return f" Did you mean {' or '.join(deeper)}?" if deeper else did_you_mean(name, hints(kind))


def section_of(kind: Any) -> Any:
    """The dataclass of a section, or of a layer whose keys a dataclass names; else None."""
    named = (kind, *get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind,)
    return next((k for k in named if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def parts(kind: Any) -> tuple[Any, ...]:
    """`int | None -> (int, NoneType)`; of an Annotated type, the parts of the type alone."""
    if get_origin(kind) is Annotated:
        return parts(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def allows(kind: Any, *some: Any) -> bool:
    """Whether the type is, or has as a part, one of `some`: None, int, str, list, Literal, ..."""
    wanted = [type(None) if s is None else s for s in some]
    return any(p in wanted or get_origin(p) in wanted for p in parts(kind))


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a Literal; () for other types."""
    return next((get_args(p) for p in parts(kind) if get_origin(p) is Literal), ())
