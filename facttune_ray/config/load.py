"""Load presets and overrides as one checked, frozen Config.

    cfg = load(["quickstart"], ["run.seed=1", "train.lr=3e-5"])

`load` merges: dataclass <- YAML presets in order <- `key=value` overrides. A preset is the path
of a YAML file, or the name of a file in conf/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from facttune_ray.config.sections import Config
from facttune_ray.errors import UserError, did_you_mean, one_line

T = TypeVar("T")


def conf_dir() -> Path:
    """The folder of presets: conf/ of the checkout, or its copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if folder.is_dir():
            return folder
    raise UserError("conf/ not found: reinstall facttune_ray, or give presets by path")


def preset_path(name: str) -> Path:
    """Path of a preset, given by name or path. UserError when no such file exists."""
    path = Path(name)
    if path.is_file():
        return path
    known = [p.stem for p in conf_dir().glob("*.yaml")]
    inside = conf_dir() / f"{name}.yaml"  # "gpus/8": a layer in a folder of its own
    if inside.is_file():
        return inside
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise UserError(f"config file {name} does not exist")
    raise UserError(f'no preset "{name}" in conf/.{did_you_mean(name, known)}')


def load(presets: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Defaults, then presets (names, paths, URIs) in order, then `key=value` overrides: merged,
    checked and frozen. UserError names the file or override and the key."""
    from facttune_ray.config.layers import override_layer, validated, yaml_layer
    from facttune_ray.config.rules import check
    from facttune_ray.config.texts import with_texts

    layers = [yaml_layer(*_preset(name), Config) for name in presets]
    cfg = validated(Config, [*layers, *(override_layer(item, Config) for item in overrides)])
    cfg = with_texts(cfg)
    check(cfg)
    return cfg


def _preset(name: str) -> tuple[str, str]:
    """(text, path) of a preset, which may lie on an object store."""
    from facttune_ray.storage.folders import Folder

    path = name if "://" in name else str(preset_path(name))
    try:
        data = Folder.of(name).read_bytes() if "://" in name else Path(path).read_bytes()
        return data.decode(), path
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: {one_line(e)}") from None


def override(kind: type[T], overrides: Sequence[str]) -> T:
    """A dataclass from its defaults and `key=value` overrides."""
    from facttune_ray.config.layers import override_layer, validated

    return validated(kind, [override_layer(item, kind) for item in overrides])
