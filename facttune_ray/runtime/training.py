"""Starts a training job on the cluster by Ray Train, and shows its progress."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facttune_ray.config import Config, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.loop.nodes import Training
from facttune_ray.runtime import cluster, ending, progress
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.tables import Recipe
from facttune_ray.telemetry import say
from facttune_ray.training import engine
from facttune_ray.training.job import TrainJob


def train_node(node: Training, recipe: Recipe, root: Folder, cfg: Config) -> int:
    """Train the model of the node in its folder, which may hold a part of it. -> optimizer steps"""
    settings = engine.deepspeed_config(node.train)
    table, out = root / node.rows, root / node.name
    if node.train.loss == "fact_masked" and node.sft is None:
        _check_masks(table, cfg.run.shards)
    tables.begin(out, recipe)
    cluster.start_ray()
    # the name holds the recipe, so checkpoints elsewhere cannot be those of another training
    name = f"{cfg.run.name}-{node.scope}-{tables.fingerprint(recipe)[:8]}"
    path = Path(node.start.path)  # workers run in another folder than the driver
    job = TrainJob(
        rows=tuple((table / tables.part(s)).uri for s in range(cfg.run.shards)),
        model=str(path.resolve()) if path.is_dir() else node.start.path,
        out=out.uri,
        train=node.train,
        groups=cfg.groups,
        seed=cfg.run.seed,
        deepspeed=settings,
        sft=node.sft,
        name=re.sub(r"[^\w.-]+", "-", name),
    )
    return train(job)


def _check_masks(table: Folder, shards: int) -> None:
    """UserError when no token is masked: no sentence of the responses has a verdict."""
    import pyarrow.compute as pc

    for shard in range(shards):
        part = tables.read_part(table, shard, ["win_masks", "lose_masks"])
        for column in part.columns:
            if pc.min(pc.list_flatten(pc.list_flatten(column))).as_py() == 0:
                return
    raise UserError(
        f"train.loss=fact_masked: no sentence of the responses in {table} has "
        f"a verdict, so no token is masked: it needs data.knowledge, or take train.loss=dpo"
    )


def train(job: TrainJob) -> int:
    """Run the job on the Ray cluster, or continue it from its last checkpoint. -> optimizer steps

    UserError when it cannot be trained: no pair, no room for its workers, an unknown tracker.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from facttune_ray.training import rows, trackers
    from facttune_ray.training.network import ProcessGroup
    from facttune_ray.training.worker import worker

    cfg = job.train
    found = rows.survey(job.rows, cfg.pass_tokens)
    if not job.sft and not found.pairs:
        raise UserError(
            f"{job.rows[0].rsplit('/', 1)[0]}: no pair of responses whose rewards differ: nothing "
            f"to train on. Check the rewards table, lower groups.threshold, or sample more"
        )
    if found.cut_prompts:
        most = cfg.max_prompt_length
        say(f"{found.cut_prompts:,} prompts were cut to train.max_prompt_length={most}")
    if found.cut_responses:
        most = cfg.max_length
        say(f"{found.cut_responses:,} responses lost their ends to train.max_length={most}")
    for tracker in cfg.log:
        trackers.check(tracker)
    least = min(cfg.min_workers or cfg.workers, cfg.workers)
    _check_room(cfg, least)
    workers = cfg.workers if least == cfg.workers else (least, cfg.workers)
    # Ray Train takes one checkpoint each time it polls its workers, so it must poll often
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    place, name = (cfg.checkpoints, job.name) if cfg.checkpoints else (job.out, "checkpoints")
    where = Folder.of(place)
    trainer = TorchTrainer(
        worker,  # type: ignore[arg-type]  # its return value comes back in the result
        train_loop_config={"job": job},
        torch_config=ProcessGroup(backend="nccl" if cfg.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # the first version's type has no tuple
            use_gpu=cfg.gpus > 0,
            accelerator_type=(cfg.accelerator or None) if cfg.gpus else None,
            resources_per_worker={"CPU": 1, **({"GPU": cfg.gpus} if cfg.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            storage_path=where.path,
            storage_filesystem=where.fs,
            name=name,
            failure_config=ray.train.FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=cfg.keep,
                checkpoint_score_attribute=None if cfg.best == "none" else "score",
            ),
        ),
    )
    # in the main thread Ray Train would replace the handler of Ctrl-C for good
    with _progress(job.out):
        outcome = ending.in_daemon_thread(trainer.fit).return_value  # type: ignore[attr-defined]
    if isinstance(outcome, str):
        raise UserError(outcome)
    return outcome


def _check_room(cfg: TrainConfig, least: int) -> None:
    """UserError if a local cluster has no room for the workers. A cluster that may grow: a line."""
    import ray

    there = ray.cluster_resources()
    for kind, each in (("CPU", 1), ("GPU", cfg.gpus)):
        if each * least > there.get(kind, 0):
            lack = (
                f"train.workers={cfg.workers}: {least} workers need {each * least:g} {kind}s, "
                f"there are {there.get(kind, 0):g}"
            )
            if not os.environ.get("RAY_ADDRESS"):
                raise UserError(f"{lack}: lower it, or name a cluster in RAY_ADDRESS")
            say(f"{lack}: waiting for hosts")


@contextmanager
def _progress(out: str) -> Iterator[None]:
    """Show the steps in the workers' log while the trainer runs: a bar on a terminal, else a line
    every 30 s, also before the workers have begun."""
    done, follow = threading.Event(), _bar if sys.stderr.isatty() and "://" not in out else _lines
    thread = threading.Thread(target=follow, args=(out, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _steps(out: str) -> list[str]:
    """Lines of the log. In an object store the log exists only at the end."""
    log = Path(out) / "train.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def _bar(out: str, done: threading.Event) -> None:
    from tqdm import tqdm

    with tqdm(desc="training", unit="step", leave=False) as bar:
        while not done.wait(0.5):
            if lines := _steps(out):
                last = json.loads(lines[-1])
                bar.total = last["steps"]
                bar.set_postfix(loss=f"{last['loss']:.3f}", refresh=False)
                bar.update(len(lines) - bar.n)


def _lines(out: str, done: threading.Event) -> None:
    table, began_s = "/".join(out.split("/")[-3:]), time.monotonic()
    before = len(_steps(out))  # of a training that goes on
    while not done.wait(progress.LOG_S):
        elapsed_s = time.monotonic() - began_s
        text = f"{table:<36} {elapsed_s:,.0f} s"
        if lines := _steps(out):
            last = json.loads(lines[-1])
            made, steps = len(lines), last["steps"]
            left = progress.time_left(made - before, steps - made, elapsed_s)
            text += f"  {made:,}/{steps:,} steps{left}  loss {last['loss']:.3f}"
        elif lacking := progress.lacks_group():
            text += f"  waits for {lacking}"
        say(text, event="progress", table=table, elapsed_s=round(elapsed_s, 1), step=len(lines))
