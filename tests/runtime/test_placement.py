import pytest

from facttune_ray import config
from facttune_ray.config import EndpointConfig, LLMConfig
from facttune_ray.runtime.placement import (
    ACTOR_SHARDS,
    ASKS,
    AT_FIRST,
    Operator,
    Place,
    compute,
    operators,
    place_of,
    pools,
    room,
    scorers,
)
from facttune_ray.stages.work import Work

HEAD = {"Alive": True, "Resources": {"node:__internal_head__": 1.0, "memory": 1e9}}
CPUS = {"Alive": True, "Resources": {"CPU": 8.0}}
L4 = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "accelerator_type:L4": 1.0}}
H100 = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
CLUSTER = [HEAD, CPUS, CPUS, L4, L4, H100, DEAD]


def test_stages_without_a_gpu_count_the_hosts_without_one():
    assert room(CLUSTER, 0.0, "") == 16
    assert room([HEAD, L4, H100], 0.0, "") == 20  # there are no others
    assert room([HEAD], 0.0, "") == 0  # an autoscaler starts what a worker asks for


def test_gpu_stages_count_the_gpus_of_their_kind():
    assert room(CLUSTER, 1.0, "") == 10
    assert room(CLUSTER, 1.0, "L4") == 2
    assert room(CLUSTER, 0.5, "L4") == 4
    assert room(CLUSTER, 2.0, "L4") == 0  # no L4 host has two
    assert room(CLUSTER, 1.0, "A100") == 0


def test_options_name_the_kind():
    assert Place().options == {"num_cpus": 1}
    assert Place(asks=True).options == {"num_cpus": ASKS}
    assert Place(gpus=0.5).options == {"num_gpus": 0.5, "num_cpus": 0}
    kind = {"num_gpus": 1.0, "num_cpus": 0, "accelerator_type": "L4"}
    assert Place(gpus=1.0, accelerator="L4").options == kind


def gpus(stage, *overrides, base_url=""):
    cfg = config.load([], list(overrides))
    return place_of(Work(stage, stage, {}, cfg, base_url=base_url)).gpus


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
    assert gpus("answers", "sampling.engine=vllm") == 0  # vLLM's build for CPUs


def test_kinds_of_gpus_are_named_where_gpus_are():
    kinds = ["train.accelerator=H100", "sampling.accelerator=L4", "classes.accelerator=T4"]
    cfg = config.load([], ["train.gpus=1", "sampling.gpus=2", *kinds])
    found = [place_of(Work(s, s, {}, cfg)) for s in ("reference", "answers", "classes", "facts")]
    named = [(p.gpus, p.accelerator) for p in found]
    assert named == [(1.0, "H100"), (2.0, "L4"), (0.0, ""), (0.0, "")]


def scope(*overrides: str, url: str = "http://judge/v1") -> list[Work]:
    """The tables that score a model's responses, as the loop asks for them."""
    cfg = config.load([], list(overrides))
    asks = {"facts", "verdicts", "questions", "classes"}
    inputs = {
        "responses": ["prompts"],
        "facts": ["responses"],
        "verdicts": ["facts"],
        "questions": ["facts"],
        "answers": ["questions"],
        "entities": ["responses"],
        "classes": ["answers", "entities"],
        "p_true": ["facts"],
        "rewards": ["verdicts", "classes", "p_true"],
    }
    return [
        Work(
            name,
            name,
            {i: i for i in read},
            cfg,
            base_url=url if name in asks else "",
            model_path="m",
        )
        for name, read in inputs.items()
    ]


def names(found: list[Operator]) -> list[list[str]]:
    return [[work.stage for work in operator.works] for operator in found]


def test_tables_of_one_resource_are_one_operator_and_come_after_their_inputs():
    found = operators(scope("sampling.gpus=1"))
    assert names(found) == [
        ["responses", "entities"],  # one model in one actor
        ["facts", "verdicts", "questions"],
        ["answers"],
        ["classes"],
        ["p_true"],  # another way to hold the model: in an actor of its own
        ["rewards"],
    ]
    assert [operator.place.gpus for operator in found] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert found[1].name == "facts+verdicts+questions"


def test_a_pipeline_of_the_tables_that_are_missing_reads_the_others_from_disk():
    works = [work for work in scope() if work.stage in ("verdicts", "rewards")]
    assert names(operators(works)) == [["verdicts"], ["rewards"]]


def test_no_more_scorers_are_asked_for_than_the_endpoints_limit_can_feed():
    assert scorers(LLMConfig()) == float("inf")
    assert scorers(LLMConfig(requests_per_minute=60)) == 1
    assert scorers(LLMConfig(requests_per_minute=12_000)) == 10
    two = [EndpointConfig("http://a/v1", requests_per_minute=6000), EndpointConfig("http://b/v1")]
    assert scorers(LLMConfig(endpoints=two, requests_per_minute=1200)) == 6
    assert scorers(LLMConfig(endpoints=two)) == float("inf")


def test_pools_are_used_on_clusters_and_with_gpus_and_leave_room_for_a_task():
    plain, gpu = operators(scope()), operators(scope("sampling.gpus=1"))
    assert pools(plain, CLUSTER, grows=True) and not pools(plain, CLUSTER, grows=False)
    assert pools(gpu, CLUSTER, grows=False)
    assert pools(plain, [HEAD], grows=True)  # hosts are still to come
    one = {"Alive": True, "Resources": {"CPU": 1.0}}
    assert not pools(plain, [one, one], grows=True)  # two pools would leave no whole CPU
    assert pools(plain, [one, one, one], grows=True)


def pool(stage: str, shards: int, *overrides: str, nodes=CLUSTER, first=True):
    found = {o.works[0].stage: o for o in operators(scope(*overrides))}
    how = compute(found[stage], shards, nodes, pooled=True, first=first, grows=True)
    return how["compute"]


def test_a_pool_grows_to_the_shards_the_limit_and_the_users_cap():
    few = pool("facts", 8)
    assert (few.min_size, few.max_size, few.initial_size) == (1, 8, 8)
    assert few.max_tasks_in_flight_per_actor == 1  # so that each host gets shards
    many = pool("facts", 400, first=False)
    assert many.max_tasks_in_flight_per_actor == ACTOR_SHARDS
    assert (many.max_size, many.initial_size) == (25, 1)
    assert pool("facts", 400, "llm.requests_per_minute=2400").max_size == 2
    assert pool("facts", 400, "run.workers=3").max_size == 3
    assert pool("responses", 400, "sampling.gpus=1").initial_size == 10
    assert pool("responses", 400, "sampling.gpus=1", nodes=[HEAD]).initial_size == AT_FIRST


def test_on_one_machine_a_task_that_asks_has_all_shards_of_a_worker():
    found = {o.works[0].stage: o for o in operators(scope())}
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}]
    how = compute(found["facts"], 7, nodes, pooled=False, first=False, grows=False)
    assert (how["batch_size"], how["compute"].size) == (4, 2)
    how = compute(found["responses"], 7, nodes, pooled=False, first=True, grows=False)
    assert (how["batch_size"], how["compute"].size) == (1, 2)
    how = compute(found["responses"], 7, nodes, pooled=True, first=True, grows=True)
    assert how["compute"].size == 7  # tasks use every host that joins
