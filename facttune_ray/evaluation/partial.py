"""The report of a run that is being made, from the tables that are finished.

    page = partial(root, cfg, live, names)    the page of report.html, with `live` at its top

It reads whole shards until a model has about MOST responses, at least one shard; it draws RESAMPLES
resamples and shows EXAMPLES responses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set

from facttune_ray.config import Config
from facttune_ray.evaluation import measure
from facttune_ray.evaluation.breakdowns import Scope
from facttune_ray.evaluation.report import files, page, parts
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import IMPORTED
from facttune_ray.storage.tables import Folder

MOST, RESAMPLES, EXAMPLES = 2048, 200, 200
JUDGED = {"responses", "facts", "verdicts"}


def partial(
    root: Folder, cfg: Config, live: str, names: Sequence[str], trained: Sequence[str] = ()
) -> str:
    """The page. `names`: the finished tables, in the order of the pipeline; `trained`: names of the
    tuned models whose training has begun. A table that goes away meanwhile raises UserError,
    OSError or an error of Arrow."""
    found: dict[str, set[str]] = {}
    for name in names:
        scope, _, table = name.rpartition("/")
        found.setdefault(scope, set()).add(table)
    own = cfg.evaluation
    small = dataclasses.replace(
        own,
        most=min(MOST, own.most),
        resamples=min(RESAMPLES, own.resamples),
        examples=min(EXAMPLES, own.examples),
    )
    cfg = dataclasses.replace(cfg, evaluation=small)
    rewarded = {"rewards", *JUDGED}
    scored = [scope for scope in ("base/tune", IMPORTED) if rewarded <= found.get(scope, set())]
    made = measure.collect(
        root,
        cfg,
        scopes=measured(root, found),
        rewards=scored[0] if scored else "",
        train="",
        trained=trained,
        selection={},
        manifests={name: tables.manifest(root / name) for name in names},
    )
    packed = parts.packed(made.cards.cards)
    return page.page(files.finite(made.summary), packed, made.cards.responses, live)


def measured(root: Folder, found: Mapping[str, Set[str]]) -> dict[str, Scope]:
    """Model -> its judged responses: imported ones, those to test topics when base has answered
    them, or those to val topics, of the last round that has them. `found`: scope -> its finished
    tables."""
    judged = [s for s, names in found.items() if JUDGED <= names]
    tests = {s.split("/")[0]: Scope(s) for s in judged if s.endswith("/test")}
    if "base" in tests:
        return dict(sorted(tests.items(), key=_base_first))
    if IMPORTED in judged:
        return {model: Scope(IMPORTED, model) for model in measure.models(root, IMPORTED)}
    rounds = (s for s in judged if s.endswith("/tune"))
    last = {s.split("/")[0]: Scope(s, only="val") for s in sorted(rounds, key=_round)}
    return dict(sorted(last.items(), key=_base_first))


def _base_first(item: tuple[str, Scope]) -> tuple[bool, str]:
    return item[0] != "base", item[0]


def _round(scope: str) -> int:
    """2 of "facttune_fs/round_2/tune", 0 of "base/tune"."""
    number = scope.partition("/round_")[2].partition("/")[0]
    return int(number) if number.isdecimal() else 0
