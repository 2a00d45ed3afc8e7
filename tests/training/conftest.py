"""A tiny Llama with a reference table of ten prompts, and a run of the trainer on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from facttune_ray.config import GroupsConfig, TrainConfig
from facttune_ray.quickstart import base_model
from facttune_ray.runtime import training
from facttune_ray.sampling.weights import load
from facttune_ray.storage import tables
from facttune_ray.training.batches import tokenize
from facttune_ray.training.engine import deepspeed_config
from facttune_ray.training.job import TrainJob
from facttune_ray.training.model import GroupModel
from facttune_ray.training.reference import token_logps_of

WORDS = "she was born in Lyon works as a baker plays the cello lives".split()
STEPS = {"lr": 1e-4, "warmup_steps": 2, "epochs": 2, "groups_per_step": 3}


def make_reference(folder: Path, seed: int = 0) -> tuple[str, str]:
    """(path of a reference table of 10 prompts, path of the random tiny Llama it is of)"""
    rng = random.Random(seed)
    drawn = ([" ".join(rng.choices(WORDS, k=8)) for _ in range(4)] for _ in range(10))
    texts = [list(dict.fromkeys(some)) for some in drawn]  # the same in every process
    base_model.pretrain(
        [t for some in texts for t in some], folder / "model", seed=seed, epochs=0, hidden=32
    )
    tokenizer, model = load(str(folder / "model"), "float32")
    groups = [tokenize(str(i), "Write.", t, tokenizer, TrainConfig()) for i, t in enumerate(texts)]
    logps = token_logps_of(GroupModel(model.eval()), groups, 8192)
    rows = [
        {
            "prompt_id": str(i),
            "topic": str(i),
            "split": "train",
            "response_ids": some,
            "rewards": [float(t.count("cello")) + k / 10 for k, t in enumerate(some)],
            "prompt_tokens": group.prompt,
            "response_tokens": group.responses,
            "logps": found,
            "pairs": 6,
        }
        for i, (some, group, found) in enumerate(zip(texts, groups, logps, strict=True))
    ]
    tables.write_part(tables.Folder.of(str(folder)), "reference", 0, rows, {})
    return str(folder / "part-00000.parquet"), str(folder / "model")


def job_of(reference: tuple[str, str], out: Path, sft=None, **settings) -> TrainJob:
    path, model = reference
    cfg = TrainConfig(**(STEPS | settings))
    out.mkdir(exist_ok=True)
    return TrainJob(
        rows=(path,),
        model=model,
        out=str(out),
        train=cfg,
        groups=GroupsConfig(),
        seed=0,
        deepspeed=deepspeed_config(cfg),
        sft=sft,
    )


def lines_of(out: Path, name: str = "train") -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return make_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def run():
    """run(reference, out, **settings) -> lines of train.jsonl"""

    def run(reference, out, **settings) -> list[dict]:
        training.train(job_of(reference, out, **settings))
        return lines_of(out)

    return run


@pytest.fixture(scope="session")
def one(reference, run, tmp_path_factory, ray_cluster):
    """(folder, lines) of a run of one worker"""
    out = tmp_path_factory.mktemp("one") / "out"
    return out, run(reference, out)


@pytest.fixture(scope="session")
def job():
    return job_of


@pytest.fixture(scope="session")
def lines():
    return lines_of
