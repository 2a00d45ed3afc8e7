"""What the loop asks of a run: tables, models, choices. Who answers decides what that means.

`runtime/run.py` makes what is missing. `estimate/dry_run.py` makes nothing and takes note of what
would be made, so that an estimate is of the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from facttune_ray.config import Config, SFTConfig, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.storage import schema
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import Recipe

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Snapshot:
    """A model at one point of the run: "base", "facttune_fs/round_1", "imported"."""

    name: str
    path: str  # Hugging Face folder; "" for imported responses
    fingerprint: str


class Run(Protocol):
    """One run. Names of tables are relative to its folder: "base/tune/facts"."""

    cfg: Config
    root: Folder

    def table(
        self,
        scope: str,
        name: str,
        inputs: Iterable[str] | Mapping[str, str],
        cfg: Config | None = None,
        *,
        splits: tuple[str, ...] | None = None,
        model: Snapshot | None = None,
        reward: str = "",
        mix: Mapping[str, Mapping[str, float]] | None = None,
    ) -> str:
        """The table `scope/name` of the stage `name`, from tables given by their full names or by
        {role: full name}. -> its full name

        `cfg`: settings other than the run's; `splits`: only rows of these; `model`: that samples,
        or that is trained; `reward`, `mix`: of the stages `groups` and `mixes`.
        """
        ...

    def driver_table(
        self,
        name: str,
        table: str,
        recipe: Recipe,
        rows: Callable[[], Iterable[dict]],
        settle: Callable[[list[dict]], Iterable[dict]] = list,
    ) -> str:
        """A table that the driver writes by itself: prompts, and what files bring. `settle`: what
        is done to the rows of a shard, where all rows of a topic are together."""
        ...

    def artifact(
        self, name: str, step: str, recipe: Recipe, make: Callable[[Path], dict[str, Any]]
    ) -> str:
        """A folder that is no table. `make` writes into a local folder; what it returns goes into
        the manifest."""
        ...

    def train(
        self,
        scope: str,
        rows: str,
        start: Snapshot,
        recipe: Recipe,
        train: TrainConfig,
        sft: SFTConfig | None = None,
    ) -> Snapshot:
        """The model `start` after training on the table `rows`: DPO, or `sft`."""
        ...

    def side_by_side(self) -> AbstractContextManager[None]:
        """Tables made inside may be made side by side, part by part."""
        ...

    def rows(self, name: str) -> int:
        """Rows of a table."""
        ...

    def fingerprint(self, name: str) -> str:
        """Digest of a node's recipe."""
        ...

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        """The round that the val topics choose, and what it was chosen from."""
        ...


def full_name(scope: str, name: str) -> str:
    """Name of a scope's table; the scope "" is the run's own."""
    return f"{scope}/{name}" if scope else name


def model_digest(path: str) -> str:
    """A local model by its files' names, sizes and ends (not its path); one on an object store by
    names, sizes and times; a hub id by its name."""
    from pyarrow.fs import FileSelector

    if "://" in path:
        source = Folder.of(path)
        files = source.fs.get_file_info(FileSelector(source.path, allow_not_found=True))
        return schema.digest(*sorted((f.base_name, f.size, f.mtime_ns) for f in files if f.is_file))
    folder = Path(path)
    if not folder.is_dir():
        return schema.digest("hub", path)
    parts: list[object] = []
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".bin", ".model"}:
            with file.open("rb") as f:
                head = f.read(2**20)
                f.seek(max(0, file.stat().st_size - 2**20))
                parts += [file.name, file.stat().st_size, schema.digest(head, f.read())]
    if not parts:
        raise UserError(f"model.path={path}: no model files in this folder")
    return schema.digest(*parts)
