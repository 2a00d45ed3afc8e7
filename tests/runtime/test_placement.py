import pytest

from facttune_ray import config
from facttune_ray.runtime.placement import gpus_of, options, place
from facttune_ray.stages.work import Work

HEAD = {"Alive": True, "Resources": {"node:__internal_head__": 1.0, "memory": 1e9}}
CPUS = {"Alive": True, "Resources": {"CPU": 8.0}}
L4 = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "accelerator_type:L4": 1.0}}
H100 = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
CLUSTER = [HEAD, CPUS, CPUS, L4, L4, H100, DEAD]


def test_stages_without_a_gpu_count_the_hosts_without_one():
    assert place(CLUSTER, 0.0, "") == 16
    assert place([HEAD, L4, H100], 0.0, "") == 20  # there are no others
    assert place([HEAD], 0.0, "") == 1  # an autoscaler starts what one worker asks for


def test_gpu_stages_count_the_gpus_of_their_kind():
    assert place(CLUSTER, 1.0, "") == 10
    assert place(CLUSTER, 1.0, "L4") == 2
    assert place(CLUSTER, 0.5, "L4") == 4
    assert place(CLUSTER, 2.0, "L4") == 0  # no L4 host has two
    assert place(CLUSTER, 1.0, "A100") == 0


def test_options_name_the_kind():
    assert options(0.0, "L4", False) == {"num_cpus": 1}
    assert options(0.5, "", False) == {"num_gpus": 0.5, "num_cpus": 0}
    assert options(1.0, "L4", False) == {"num_gpus": 1.0, "num_cpus": 0, "accelerator_type": "L4"}


@pytest.mark.parametrize("hosts", [[CPUS], CLUSTER, [{"Alive": True, "Resources": {"CPU": 1.0}}]])
def test_a_stage_that_asks_leaves_room_for_another(hosts):
    """With as many workers as `place` gives it: what it samples is judged while it samples."""
    each = options(0.0, "", True)["num_cpus"]
    cpus = sum(h["Resources"].get("CPU", 0) for h in hosts if h["Alive"])
    assert place(hosts, 0.0, "") * each <= cpus - each


def gpus(stage, *overrides, base_url=""):
    cfg = config.load([], list(overrides))
    return gpus_of(Work(stage, stage, {}, cfg, base_url=base_url))[0]


@pytest.mark.parametrize("stage", ["responses", "answers", "entities", "p_true"])
def test_sampling_stages_take_the_engines_gpus(stage):
    assert gpus(stage) == 0
    assert gpus(stage, "sampling.gpus=0.5") == 0.5
    assert gpus(stage, "sampling.gpus=1", base_url="http://host/v1") == 0  # others' GPUs


def test_vllm_takes_as_many_gpus_as_hold_the_model():
    vllm = ["sampling.engine=vllm", "sampling.gpus=1", "sampling.tensor_parallel=4"]
    assert gpus("answers", *vllm) == 4
    assert gpus("p_true", *vllm) == 1
    assert gpus("questions", *vllm) == 0
    assert gpus("classes", "classes.gpus=1", *vllm) == 1


def test_kinds_of_gpus_are_named_where_gpus_are():
    cfg = config.load([], ["train.gpus=1", "train.accelerator=H100", "sampling.accelerator=L4"])
    assert gpus_of(Work("reference", "reference", {}, cfg)) == (1.0, "H100")
    assert gpus_of(Work("answers", "answers", {}, cfg)) == (0.0, "L4")
    assert gpus_of(Work("facts", "facts", {}, cfg)) == (0.0, "")
