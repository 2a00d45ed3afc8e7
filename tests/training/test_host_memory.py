"""Memory of a host whose workers load a model for ZeRO 3; the file runs itself as the workers'
script."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import gloo
import psutil
import pytest

from facttune_ray.config import GroupsConfig, TrainConfig
from facttune_ray.training import engine

MB = 10**6
WORKERS = 4


def write_model(folder: Path, stored: str) -> None:
    """A random Llama of 50 million weights: 200 MB in float32, 100 MB in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from facttune_ray.quickstart.base_model import train_tokenizer

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=13,
        num_attention_heads=8,
        vocab_size=8000,
    )
    lm = LlamaForCausalLM(config)
    assert sum(p.nbytes for p in lm.parameters()) == pytest.approx(200 * MB, rel=0.01)
    lm.to(getattr(torch, stored)).save_pretrained(folder)
    train_tokenizer(["she plays the cello"], 300, 512).save_pretrained(folder)


def shared_out(workers: list[subprocess.Popen]) -> int:
    """Bytes in memory of all workers together; a page that n of them share counts 1/n for each."""
    return sum(psutil.Process(w.pid).memory_full_info().pss for w in workers)


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_host_holds_one_copy_beside_the_workers_parts(tmp_path, stored):
    """The parts of all workers are one copy. The other is the file's pages if the weights are
    stored in `train.dtype`, and otherwise the memory of the worker that converts them."""
    write_model(tmp_path / "model", stored)
    with gloo.workers(__file__, tmp_path, WORKERS) as workers:

        def wait_for(name: str, pause: float) -> int:
            """The most bytes in memory until every worker has written its file `name`, looked at
            with a pause in between."""
            most = 0
            while len(list(tmp_path.glob(f"{name}-*"))) < WORKERS:
                if failed := [w for w in workers if w.poll()]:
                    pytest.fail(failed[0].communicate()[1][-3000:])
                most = max(most, shared_out(workers))
                time.sleep(pause)
            return most

        wait_for("imported", 0.5)
        before = shared_out(workers)
        (tmp_path / "go").touch()
        grown = wait_for("loaded", 0.01) - before
    print(f"{grown / MB:.0f} MB for {WORKERS} workers, stored as {stored}")
    assert 200 * MB < grown < 600 * MB  # with a copy in every worker: over 750 MB


def worker(folder: Path) -> None:
    """Load the model for ZeRO 3, and wait in the place of DeepSpeed's engine."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401  imported by loading

    from facttune_ray.training import model  # noqa: F401  imported by `build`
    from facttune_ray.training.job import TrainJob

    def wait(**_) -> None:
        dist.barrier()
        (folder / f"loaded-{dist.get_rank()}").touch()
        time.sleep(600)

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    deepspeed.initialize = wait
    cfg = TrainConfig(deepspeed="zero3")
    job = TrainJob(
        (), str(folder / "model"), str(folder), cfg, GroupsConfig(), 0, engine.deepspeed_config(cfg)
    )
    (folder / f"imported-{dist.get_rank()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    engine.build(job, 10, torch.device("cpu"))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
