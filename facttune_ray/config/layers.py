"""Layers of settings: YAML and `key=value` over dataclasses, with one line for what is wrong.

merged = layered(OmegaConf.structured(Config), ["train.lr=3e-5"])
cfg = frozen(merged)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from facttune_ray.errors import UserError, did_you_mean, one_line

# Sections whose keys are the user's: prefix -> dataclass of what stands there, None for anything
Open = Mapping[str, type | None]


# parts of OmegaConf's errors, and what a user can do about them
TOLD = {
    "is not a ListConfig": "expected a list, such as [VALUE]",
    "Incompatible value 'None'": "is empty: give a value",
    "is not a subclass of": "is a section: set one of its keys, such as train.lr=3e-5",
    "Interpolation key": "${...} names no setting: an environment variable is ${oc.env:NAME}",
}


def layered(merged: Any, overrides: Sequence[str], free: Open) -> Any:
    """`key=value` strings over what is there."""
    from omegaconf import OmegaConf

    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise UserError(f'"{item}" is not key=value, e.g. run.seed=1')
        try:
            layer = OmegaConf.from_dotlist([item])
        except Exception as e:
            raise UserError(f'"{item}": not a valid value: {one_line(e)}') from None
        merged = merge(merged, layer, f'"{item}"', free)
    return merged


def frozen(merged: Any) -> Any:
    """The frozen dataclass of what was merged."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as e:
        raise UserError(f"config: {one_line(e)}") from None


def merge(base: Any, layer: Any, source: str, free: Open) -> Any:
    """A layer over the base; `source` names it in errors."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not OmegaConf.is_dict(layer):
        raise UserError(f"{source}: expected sections such as `run:`, got {layer!r:.60}")
    try:
        if unknown := _unknown_key(base, layer, free):
            raise UserError(f"{source}: {unknown}")
        return OmegaConf.merge(base, layer)
    except OmegaConfBaseException as e:
        key = getattr(e, "full_key", "") or ""
        line = next((told for part, told in TOLD.items() if part in str(e)), one_line(e))
        raise UserError(f"{source}: {key + ': ' if key else ''}{line}") from None


def _unknown_key(base: Any, layer: Any, free: Open, prefix: str = "") -> str:
    """One line about the first key of `layer` that no dataclass has, or ''."""
    from omegaconf import OmegaConf

    for key in layer:
        here = f"{prefix}{key}"
        if prefix in free:
            kind = free[prefix]
            if kind is None:
                return ""
            template = OmegaConf.structured(kind)
        elif key not in base:
            return f'unknown key "{here}".{did_you_mean(str(key), map(str, base))}'
        else:
            template = base[key]
        if OmegaConf.is_dict(layer[key]) and OmegaConf.is_dict(template):
            if found := _unknown_key(template, layer[key], free, here + "."):
                return found
    return ""


def to_dict(cfg: Any) -> dict[str, Any]:
    """Nested plain dict of the whole config (for the report and manifests)."""
    from omegaconf import OmegaConf

    out = OmegaConf.to_container(OmegaConf.structured(cfg))
    assert isinstance(out, dict)
    return {str(k): v for k, v in out.items()}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"run": {"seed": 0}} -> {"run.seed": 0}`"""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
