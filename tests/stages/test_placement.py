from facttune_ray.stages.placement import options, place

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
    assert options(0.0, "L4") == {"num_cpus": 1}
    assert options(0.5, "") == {"num_gpus": 0.5, "num_cpus": 0}
    assert options(1.0, "L4") == {"num_gpus": 1.0, "num_cpus": 0, "accelerator_type": "L4"}
