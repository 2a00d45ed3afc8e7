"""Checkpoints of DeepSpeed engines: the file runs itself as the workers' script."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import gloo
import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.training import checkpoint

BATCH = 4


def launch(jobs: list[dict], workers: int, folder: Path) -> list[dict]:
    """Run the jobs one after the other on gloo workers. -> what the first worker saw of each"""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with gloo.workers(__file__, folder, workers, DS_ACCELERATOR="cpu") as ranks:
        gloo.wait(ranks, timeout_s=240)
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(len(jobs))]


def worker(folder: Path) -> None:
    import deepspeed
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    rank = dist.get_rank()
    for n, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        seen = run(job, rank, dist.get_world_size())
        if rank == 0:
            (folder / f"{n}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def run(job: dict, rank: int, world: int) -> dict:
    """Build an engine, load, train steps first..last, save. -> losses, weights, state, error"""
    import deepspeed
    import torch
    import torch.distributed as dist

    torch.manual_seed(9)
    frozen = torch.nn.Linear(6, 6).requires_grad_(False)
    torch.manual_seed(job.get("seed", 0))
    # 7 and 5: the parts of no worker are equal, so every stage pads somewhere
    width = job.get("width", 7)
    model = torch.nn.Sequential(
        frozen, torch.nn.Linear(6, width), torch.nn.Tanh(), torch.nn.Linear(width, 5)
    )
    if job.get("deeper"):
        model.insert(3, torch.nn.Tanh())
    kind = {
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
        "centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }[job.get("optimizer", "adamw")]
    optimizer = kind(
        [
            {"params": list(model[1].parameters())},
            {"params": list(model[-1].parameters()), "weight_decay": 0.1},
        ]
    )
    offload = {"offload_optimizer": {"device": "cpu"}} if job.get("offload") else {}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step),
        config={
            "train_micro_batch_size_per_gpu": BATCH // world,
            "gradient_clipping": 0.5,
            "bf16": {"enabled": job.get("dtype") == "bfloat16"},
            "fp16": {"enabled": job.get("dtype") == "float16"} | job.get("scale", {}),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": job["zero"],
                "stage3_param_persistence_threshold": job.get("persist", 0),
            }
            | offload,
            **({"data_types": {"grad_accum_dtype": job["grads"]}} if "grads" in job else {}),
            "steps_per_print": 1000000,
        },
    )
    seen: dict = {"wrapper": type(engine.optimizer).__name__}
    if "file" in job and rank == world - 1:  # where this worker cannot make a folder
        job = job | {"save": f"{job['file']}/below"}
    try:
        for n in range(job.get("stray", 0)):
            step(engine, 90 + n, rank, world)
        if "load" in job:
            seen["state"] = checkpoint.load(engine, job["load"])
        seen["counted"] = engine.global_steps
        seen["losses"] = [step(engine, n, rank, world) for n in range(*job["steps"])]
        seen["skipped"] = engine.skipped_steps
        if "scale" in job:
            seen["scale"] = engine.optimizer.loss_scale
        if "save" in job:
            checkpoint.save(engine, job["save"], {"step": job["steps"][1], "best": 0.25})
    except UserError as e:
        seen["error"] = str(e)
        said: list = [None] * world
        dist.all_gather_object(said, str(e))  # hangs unless all workers raised
        seen["same"] = len(set(said)) == 1
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        seen["weights"] = [w for p in engine.module.parameters() for w in p.flatten().tolist()]
    return seen


def step(engine, number: int, rank: int, world: int) -> float:
    """One optimizer step on this worker's share of the step's batch. -> mean loss over all"""
    import torch
    import torch.distributed as dist

    random = torch.Generator().manual_seed(number)
    inputs, targets = (torch.randn(BATCH, n, generator=random)[rank::world] for n in (6, 5))
    dtype = next(engine.module.parameters()).dtype
    loss = (engine(inputs.to(dtype)).float() - targets).square().mean()
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone() / world
    dist.all_reduce(mean)
    return float(mean)


def check_resumed(straight: dict, half: dict, resumed: dict) -> None:
    assert half["losses"] == pytest.approx(straight["losses"][:2], abs=1e-6)
    assert resumed["losses"] == pytest.approx(straight["losses"][2:], abs=1e-6)
    assert resumed["weights"] == pytest.approx(straight["weights"], abs=1e-6)
    assert (resumed["state"], resumed["counted"]) == ({"step": 2, "best": 0.25}, 2)
    assert straight["losses"][2] != pytest.approx(half["losses"][0], abs=1e-3)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(folder, results) of a worker that resumed ZeRO 0 and 3, and met engines of other kinds."""
    at = tmp_path_factory.mktemp("one")
    z0, z3 = str(at / "z0"), str(at / "z3")
    jobs = {
        "straight": {"zero": 0, "steps": [0, 4]},
        "half z0": {"zero": 0, "steps": [0, 2], "save": z0},
        "half z3": {"zero": 3, "steps": [0, 2], "save": z3},
        "z0 z0": {"zero": 0, "steps": [2, 4], "load": z0, "seed": 1},
        "z3 z3": {"zero": 3, "steps": [2, 4], "load": z3, "seed": 1},
        "z3 z0": {"zero": 0, "steps": [2, 4], "load": z3, "seed": 1},
        "new": {"zero": 2, "steps": [0, 0], "save": str(at / "new")},
        "from new": {"zero": 2, "steps": [0, 2], "load": str(at / "new"), "seed": 1},
        "width": {"zero": 0, "steps": [2, 3], "load": z0, "width": 8},
        "untouched": {"zero": 0, "steps": [0, 0]},
        "deeper": {"zero": 0, "steps": [2, 3], "load": z0, "deeper": True},
        "kind": {"zero": 0, "steps": [2, 3], "load": z0, "optimizer": "rmsprop"},
        "rms": {"zero": 0, "steps": [0, 1], "save": str(at / "rms"), "optimizer": "rmsprop"},
        "flag": {"zero": 0, "steps": [1, 2], "load": str(at / "rms"), "optimizer": "centered"},
        "none": {"zero": 0, "steps": [2, 3], "load": str(at / "nothing")},
    }
    seen = launch(list(jobs.values()), 1, at)
    return at, dict(zip(jobs, seen, strict=True))


def test_resumed_by_one_worker_goes_on_as_if_never_stopped(one):
    _, seen = one
    for half, resumed in [("half z0", "z0 z0"), ("half z3", "z3 z3"), ("half z3", "z3 z0")]:
        check_resumed(seen["straight"], seen[half], seen[resumed])


def test_saved_before_the_first_step(one):
    _, seen = one
    assert seen["from new"]["losses"] == pytest.approx(seen["straight"]["losses"][:2], abs=1e-6)


@pytest.mark.parametrize(
    "job, says",
    [
        ("width", ': of another model: "1.weight" is [7, 6] there and [8, 6] here: start again'),
        ("deeper", ': of another model: "3.weight" is [5, 7] there and missing here: start again'),
        ("kind", ": of the optimizer AdamW, this run has RMSprop: set train.optimizer back"),
        ("flag", ": of the optimizer RMSprop, this run has RMSprop centered: set train.optimizer"),
        ("none", ": no checkpoint: checkpoint.json is missing"),
    ],
)
def test_engine_of_another_kind_is_refused_and_left_as_it_was(one, job, says):
    at, seen = one
    assert seen[job]["error"].startswith(f"{at}/") and says in seen[job]["error"]
    assert "\n" not in seen[job]["error"]
    if job == "kind":
        assert seen[job]["weights"] == seen["untouched"]["weights"]


def test_file_holds_each_element_once(one):
    from safetensors import safe_open

    at, _ = one
    with safe_open(at / "z0" / "00000-of-00001.safetensors", framework="pt") as file:
        sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    assert sizes["weight|0|1.weight"] == sizes["exp_avg_sq|0|1.weight"] == [42]
    assert len(sizes) == 3 * 4  # weight and two states; no frozen parameter
    index = json.loads((at / "z0" / "checkpoint.json").read_text())
    assert index["steps"] == 2.0 and index["groups"][1]["lr"] == pytest.approx(1e-3 * 0.7**2)


def damaged(folder: Path, to: Path, damage) -> str:
    shutil.copytree(folder, to)
    damage(to, sorted(to.glob("*.safetensors"))[-1])
    return str(to)


def unlist(folder: Path, file: Path) -> None:
    index = json.loads((folder / "checkpoint.json").read_text())
    del index["files"][file.name]
    (folder / "checkpoint.json").write_text(json.dumps(index))


DAMAGES = {
    "missing": lambda folder, file: file.unlink(),
    "torn": lambda folder, file: file.write_bytes(file.read_bytes()[:-9]),
    "garbage": lambda folder, file: file.write_bytes(bytes(file.stat().st_size)),
    "unlisted": unlist,
    "index": lambda folder, file: (folder / "checkpoint.json").write_text('{"format"'),
    "format": lambda folder, file: (folder / "checkpoint.json").write_text('{"format": 0}'),
}
SAYS = {
    "missing": "/00001-of-00002.safetensors is missing: take another checkpoint",
    "torn": "bytes of ",
    "garbage": "/00001-of-00002.safetensors is torn: ",
    "unlisted": "take another checkpoint",
    "index": "/checkpoint.json: not the index of a checkpoint: ",
    "format": "/checkpoint.json: format 0, this version reads 1",
}
# a loss scale that overflows at the first step and grows after two that did not
SCALE = {"initial_scale_power": 17, "hysteresis": 1, "loss_scale_window": 2}
# what an engine is, and the job it is compared with
KINDS = {
    "z0": {"zero": 0},
    "z1": {"zero": 1},
    "z2": {"zero": 2},
    "z3": {"zero": 3},
    "z3 persistent": {"zero": 3, "persist": 1000},
    "z2 offloaded": {"zero": 2, "offload": True},
    "z3 offloaded": {"zero": 3, "offload": True},
    "z1 centered": {"zero": 1, "optimizer": "centered"},
    "z3 centered": {"zero": 3, "optimizer": "centered"},
    "z0 bf16": {"zero": 0, "dtype": "bfloat16"},
    "z1 bf16": {"zero": 1, "dtype": "bfloat16"},
    "z1 bf16 fp32 gradients": {"zero": 1, "dtype": "bfloat16", "grads": "fp32"},
    "z2 bf16": {"zero": 2, "dtype": "bfloat16"},
    "z3 bf16": {"zero": 3, "dtype": "bfloat16"},
}
if torch.ops.mkldnn._is_mkldnn_fp16_supported():  # DeepSpeed asks the same of a CPU
    KINDS |= {f"z{z} fp16": {"zero": z, "dtype": "float16", "scale": SCALE} for z in (1, 2, 3)}
# saved by two workers, resumed by one; then saved by one, resumed by two
TO_ONE = {"z0": "z2", "z1": "z1", "z2": "z0", "z3": "z3", "z3 centered": "z1 centered"}
TO_TWO = {"z0": "z3", "z1": "z1", "z2": "z3", "z3": "z2", "z1 centered": "z3 centered"}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(workers, kind, kind it was saved as or None) -> what was seen; with the damaged folders."""
    at = tmp_path_factory.mktemp("many")
    seen = {}

    def go(workers: int, jobs: dict) -> None:
        done = launch(list(jobs.values()), workers, at / str(len(seen)))
        seen.update(zip(jobs, done, strict=True))

    def resume(workers: int, kind: str, of: str, by: int) -> dict:
        made = {"steps": [2, 4], "load": str(at / f"{by} {of}"), "seed": 1}
        return {(workers, kind, of): KINDS[kind] | made}

    jobs: dict = {}
    for name, kind in KINDS.items():
        jobs[2, name, "straight"] = kind | {"steps": [0, 4]}
        jobs[2, name, "half"] = kind | {"steps": [0, 2], "save": str(at / f"2 {name}")}
        jobs |= resume(2, name, name, 2)
        stray = {"steps": [2, 4], "load": str(at / f"2 {name}"), "stray": 2}
        jobs[2, name, "stray"] = kind | stray
    jobs |= resume(2, "z1", "z3", 2)
    (at / "file").write_text("")
    jobs["unwritable"] = {
        "zero": 1,
        "steps": [0, 1],
        "save": str(at / "f"),
        "file": str(at / "file"),
    }
    go(2, jobs)
    jobs = {}
    for name in TO_TWO:
        jobs[1, name, "half"] = KINDS[name] | {"steps": [0, 2], "save": str(at / f"1 {name}")}
    for of, kind in TO_ONE.items():
        jobs |= resume(1, kind, of, 2)
    go(1, jobs)
    jobs = {}
    for of, kind in TO_TWO.items():
        jobs |= {("to two", *key[1:]): job for key, job in resume(2, kind, of, 1).items()}
    for name, damage in DAMAGES.items():
        folder = damaged(at / "2 z1", at / name, damage)
        jobs[name] = {"zero": 1, "steps": [2, 3], "load": folder}
    go(2, jobs)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_by_as_many_workers(many, kind):
    check_resumed(many[2, kind, "straight"], many[2, kind, "half"], many[2, kind, kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_engine_that_had_stepped_elsewhere_goes_back(many, kind):
    check_resumed(many[2, kind, "straight"], many[2, kind, "half"], many[2, kind, "stray"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if "fp16" in k])
def test_loss_scale_goes_on(many, kind):
    half, resumed = many[2, kind, "half"], many[2, kind, kind]
    assert (half["scale"], half["skipped"]) == (2**16, 1)
    assert (resumed["scale"], resumed["skipped"]) == (2**17, 1)


@pytest.mark.slow
def test_kinds_are_those_that_deepspeed_wraps_differently(many):
    wrappers = {kind: many[2, kind, "half"]["wrapper"] for kind in KINDS}
    assert wrappers["z0"] == "AdamW"
    assert wrappers["z0 bf16"] == "FP16_UnfusedOptimizer"
    assert wrappers["z1 bf16"] == wrappers["z2 offloaded"] == "DeepSpeedZeroOptimizer"
    assert wrappers["z1 bf16 fp32 gradients"] == "BF16_Optimizer"
    assert wrappers["z3 bf16"] == "DeepSpeedZeroOptimizer_Stage3"


@pytest.mark.slow
def test_resumed_by_another_stage(many):
    check_resumed(many[2, "z3", "straight"], many[2, "z3", "half"], many[2, "z1", "z3"])


@pytest.mark.slow
@pytest.mark.parametrize("of", TO_ONE)
def test_two_workers_to_one(many, of):
    check_resumed(many[2, of, "straight"], many[2, of, "half"], many[1, TO_ONE[of], of])


@pytest.mark.slow
@pytest.mark.parametrize("of", TO_TWO)
def test_one_worker_to_two(many, of):
    check_resumed(many[2, of, "straight"], many[1, of, "half"], many["to two", TO_TWO[of], of])


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_on_every_worker(many, damage):
    assert SAYS[damage] in many[damage]["error"] and "\n" not in many[damage]["error"]
    assert many[damage]["same"]


@pytest.mark.slow
def test_worker_that_cannot_write_stops_all(many):
    assert many["unwritable"]["same"]
    assert "the checkpoint cannot be written: [Errno 20]" in many["unwritable"]["error"]


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
