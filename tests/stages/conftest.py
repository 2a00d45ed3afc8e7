"""Run a stage on one shard of hand-made tables."""

import asyncio

import pytest

from facttune_ray import config
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables


@pytest.fixture
def run_stage(tmp_path):
    """rows = run_stage(stage, {"responses": [...]}, ["rewards.gamma=0"], resources={...}, **work)

    `resources`: fakes for resources of the context, such as client, sampler, entailment.
    """

    def run(stage, inputs, overrides=(), resources=None, **work):
        cfg = config.load([], [f"run.out={tmp_path}", *overrides])
        name = stage.__name__.rsplit(".", 1)[-1]
        context = Context(Work(name, "out", {i: i for i in inputs}, cfg, **work), **resources or {})
        for table, rows in inputs.items():
            tables.write_part(context.root / table, table, 0, rows, {})
        rows = asyncio.run(stage.run(context, 0))
        tables.write_part(context.root / "out", name, 0, rows, {})  # checks the schema
        return rows

    return run
