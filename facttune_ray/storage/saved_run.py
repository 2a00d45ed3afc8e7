"""A run's tables as lazy Arrow datasets, for notebooks.

    run = load("runs/bio")                           a folder or URI; `facttune_ray.load` is this
    run.facts.filter(scope="base/test").to_pandas()
    run.verdicts.to_table(columns=["model", "supported"])
    run.summary["models"]["base"]["error_rate"]

An attribute with the name of a table is a dataset over every finished part of that table, in all
scopes. Two columns tell the scopes apart: `scope` ("facttune_fs/round_1/test") and `model`
("facttune_fs/round_1"). A filter on them opens no file of another scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.storage.folders import Folder, outage
from facttune_ray.storage.schema import TABLES
from facttune_ray.storage.scopes import SECOND, run_folder
from facttune_ray.storage.tables import MANIFEST, RECIPE

_GIVEN = ("prompts", "topics")  # tables that are about no model


def load(run: str) -> SavedRun:
    """Open the folder of a run. Its files are listed once: load it again to see later parts.

    Raise UserError if there is no such folder, or if it holds no table.
    """
    with reading():
        root = run_folder(str(run))
        files = root.files()
    if not any(f.endswith((MANIFEST, RECIPE)) for f in files):
        raise UserError(f"{run} holds no table: name the folder of a run (its run.out)")
    return SavedRun(root, files)


@contextmanager
def reading() -> Iterator[None]:
    """Turn the errors that `outage` explains into UserError."""
    try:
        yield
    except OSError as error:
        if (line := outage(error)) is None:
            raise
        raise UserError(f"storage: {line}") from None


class NoTable(UserError, AttributeError):
    """The run has no such table: `hasattr` is False, and the command line prints one line."""


class Rows:
    """The rows of one table: `dataset` (a `pyarrow.dataset.Dataset`) with its methods (`to_table`,
    `to_batches`, `head`, `count_rows`, `schema`, ...), and `filter` and `to_pandas`. Nothing is
    read before rows are asked for."""

    def __init__(self, dataset: ds.Dataset) -> None:
        self.dataset = dataset

    def filter(self, condition: ds.Expression | None = None, **equal: Any) -> Rows:
        """The rows that meet the condition, and whose columns have these values:
        `filter(scope="base/test", supported=False)`. None selects nulls."""
        _check(equal, self.dataset.schema)
        conditions = [] if condition is None else [condition]
        for name, value in equal.items():
            column = ds.field(name)
            conditions.append(column.is_null() if value is None else column == value)
        found = self.dataset
        for one in conditions:
            found = found.filter(one)
        return Rows(found)

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """A pandas.DataFrame of all rows, or of these columns. UserError without pandas."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise UserError(
                "to_pandas needs pandas: pip install pandas, or use to_table(), which gives an "
                "Arrow table"
            ) from None
        _check(columns or (), self.dataset.schema)
        return self.dataset.to_table(columns=columns).to_pandas()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The rows for a library that reads Arrow streams, such as polars and DuckDB."""
        return self.dataset.scanner().to_reader().__arrow_c_stream__(requested_schema)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for methods before `dataset` is set
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return self.dataset.count_rows()

    def __repr__(self) -> str:
        return f"<{len(self):,} rows: {', '.join(self.dataset.schema.names)}>"


class SavedRun:
    """The folder of a run, finished or not. Every table of `storage/schema.py` that the run has is
    an attribute: `responses`, `facts`, `verdicts`, `rewards`, ...

    `tables`: attribute -> the scopes in which its table is finished. `unfinished`: names of tables
    that lack parts ("base/tune/facts"); the parts that they have are in the datasets.
    """

    def __init__(self, root: Folder, files: Iterable[str]) -> None:
        self.root = root
        self.tables: dict[str, list[str]] = {}
        self._parts: dict[str, list[tuple[str, str]]] = {}  # attribute -> (scope, path of a part)
        begun: dict[str, bool] = {}  # name of a table -> whether it is finished
        for path in files:
            name, _, file = path.rpartition("/")
            if name.rpartition("/")[2] not in TABLES:
                continue
            if file in (MANIFEST, RECIPE):
                begun[name] = begun.get(name, False) or file == MANIFEST
            elif file.startswith("part-") and file.endswith(".parquet"):
                attribute, scope = _place(name)
                self._parts.setdefault(attribute, []).append((scope, path))
        for name in (name for name, finished in begun.items() if finished):
            attribute, scope = _place(name)
            self.tables.setdefault(attribute, []).append(scope)
        self.unfinished = [name for name, finished in begun.items() if not finished]

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: every figure of the report. UserError if the run has not written it."""
        summary = (self.root / "summary.json").read_json()
        if summary is None:
            raise UserError(
                f"{self.root}: no summary.json: run `facttune run` or `facttune report` first"
            )
        return summary

    @property
    def second_opinion(self) -> Rows:
        """The verdicts of the second judge (evaluation.estimator). They are not in `verdicts`."""
        return self._rows(SECOND)

    def __getattr__(self, name: str) -> Rows:
        if name not in TABLES:
            known = [t for t in (*TABLES, SECOND) if t in self.__dict__.get("_parts", ())]
            raise AttributeError(f'a run has no "{name}".{did_you_mean(name, known)}')
        return self._rows(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parts})

    def _rows(self, name: str) -> Rows:
        if name not in self._parts:
            has = f"it has {', '.join(sorted(self._parts))}" if self._parts else "it has no rows"
            raise NoTable(f"{self.root}: no part of a table {name} is finished: {has}")
        return Rows(_dataset(self.root, name, self._parts[name]))

    def __repr__(self) -> str:
        state = f", {len(self.unfinished)} unfinished" if self.unfinished else ""
        count = sum(map(len, self.tables.values()))
        return f"<run {self.root}: {count} tables{state}: {', '.join(sorted(self._parts))}>"


def _place(name: str) -> tuple[str, str]:
    """(the attribute, the scope) of a table: ("second_opinion", "base/test") of
    "base/test/second_opinion/verdicts"."""
    scope, _, table = name.rpartition("/")
    inner, _, last = scope.rpartition("/")
    return (SECOND, inner) if last == SECOND else (table, scope)


def model_of(scope: str) -> str | None:
    """The model that a scope is about: "facttune_fs/round_1" of "facttune_fs/round_1/test", and of
    the preferences that it is trained on; None for imported responses, which name their model."""
    first, _, last = scope.rpartition("/")
    if scope.startswith("imported/") or not scope:
        return None
    return first if last in ("tune", "test") else scope


def _dataset(root: Folder, name: str, parts: Sequence[tuple[str, str]]) -> ds.Dataset:
    table = "verdicts" if name == SECOND else name
    added = ["scope"] if table in _GIVEN else ["scope", "model"]
    added = [column for column in added if column not in TABLES[table].names]
    schema = pa.schema([*((column, pa.string()) for column in added), *TABLES[table]])
    form = ds.ParquetFileFormat()
    fragments = []
    for scope, path in parts:
        known = {"scope": scope, "model": model_of(scope)}
        expression = ds.field("scope") == scope
        if "model" in added and known["model"] is not None:
            expression &= ds.field("model") == known["model"]
        file = root / path
        fragments.append(form.make_fragment(file.path, root.fs, partition_expression=expression))
    return ds.FileSystemDataset(fragments, schema, form, root.fs)


def _check(names: Iterable[str] | Mapping[str, Any], schema: pa.Schema) -> None:
    if isinstance(names, str):
        raise UserError(f'columns="{names}": give a list of columns, such as ["{names}"]')
    for name in names:
        if name not in schema.names:
            raise UserError(f'no column "{name}".{did_you_mean(name, schema.names)}')
