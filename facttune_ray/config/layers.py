"""Layers of settings: YAML and `key=value` over dataclasses, with one line for what is wrong.

    layers = [yaml_layer(text, "conf/bio.yaml", Config), override_layer("train.lr=3e-5", Config)]
    cfg = validated(Config, layers)

OmegaConf merges plain dicts and resolves ${...}; pydantic checks types and ranges, and makes the
frozen dataclass. OmegaConf and pydantic are imported by these functions alone: code that builds
a dataclass itself runs where neither is installed.

A text setting is the text as its author wrote it. On the command line that is everything after
`=`. In YAML it is the scalar as it stands in the file, where YAML reads 007 as a number and `no`
as false.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from facttune_ray.config.kinds import allows, child_type, choices, hints, section_of
from facttune_ray.config.setting import bounds_text
from facttune_ray.errors import UserError, one_line

T = TypeVar("T")


class Layer(NamedTuple):
    source: str  # names the layer in errors: a file, or "key=value" in quotes
    values: dict[str, Any]  # nested, with ${...} not yet resolved


def yaml_layer(text: str, source: str, kind: type) -> Layer:
    """A YAML document of sections. UserError for a key or section that `kind` does not have."""
    from omegaconf import OmegaConf

    try:
        root = _nodes(text)
        parsed: Any = OmegaConf.create(text) if root is None or _is(root, "mapping") else None
    except Exception as e:  # the YAML parser's own error tree, which OmegaConf passes on
        raise UserError(f"{source}: not valid YAML: {one_line(e)}") from None
    if parsed is None:
        raise UserError(f"{source}: expected sections such as `run:`, got {text.strip()!r:.60}")
    try:
        return Layer(source, _as_written(OmegaConf.to_container(parsed), root, kind))
    except UserError as e:
        raise UserError(f"{source}: {e}") from None


def override_layer(item: str, kind: type) -> Layer:
    """One `key=value`. The value is a text where the key's type is a text, else YAML."""
    source = f'"{item}"'
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise UserError(f"{source} is not key=value, e.g. run.seed=1")
    names = key.split(".")
    try:
        here: Any = kind
        for i, name in enumerate(names):
            here = child_type(here, name, ".".join(names[:i]))
        value = text if _is_text(here, text) else _yaml_value(text, here, key)
    except UserError as e:
        raise UserError(str(e) if str(e).startswith(f"{key}=") else f"{source}: {e}") from None
    values: Any = value
    for name in reversed(names):
        values = {name: values}
    return Layer(source, values)


def _is_text(kind: Any, text: str) -> bool:
    """Whether the setting is a text; a setting that is a text or a list is a list from "[" on."""
    if text == "null" and allows(kind, None) or text.startswith("[") and allows(kind, list):
        return False
    return allows(kind, str, Literal)


def _yaml_value(text: str, kind: Any, key: str) -> Any:
    from omegaconf import OmegaConf

    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except Exception as e:
        raise UserError(f"not a valid value: {one_line(e)}") from None
    return _as_written(dict(parsed)["value"], _nodes(text), kind, key)  # type: ignore[arg-type]


def validated(kind: type[T], layers: Sequence[Layer], base: T | None = None) -> T:
    """The frozen dataclass `kind`: layers over `base`, or over the defaults of `kind`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from pydantic import ValidationError

    try:
        start = dataclasses.asdict(base or kind())  # type: ignore[call-overload]
        merged = OmegaConf.merge(start, *(layer.values for layer in layers))
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as e:
        key = getattr(e, "full_key", None) or ""
        says = one_line(e).partition("resolving interpolation: ")[2].strip('"') or one_line(e)
        if "Interpolation key" in says:
            says = "${...} names no setting: an environment variable is ${oc.env:NAME}"
        raise UserError(_line(layers, key.split("."), None, says)) from None
    try:
        return _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as e:
        error = e.errors()[0]
        raise UserError(_line(layers, *_explained(kind, values, error))) from None


def stored(kind: type[T], values: dict) -> T | None:
    """`kind` from values as they were validated before, in which "${" is text. None if they are not
    those of this version."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError:
        return None


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# --- texts as they were written


def _nodes(text: str) -> Any:
    """The YAML nodes of a text, which keep each scalar as it was written."""
    import yaml

    return yaml.compose(text, Loader=yaml.SafeLoader)


def _as_written(value: Any, node: Any, kind: Any, key: str = "") -> Any:
    """`value` with its texts as they stand in `node`. UserError for an unknown key, a value in the
    place of a section, and true or false in the place of a number."""
    if isinstance(value, str) and value.startswith("${"):
        return value
    if isinstance(value, dict):
        nodes = {k.value: v for k, v in getattr(node, "value", ())} if _is(node, "mapping") else {}
        return {
            name: _as_written(
                inner,
                nodes.get(str(name)),
                child_type(kind, name, key),
                f"{key}.{name}" if key else str(name),
            )
            for name, inner in value.items()
        }
    if section := section_of(kind):
        first = f"{key}.{next(iter(hints(section)))}"
        raise UserError(f"{_shown(key, value)}: is a section: set one of its keys, such as {first}")
    if isinstance(value, list):
        nodes_of_list = node.value if _is(node, "sequence") else [None] * len(value)
        return [
            _as_written(inner, written, child_type(kind, i, key), f"{key}[{i}]")
            for i, (inner, written) in enumerate(zip(value, nodes_of_list, strict=True))
        ]
    if allows(kind, str, Literal) and (value is not None or allows(kind, Literal)):
        return node.value if _is(node, "scalar") else value
    if isinstance(value, bool) and allows(kind, int, float):
        raise UserError(f"{_shown(key, value)}: must be a number")
    return value


def _is(node: Any, kind: str) -> bool:
    return getattr(node, "id", "") == kind


# --- errors

SAYS = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_type": "must be a text, in quotes",
    "string_too_short": "is empty: give a value",
    "list_type": "must be a list, such as [VALUE]",
    "dict_type": "must be a section, such as {NAME: VALUE}",
    "dataclass_type": "must be a section, such as {NAME: VALUE}",
}


def _explained(kind: type, values: Any, error: Any) -> tuple[list[Any], Any, str]:
    """(path, value, what is wrong) of pydantic's error."""
    path: list[Any] = []
    here, value, bounds = kind, values, error.get("ctx", {})
    for name in error["loc"]:  # which ends in names of pydantic's own for a part of a union
        if isinstance(value, dict) and name in value or isinstance(name, int):
            if dataclasses.is_dataclass(here):
                bounds = {**bounds, **here.__dataclass_fields__[name].metadata}
            here, value = child_type(here, name, ""), value[name]
            path.append(name)
    what = error["type"]
    if value is None:
        return path, None, "is empty: give a value"
    if what == "literal_error":
        return path, value, f"must be one of {', '.join(choices(here))}"
    if what.startswith(("greater_than", "less_than")):
        return path, value, f"must be {bounds_text(bounds)}"
    return path, value, next((s for t, s in SAYS.items() if what.startswith(t)), error["msg"])


def _line(layers: Sequence[Layer], path: Sequence[Any], value: Any, says: str) -> str:
    """`conf/x.yaml: train.lr=-1: must be at least 0`: the last layer that sets the path is named,
    unless it is this `key=value` itself."""
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)[1:]
    source = next((one.source for one in reversed(layers) if _sets(one.values, path)), "")
    own = source.startswith(f'"{key}=')
    line = f"{_shown(key, value)}: {says}"
    return line if own or not source else f"{source}: {line}"


def _shown(key: str, value: Any) -> str:
    if value in (None, "") or isinstance(value, dict | list):
        return key
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _sets(values: Any, path: Sequence[Any]) -> bool:
    for name in path:
        if not isinstance(values, dict):
            return True
        if name not in values:
            return False
        values = values[name]
    return True


# --- plain dicts


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"run": {"seed": 0}} -> {"run.seed": 0}`"""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
