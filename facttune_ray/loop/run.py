"""The verbs of a run: what the loop asks for.

Two classes have these verbs. `runtime/run.py` makes the tables and models that are missing.
`estimate/dry_run.py` makes nothing and lists what would be made, so that an estimate cannot differ
from the run.
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

        `cfg`: settings that replace the run's. `splits`: only rows of these splits. `model`: the
        model that samples, or that training starts from. `reward`, `mix`: for the stages `groups`,
        `mixes`.
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
        """A table that the driver writes itself: prompts, and tables read from files. `settle`:
        applied to the rows of a shard, which holds all rows of a topic."""
        ...

    def artifact(
        self, name: str, step: str, recipe: Recipe, make: Callable[[Path], dict[str, Any]]
    ) -> str:
        """A folder that is not a table, such as a database. `make` writes into a local folder and
        returns entries of the manifest."""
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
        """The model `start` after training on the table `rows`: by DPO, or supervised if `sft` is
        given."""
        ...

    def side_by_side(self) -> AbstractContextManager[None]:
        """Inside, tables may be made side by side, part by part."""
        ...

    def rows(self, name: str) -> int:
        """Number of rows of a table."""
        ...

    def fingerprint(self, name: str) -> str:
        """Digest of a node's recipe."""
        ...

    def choose(self, rounds: list[Snapshot], by: str) -> dict:
        """{"chosen": name of the best round on val topics, "metric": ..., "candidates": [...]}"""
        ...


def full_name(scope: str, name: str) -> str:
    """Full name of a table. The scope "" is the run's folder."""
    return f"{scope}/{name}" if scope else name


def model_digest(path: str) -> str:
    """Digest of a model. A local model counts by the names, sizes, first and last megabyte of its
    files, not by its path; a model in an object store by names, sizes and times; a hub id by its
    name."""
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
