"""The line about a stage that runs, or that waits."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from facttune_ray.config import Config, RunConfig
from facttune_ray.llm.cost import SILENT, MeterReport, Usage, Wait
from facttune_ray.runtime import progress
from facttune_ray.runtime.placement import Operator, place_of
from facttune_ray.runtime.progress import Look, Progress, Table, rates, waits
from facttune_ray.stages.work import Work
from facttune_ray.storage.tables import Folder


def at(at_s: float, **usage) -> Look:
    return Look(at_s, used=asdict(Usage(**usage)), spent_usd=0.314, heard_s=at_s, workers=1)


def test_rates_are_since_the_last_line_and_counts_of_the_stage():
    last = at(5.0, calls=100, prompt_tokens=1000, completion_tokens=100)
    now = at(7.0, calls=300, prompt_tokens=41_000, completion_tokens=2100, refused=7, cached=1204)
    for part in ("100 req/s", "21,000 tok/s", "7 429s", "1,204 from", "$0.31"):
        assert part in rates(now, last)
    assert "without usage" not in rates(now, last) and "never came" not in rates(now, last)
    anew = at(7.0, calls=3)  # of a meter that was started again
    assert "0 req/s  0 tok/s" in rates(anew, last)
    unsure = rates(at(7.0, estimated=37, unknown=3), last)
    assert unsure.endswith("37 answers without usage  3 answers never came")


@pytest.mark.parametrize(
    ("now", "lacking", "says"),
    [
        ({}, "", []),
        ({"waits": {"permits": [42.4, 128]}}, "", ["waits 42 s for permits (128 requests)"]),
        ({"waits": {"permits": [1.0, 128]}}, "", []),
        (
            {"waits": {SILENT: [40.0, 2], "the server": [60.0, 1]}},
            "",
            ["waits 60 s for the server (1 request)", "2 workers silent for 40 s"],
        ),
        ({"heard_s": 88.0}, "", ["the run's meter has not answered for 12 s"]),
        ({"moved_s": 61.0}, "", ["no answer for 39 s"]),
        ({"moved_s": 61.0, "workers": 0}, "", ["no worker has begun for 39 s"]),
        ({"moved_s": 61.0, "workers": 0}, "a CPU to be free", ["waits 39 s for a CPU to be free"]),
    ],
)
def test_what_is_waited_for_is_told_and_since_when(now, lacking, says):
    fine = {"moved_s": 100.0, "heard_s": 100.0, "workers": 1}
    assert waits(Look(100.0, **fine | now), True, lacking) == says


def test_a_stage_that_asks_no_endpoint_waits_for_a_host_alone():
    assert waits(Look(100.0, moved_s=0.0), False, "") == []
    host = "a host with 1 GPU H100"
    assert waits(Look(100.0, moved_s=0.0), False, host) == [f"waits 100 s for {host}"]


def test_the_time_that_is_left_follows_the_parts_made_in_this_run():
    found = [progress.time_left(2, 6, s) for s in (20.0, 60.0, 3000.0)]
    assert found == [", about 60 s left", ", about 3 min left", ", about 2.5 h left"]
    assert progress.time_left(0, 8, 60.0) == progress.time_left(8, 0, 60.0) == ""


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def shown(pipeline: Progress, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pipeline.show()
        time.sleep(0.1)


def of(work: Work, *tables: Table, meter=None, every_s: float) -> Progress:
    return Progress(tables, [Operator((work,), place_of(work))], meter, every_s)


def test_a_line_has_the_tables_that_have_begun_and_are_not_finished(tmp_path, capsys):
    began_s = time.monotonic() - 60
    half = Table("base/tune/facts", 8, 2, 4, 1204, began_s)
    whole = Table("base/tune/responses", 8, 0, 8, 80, began_s, finished=True)
    work = Work("rewards", "base/tune/rewards", {}, Config(run=RunConfig(out=str(tmp_path))))
    shown(of(work, whole, half, Table("base/tune/verdicts", 8), every_s=0.1), 0.3)
    text = capsys.readouterr().err.splitlines()[0]
    assert text.startswith("base/tune/facts ") and "4/8 parts, 1,204 rows, about 2 min left" in text
    assert "responses" not in text and "verdicts" not in text


def test_a_pipeline_does_not_wait_for_its_meter_to_start(tmp_path, ray_cluster):
    import ray

    starting = ray.remote(num_cpus=0)(lambda: time.sleep(20)).remote()
    meter = SimpleNamespace(snapshot=SimpleNamespace(remote=lambda: starting))
    work = Work("facts", "tune/facts", {}, Config(run=RunConfig(out=str(tmp_path))))
    began_s = time.monotonic()
    of(work, Table(work.output, 8), meter=meter, every_s=60.0)
    assert time.monotonic() - began_s < 5.0
    ray.cancel(starting, force=True)


def test_a_pipeline_is_watched_while_it_moves_while_it_waits_and_without_its_meter(
    tmp_path, ray_cluster, capsys, monkeypatch
):
    import ray

    from facttune_ray.llm import actors

    monkeypatch.setenv("FACTTUNE_LOG", "json")
    meter = actors.start_meter("test-progress", None, Folder.of(str(tmp_path)), "r")
    before = Usage(calls=50_000, prompt_tokens=5_000_000)  # of the stage's table before this one
    ray.get(meter.report.remote(MeterReport("a", "facts", 1, before)))
    work = Work("facts", "round_1/tune/facts", {}, Config(run=RunConfig(out=str(tmp_path))))

    def watched(seconds: float) -> list[dict]:
        table = Table(work.output, 8, began_s=time.monotonic())
        shown(of(work, table, meter=meter, every_s=0.2), seconds)
        return lines(capsys)

    first = watched(1.0)[0]
    assert first["text"].startswith("round_1/tune/facts 0/") and " 0 req/s 0 tok/s" in first["text"]
    assert (first["event"], first["tables"]) == ("progress", {work.output: 0})
    assert first["calls"] == 50_000

    stuck = MeterReport("a", "facts", 2, before, wait=Wait("permits", 42.0, 128))
    ray.get(meter.report.remote(stuck))
    assert watched(1.0)[-1]["waits"][0].startswith("waits 4")

    ray.kill(meter)
    monkeypatch.setattr(progress, "ANSWER_S", 0.3)
    assert "the run's meter has not answered for" in watched(2.0)[-1]["waits"][0]


def test_a_pipeline_whose_workers_find_no_room_says_what_it_waits_for(
    tmp_path, ray_cluster, capsys
):
    import ray

    cpus = int(ray.cluster_resources()["CPU"])
    held = ray.remote(num_cpus=cpus)(lambda: time.sleep(60)).remote()
    until = time.monotonic() + 50
    while ray.available_resources().get("CPU", 0) and time.monotonic() < until:
        time.sleep(0.1)
    waiting = ray.remote(num_cpus=1)(lambda: None).remote()
    work = Work("rewards", "base/tune/rewards", {}, Config(run=RunConfig(out=str(tmp_path))))
    table = Table(work.output, 8, began_s=time.monotonic())
    pipeline = of(work, table, every_s=1.0)
    try:
        while not (found := progress.lacks(pipeline.operators)) and time.monotonic() < until:
            time.sleep(0.2)
        assert found == "a CPU to be free"
        shown(pipeline, 5.5)
        text = " ".join(capsys.readouterr().err.splitlines()[-1].split())
        assert text.startswith("base/tune/rewards 0/")
        assert text.endswith(" s for a CPU to be free")
    finally:
        for ref in (held, waiting):
            ray.cancel(ref, force=True)


def test_a_terminal_has_a_bar_a_table_and_a_line_of_rates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    work = Work("rewards", "base/tune/rewards", {}, Config(run=RunConfig(out=str(tmp_path))))
    began_s = time.monotonic()
    two = [Table(f"base/tune/{n}", 4, 0, 1, 10, began_s) for n in ("facts", "verdicts")]
    pipeline = of(work, *two, every_s=0.1)
    shown(pipeline, 0.4)
    pipeline.clear()
    text = capsys.readouterr().err
    for table in two:
        assert f"{table.name:<36} |" in text and "1/4 parts" in text
    assert " s" in text.split("parts")[-1]
