"""FactTune (Tian et al., ICLR 2024) as a distributed system: see README.md.

import facttune_ray

run = facttune_ray.run("quickstart", run={"out": "runs/first"})     as `facttune run` does
run = facttune_ray.load("runs/first")                               a run that is there
run.facts.to_pandas()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facttune_ray.storage.saved_run import SavedRun


def load(folder: str) -> SavedRun:
    """Open the folder of a run, finished or not, given by its path or URI. Nothing is read yet.

    `.facts`, `.verdicts`, `.responses`, `.rewards`, ... are lazy Arrow datasets with `to_pandas()`;
    `.summary` is summary.json as a dict. Raise UserError (facttune_ray.errors) if it is no run.
    """
    from facttune_ray.storage import saved_run

    return saved_run.load(folder)


def run(*config: str, **settings: Any) -> SavedRun:
    """Make every missing table, train, evaluate, report, as `facttune run` does; return the run.

    `config`: presets (a name in conf/, a YAML path) and "key=value". `settings`: a section as a
    dict, or a dotted key: `run("bio", train={"lr": 3e-5}, **{"run.seed": 1})`. They win.
    Raise UserError for bad input, BudgetReached when llm.budget_usd is spent. The same call makes
    only what is missing.
    """
    from facttune_ray.commands import from_python

    return from_python.run(config, settings)
