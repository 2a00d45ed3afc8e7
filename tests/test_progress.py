import time

from facttune_ray.config import Config, RunConfig
from facttune_ray.llm.cost import Ask, Usage
from facttune_ray.progress import line, watch
from facttune_ray.stages.context import Work
from facttune_ray.tables import Folder


def test_rates_are_since_the_last_line_and_counts_of_the_stage():
    last = {"calls": 100, "prompt_tokens": 1000, "completion_tokens": 100}
    used = {
        "calls": 300,
        "prompt_tokens": 41_000,
        "completion_tokens": 2100,
        "refused": 7,
        "cached": 1204,
    }
    text = line("base/tune/facts", "3/8 parts", used, last, 2.0, 0.314)
    assert text.split("  ")[0] == "base/tune/facts"
    for part in ("3/8 parts", "100 req/s", "21,000 tok/s", "7 429s", "1,204 from", "$0.31"):
        assert part in text
    anew = last | {"refused": 0, "cached": 0}  # of a meter that was started again
    assert "  0 req/s  0 tok/s" in line("base/tune/facts", "3/8 parts", anew, used, 2.0, 0.314)


def test_rates_of_a_stages_second_table_leave_the_first_out(tmp_path, ray_cluster, capsys):
    import ray

    from facttune_ray.llm import actors

    meter = actors.start_meter("test-progress", None, Folder.of(str(tmp_path)), "r")
    ray.get(meter.report.remote(Ask("a", "facts", Usage(calls=50_000, prompt_tokens=5_000_000))))
    work = Work("facts", "round_1/tune/facts", {}, Config(run=RunConfig(out=str(tmp_path))))
    with watch(work, meter, every_s=0.2):
        time.sleep(1.0)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("round_1/tune/facts") and "  0 req/s  0 tok/s" in first
