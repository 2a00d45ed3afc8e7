"""A stage on one shard of hand-made tables."""

import asyncio

import pytest

from facttune_ray import config
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables


@pytest.fixture
def run_stage(tmp_path):
    """rows = run_stage(stage, {"responses": [...]}, ["rewards.gamma=0"], resources={...}, **work)

    `resources`: fakes for what a worker's context makes: client, sampler, entailment.
    """

    def run(stage, inputs, overrides=(), resources=(), **work):
        cfg = config.load([], [f"run.out={tmp_path}", *overrides])
        name = stage.__name__.rsplit(".", 1)[-1]
        context = Context(Work(name, "out", {i: i for i in inputs}, cfg, **work))
        context.__dict__.update(resources)
        for table, rows in inputs.items():
            tables.write_part(context.root / table, table, 0, rows, {})
        made = asyncio.run(stage.run(context, 0))
        tables.write_part(context.root / "out", name, 0, made, {})  # they fit the schema
        return made

    return run
