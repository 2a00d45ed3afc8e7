"""Settings, optimizer and engine of a training job; the file runs itself as the workers' script."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import gloo
import pytest

from facttune_ray.config import GroupsConfig, TrainConfig, conf_dir
from facttune_ray.config.train import LoraConfig
from facttune_ray.errors import UserError
from facttune_ray.training import engine

SHIPPED = sorted(p.stem for p in (conf_dir() / "deepspeed").glob("*.json"))
ADAMW = {"optimizer": "adamw", "weight_decay": 0.1, "lr": 1e-3, "warmup_steps": 0, "clip": 0.5}
# what two steps of each are compared with: `plain`, in float32 all but rounding
ALIKE = {
    "recompute": {"recompute": True},
    "zero2_cpu": {"deepspeed": "zero2_cpu"},
    "zero3": {"deepspeed": "zero3"},
    "zero3 recompute": {"deepspeed": "zero3", "recompute": True},
    "zero3_cpu": {"deepspeed": "zero3_cpu"},
}
HALF = {
    "float16": {"dtype": "float16", "deepspeed": "zero1"},
    "float16 zero3": {"dtype": "float16", "deepspeed": "zero3"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16 zero1": {"dtype": "bfloat16", "deepspeed": "zero1"},
}
# two workers, each with a part of the weights: what they are compared with
LORA = {"lora": LoraConfig(rank=4), "lr": 1e-2}
PARTED = {"plain": {}, "lora": LORA, "bfloat16 zero1": {"dtype": "bfloat16"}}

# `rmsprop` would divide the decay by itself if it came before the first gradient
DECAYED = {"optimizer": "rmsprop", "lr": 1e-4, "weight_decay": 0.1, "dtype": "bfloat16"}
SAME_DECAY = {"decay zero0": {}, "decay zero1": {"deepspeed": "zero1"}}


# -- settings --------------------------------------------------------------------------------


def test_shipped_names():
    assert SHIPPED == ["zero0", "zero1", "zero2", "zero2_cpu", "zero3", "zero3_cpu", "zero3_nvme"]


@pytest.mark.parametrize("name", SHIPPED[1:])
def test_settings_of_the_run_are_filled_in(name):
    found = engine.deepspeed_config(
        TrainConfig(deepspeed=name, clip=2.5, dtype="float16", save_every=0)
    )
    assert found["zero_optimization"]["stage"] == int(name[4])
    assert found["gradient_clipping"] == 2.5
    assert (found["fp16"]["enabled"], found["bf16"]["enabled"]) == (True, False)


def test_own_file_by_path(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "zero_force_ds_cpu_optimizer": true}')
    found = engine.deepspeed_config(TrainConfig(deepspeed=str(file), dtype="bfloat16"))
    assert found["zero_optimization"] == {"stage": 1} and found["bf16"] == {"enabled": True}
    assert found["zero_force_ds_cpu_optimizer"] is False  # torch's optimizers would not run


@pytest.mark.parametrize(
    "text, says",
    [
        ("[1]", 'must be a JSON object like {"zero_optimization": {"stage": 2}}'),
        ('{"zero_optimization": 2}', "must be a JSON object"),
        ('{"zero_optimization": ', "not JSON: Expecting value: line 1"),
        ('{"optimizer": {"type": "Adam"}}', 'leave out "optimizer": train.optimizer decides it'),
        ('{"scheduler": {}}', 'leave out "scheduler": train.schedule decides it'),
        ('{"train_batch_size": 8}', 'leave out "train_batch_size": train.groups_per_step decides'),
        ('{"bf16": {"enabled": true}}', 'leave out "bf16": train.dtype decides it'),
        (
            '{"zero_optimization": {"stage": "3"}}',
            "zero_optimization.stage='3': must be 0, 1, 2 or",
        ),
        (
            '{"zero_optimization": {"offload_optimizer": "cpu"}}',
            "zero_optimization.offload_optimizer='cpu': must be an object",
        ),
    ],
)
def test_an_unusable_deepspeed_file_is_one_line(tmp_path, text, says):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        engine.deepspeed_config(TrainConfig(deepspeed=str(file)))
    line = str(raised.value)
    assert line.startswith(f"{file}: ") and says in line and "\n" not in line


def test_unknown_name_lists_the_names():
    with pytest.raises(UserError, match='"zero2_cup": no such file.*zero3_nvme.*mean "zero2_cpu"'):
        engine.deepspeed_config(TrainConfig(deepspeed="zero2_cup"))


def test_float16_needs_a_stage_that_scales_the_loss():
    with pytest.raises(UserError, match="zero0.json: .*float16 would vanish: .*deepspeed=zero1"):
        engine.deepspeed_config(TrainConfig(dtype="float16"))


def test_quantized_weights_are_not_partitioned():
    qlora = LoraConfig(rank=8, quantize="4bit")
    with pytest.raises(UserError, match="zero3.json: ZeRO 3 cannot partition .*=4bit: .*zero2"):
        engine.deepspeed_config(TrainConfig(deepspeed="zero3", lora=qlora))
    engine.deepspeed_config(TrainConfig(deepspeed="zero2", lora=qlora))


def test_states_on_nvme_are_not_checkpointed():
    for settings in ({}, {"save_every": 0, "best": "loss"}):
        with pytest.raises(UserError, match="states on NVMe cannot be checkpointed"):
            engine.deepspeed_config(TrainConfig(deepspeed="zero3_nvme", **settings))


# -- parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, factors",
    [
        ("constant", [0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rate(schedule, factors):
    cfg = TrainConfig(schedule=schedule, warmup_steps=2)
    found = [engine.learning_rate(cfg, step, 4) for step in range(4)]
    assert found == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_weight_decay_is_for_matrices(kind):
    import torch

    lm = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1))
    lm[2].weight.requires_grad_(False)
    cfg = TrainConfig(optimizer=kind, weight_decay=0.1, lr=0.02)
    made = engine.optimizer(cfg, lm)
    assert type(made).__name__.lower() == kind
    first, second = made.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in first["params"]] == [(2, 3)]
    assert [p.shape for p in second["params"]] == [(2,), (2,), (2,), (1,)]
    assert {g["lr"] for g in made.param_groups} == {0.02}


def test_group_without_parameters_is_left_out():
    """DeepSpeed would drop the group, and the schedule would count one group too many."""
    import torch

    made = engine.optimizer(TrainConfig(), torch.nn.Linear(3, 2, bias=False))
    assert len(made.param_groups) == 1


def llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=40,
        attention_dropout=0.5,
    )
    return LlamaForCausalLM(config)


def test_recompute_keeps_layers_inputs_alone():
    import torch

    from facttune_ray.training.model import GroupModel
    from facttune_ray.training.passes import lay_out

    def saved_bytes(lm) -> tuple[int, torch.Tensor]:
        """Of activations that the backward pass keeps, without layers' inputs."""
        weights = {p.untyped_storage().data_ptr() for p in lm.parameters()}
        kept = {}

        def keep(x):
            store = x.untyped_storage()
            if store.data_ptr() not in weights:
                kept[store.data_ptr()] = (store.nbytes(), x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            logps_M = model(passed)
        logps_M.sum().backward()
        return sum(size for size, _ in kept.values()), logps_M.detach()

    passed = lay_out([([1, 2, 3], [list(range(n, n + 9)) for n in range(6)])], share_prefix=True)
    lm = llama().eval()
    model = GroupModel(lm)
    plain, plain_M = saved_bytes(lm)
    plain_grads = [p.grad.clone() for p in lm.parameters()]
    lm.zero_grad()
    engine.recompute_layers(lm)
    again, again_M = saved_bytes(lm)
    inputs = 3 * len(passed.ids_N) * 16 * 4
    assert again + inputs < plain / 4
    assert torch.equal(plain_M, again_M)
    for before, p in zip(plain_grads, lm.parameters(), strict=True):
        assert torch.allclose(before, p.grad, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(passed), plain_M)


def test_a_model_whose_weights_are_partitioned_is_not_taken_for_one_that_cannot_share():
    from facttune_ray.training.model import GroupModel

    lm = llama().eval()
    assert GroupModel(lm).shares
    lm = llama().eval()
    lm.lm_head.weight.ds_id = 0  # as DeepSpeed marks it
    with pytest.raises(RuntimeError, match="has partitioned the weights"):
        GroupModel(lm)


def test_recompute_is_refused_for_a_model_without_such_layers():
    import torch

    with pytest.raises(UserError, match="^train.recompute: Linear has no layers that can be run"):
        engine.recompute_layers(torch.nn.Linear(2, 2))


class Processor:
    """The part of DeepSpeed's accelerator that the check uses."""

    def __init__(self, *dtypes: str) -> None:
        self.is_fp16_supported = lambda: "float16" in dtypes
        self.is_bf16_supported = lambda: "bfloat16" in dtypes

    def device_name(self) -> str:
        return "cpu"


def test_an_unsupported_precision_is_refused():
    engine._check_precision("float32", Processor())
    engine._check_precision("float16", Processor("float16"))
    with pytest.raises(UserError, match="train.dtype=float16: cpu of this .* it: set bfloat16"):
        engine._check_precision("float16", Processor("bfloat16"))
    with pytest.raises(UserError, match="train.dtype=bfloat16: .* it: set float32"):
        engine._check_precision("bfloat16", Processor())


# -- engines ---------------------------------------------------------------------------------


def settings(**more) -> TrainConfig:
    return TrainConfig(**(ADAMW | more))


def launch(folder: Path, model: str, jobs: dict[str, TrainConfig], workers: int) -> dict:
    """Name of a job -> the results of its two steps, or its error; all in the same processes."""
    folder.mkdir()
    (folder / "jobs.pickle").write_bytes(pickle.dumps((model, jobs)))
    with gloo.workers(__file__, folder, workers) as ranks:
        gloo.wait(ranks, timeout_s=300)
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def seen(reference, tmp_path_factory):
    """The results of one worker."""
    at = tmp_path_factory.mktemp("engine")
    wrong = at / "wrong.json"
    wrong.write_text('{"zero_optimization": {"reduce_bucket_size": -1}}')
    jobs = {"plain": settings(), "lora": settings(**LORA)}
    jobs |= {name: settings(**more) for name, more in (ALIKE | HALF).items()}
    jobs |= {name: settings(**(DECAYED | more)) for name, more in SAME_DECAY.items()}
    jobs |= {"wrong": settings(deepspeed=str(wrong))}
    jobs["nvme"] = settings(deepspeed="zero3_nvme", save_every=0)
    return launch(at / "one", reference[1], jobs, 1)


@pytest.fixture(scope="module")
def parted(reference, tmp_path_factory):
    """The results of two workers with ZeRO 3."""
    jobs = {name: settings(deepspeed="zero3", **more) for name, more in PARTED.items()}
    return launch(tmp_path_factory.mktemp("engine") / "two", reference[1], jobs, 2)


def run(model: str, out: Path, cfg: TrainConfig) -> dict:
    """Two steps on two groups. -> losses, gradients of the first step, weights after both"""
    import torch
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_grad

    from facttune_ray.training.batches import TokenGroup
    from facttune_ray.training.job import TrainJob
    from facttune_ray.training.step import Objective, Step, pair_weights

    ids = [[5, 9, 13, 2], [7, 6, 2], [11, 5, 8, 9, 2]]
    groups = [
        TokenGroup("a", [3, 4, 5], ids, [(0, 1), (0, 2), (1, 2)], [1.0] * 3),
        TokenGroup("b", [6, 4], ids[::-1], [(0, 2), (1, 2)], [1.0] * 2),
    ]
    references = [[[-4.0 - i / 10 for i in range(len(r))] for r in g.responses] for g in groups]
    try:
        job = TrainJob((), model, str(out), cfg, GroupsConfig(), 0, engine.deepspeed_config(cfg))
        _, made, group_model = engine.build(job, 10, torch.device("cpu"))
    except UserError as e:
        return {"error": str(e)}
    found: dict = {"losses": [], "wrapper": type(made.optimizer).__name__}
    for _ in range(2):
        step = Step(groups, references, pair_weights(groups, "pair"), Objective("dpo", 0.5))
        made.set_gradient_accumulation_boundary(True)
        made.backward(step.loss(made, 0))
        if "grads" not in found:
            trained = [p for p in group_model.parameters() if p.requires_grad]
            grads = (safe_get_full_grad(p) for p in trained)
            found["grads"] = torch.cat([g.flatten() for g in grads]).tolist()
        made.step()
        found["losses"].append(step.figures()["loss"])
    with zero.GatheredParameters(list(group_model.parameters())):
        weights = torch.cat([p.flatten().float() for p in group_model.parameters()])
        found["weights"] = weights.tolist()
    found["shares"] = group_model.shares
    found["training"] = any(m.training for m in made.module.modules())
    found["skipped"] = made.skipped_steps
    return found


@pytest.mark.parametrize("name", ALIKE)
def test_offload_and_recompute_give_the_same_steps(seen, name):
    for key in ("losses", "grads"):
        assert seen[name][key] == pytest.approx(seen["plain"][key], abs=1e-6), key
    # AdamW makes much of a gradient's rounding
    assert seen[name]["weights"] == pytest.approx(seen["plain"]["weights"], abs=1e-5)
    assert not seen[name]["training"]


@pytest.mark.parametrize("name", PARTED)
def test_workers_that_hold_parts_of_the_weights_take_the_same_steps(seen, parted, name):
    if "cannot compute it" in parted[name].get("error", ""):
        pytest.skip(f"a processor without {name}")
    for key in ("losses", "grads"):
        assert parted[name][key] == pytest.approx(seen[name][key], abs=1e-6), key
    assert parted[name]["weights"] == pytest.approx(seen[name]["weights"], abs=1e-5)
    assert parted[name]["shares"] is True


def test_plain_steps_change_the_weights(seen):
    plain = seen["plain"]
    assert plain["losses"][1] < plain["losses"][0] - 1e-4
    assert max(map(abs, plain["grads"])) > 1e-3


@pytest.mark.parametrize("name", HALF)
def test_half_precision(seen, name):
    if "cannot compute it" in seen[name].get("error", ""):
        pytest.skip(f"a processor without {name}")
    assert seen[name]["losses"] == pytest.approx(seen["plain"]["losses"], abs=0.02)
    assert seen[name]["skipped"] == 0


def test_the_extra_step_of_deepspeed_is_undone(seen):
    """DeepSpeed's ZeRO 0 in bfloat16 takes an extra step, which `build` undoes."""
    for one, other in (("bfloat16", "bfloat16 zero1"), tuple(SAME_DECAY)):
        assert seen[one]["losses"] == pytest.approx(seen[other]["losses"], abs=1e-6)
        assert seen[one]["weights"] == pytest.approx(seen[other]["weights"], abs=1e-6)


def test_settings_that_deepspeed_refuses(seen):
    line = seen["wrong"]["error"]
    assert "wrong.json: DeepSpeed refuses it: " in line and "\n" not in line


def test_a_missing_nvme_folder_is_refused(seen):
    assert "offload_param.nvme_path=/local_nvme is no folder" in seen["nvme"]["error"]


def worker(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, jobs = pickle.loads((folder / "jobs.pickle").read_bytes())
    found = {name: run(model, folder, cfg) for name, cfg in jobs.items()}
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
