"""Layers of settings become one checked, frozen Config.

    cfg = load(["quickstart"], ["run.seed=1", "train.lr=3e-5"])

`load` merges: dataclass <- YAML presets in order <- `key=value` overrides. A preset is a path to
a YAML file or the name of one in conf/. OmegaConf is imported by `load` alone, so that training
code runs where it is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from facttune_ray.config.sections import FREE, Config
from facttune_ray.errors import UserError, did_you_mean

T = TypeVar("T")


def conf_dir() -> Path:
    """The presets' folder: conf/ of the checkout, or its copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if folder.is_dir():
            return folder
    raise UserError("conf/ not found: reinstall facttune_ray, or give presets by path")


def preset_path(name: str) -> Path:
    """Path of a preset given by name or path; UserError when there is none."""
    path = Path(name)
    if path.is_file():
        return path
    known = {p.stem: p for p in conf_dir().glob("*.yaml")}
    inside = conf_dir() / f"{name}.yaml"  # "gpus/8": a layer in a folder of its own
    if inside.is_file():
        return inside
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise UserError(f"config file {name} does not exist")
    raise UserError(f'no preset "{name}" in conf/.{did_you_mean(name, known)}')


def load(presets: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Merge dataclass defaults, presets (names, paths, URIs) in order and `key=value` overrides;
    check; freeze."""
    from omegaconf import OmegaConf

    from facttune_ray.config.layers import frozen, layered, merge
    from facttune_ray.config.rules import check
    from facttune_ray.errors import one_line

    merged = OmegaConf.structured(Config)
    for name in presets:
        path = name if "://" in name else preset_path(name)
        try:
            layer = _remote(name) if "://" in name else OmegaConf.load(path)
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: {one_line(e)}") from None
        except Exception as e:  # the YAML parser's own error tree, which OmegaConf passes on
            raise UserError(f"{path}: not valid YAML: {one_line(e)}") from None
        merged = merge(merged, layer, str(path), FREE)
    cfg = frozen(layered(merged, overrides, FREE))
    check(cfg)
    return cfg


def _remote(uri: str) -> Any:
    """A preset on an object store."""
    from omegaconf import OmegaConf

    from facttune_ray.storage.folders import Folder

    return OmegaConf.create(Folder.of(uri).read_bytes().decode())


def override(kind: type[T], overrides: Sequence[str]) -> T:
    """A frozen dataclass from its defaults and `key=value` overrides."""
    from omegaconf import OmegaConf

    from facttune_ray.config.layers import frozen, layered

    return frozen(layered(OmegaConf.structured(kind), overrides, {}))
