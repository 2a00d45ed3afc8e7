"""The scale benchmark: its world, how it reads processes, and its model."""

import json

import pytest
from bench import scale, scale_model

from facttune_ray.sources.world import ATTRIBUTES


def test_no_two_people_have_the_same_name():
    assert len({scale.name_of(n) for n in range(20_000)}) == 20_000


def test_a_larger_world_begins_with_the_smaller_one():
    few, many = list(scale.people(3)), list(scale.people(5))
    assert many[:3] == few
    for name, true, said in many:
        assert len(true) == len(ATTRIBUTES) and len(said) == scale.RESPONSES
        assert all(text.startswith(name) for text in said) and len(set(said)) == len(said)


def test_files_are_written_once(tmp_path):
    scale.write(tmp_path, 4)
    rows = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * scale.RESPONSES and rows[0]["topic"] == scale.name_of(0)
    before = (tmp_path / "people.jsonl").stat().st_mtime_ns
    scale.write(tmp_path, 4)
    assert (tmp_path / "people.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("python\0jobs/pipeline.py\0/tmp/preset.yaml", "driver"),
        ("ray::JobSupervisor jobs/pipeline.py", "ray"),
        ("ray::MapBatches(run_shards)", "worker"),
        ("ray::IDLE", "worker"),
        ("ray::RayTrainWorker.run", "trainer"),
        ("ray::LimiterActor", "limiter"),
        ("/venv/ray/core/src/ray/gcs/gcs_server", "ray"),
        ("sleep 5", ""),
    ],
)
def test_kinds_of_processes(title, kind):
    assert scale.kind_of(title) == kind


def run(prompts, wall_s, cpu_s, peak):
    return {
        "prompts": prompts,
        "wall_s": wall_s,
        "requests": 4 * prompts,
        "cpu_s": {"driver": cpu_s / 4, "worker": cpu_s, "ray": 99.0},
        "peak_mb": {"driver": 300.0, "worker": peak},
        "bytes": {"tables": 1000 * prompts, "ledger": 240 * prompts},
        "stages": {"facts": {"rows": 2 * prompts, "shards": 8}, "train": {"rows": 9, "shards": 0}},
    }


def test_growth_between_two_sizes():
    found = scale.growth(run(100, 10.0, 8.0, 400.0), run(1000, 100.0, 40.0, 420.0))
    assert found["exponent_wall"] == 1.0
    assert found["exponent_cpu"] == pytest.approx(0.699)  # log10(50 / 10)
    assert found["peak_growth"] == {"driver": 0.0, "worker": 0.05}


def test_the_model_is_arithmetic_over_the_run():
    found = scale_model.model(run(1000, 100.0, 40.0, 420.0), topics=100)
    assert found["requests"] == 100 * 10 * (2 + 3 * 4)
    assert found["constants"]["cpu_s_per_request"] == 0.01  # 40 s / 4,000
    assert found["constants"]["table_bytes_per_row"] == 500  # 1,000,000 / 2,000
    assert found["api_usd"] == 1  # 3.6 million tokens at 0.15, 0.12 million at 0.60: $0.61
    assert found["worker_cpus"] == pytest.approx(5.0)  # 500 requests a second, 0.01 s each
