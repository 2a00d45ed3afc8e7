import json
import re
import subprocess
import sys
from pathlib import Path

from facttune_ray import telemetry


def test_lines_are_plain_or_json_with_the_runs_ids(monkeypatch, capsys):
    telemetry.say("facts  12 rows", event="table", rows=12)
    assert capsys.readouterr().err == "facts  12 rows\n"
    monkeypatch.setenv("FACTTUNE_LOG", "json")
    monkeypatch.setitem(telemetry.ids, "run", "bio")
    telemetry.say("facts  12 rows", event="table", rows=12)
    telemetry.say("passes by", end="\r")  # for terminals
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["time"].endswith("Z") and found["run"] == "bio"
    assert (found["text"], found["event"], found["rows"]) == ("facts 12 rows", "table", 12)


def test_a_secret_is_in_no_line(monkeypatch, capsys):
    monkeypatch.setenv("OTHER_API_KEY", "hidden-value")
    telemetry.say("the key is hidden-value", key="hidden-value")
    monkeypatch.setenv("FACTTUNE_LOG", "json")
    telemetry.say("the key is hidden-value", key="hidden-value")
    said = capsys.readouterr().err
    assert "hidden-value" not in said and said.count("[key]") == 3


def test_without_ray_metrics_go_nowhere():
    code = "import sys\nfrom facttune_ray import telemetry\ntelemetry.count('rows', 3, stage='x')\n"
    code += "telemetry.gauge('llm_waiting', 3, worker='x')\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_metrics_of_a_process_with_ray(ray_cluster):
    telemetry.count("rows", 3, stage="facts", run="x")
    telemetry.gauge("llm_in_flight_limit", 3)


def test_the_dashboard_of_grafana_asks_for_metrics_that_exist():
    board = json.loads((Path(__file__).parents[1] / "conf" / "grafana.json").read_text())
    asked = " ".join(t["expr"] for p in board["panels"] for t in p["targets"])
    for name, (kind, _, _) in telemetry.METRICS.items():
        full = f"ray_facttune_{name}" + ("_total" if kind == "Counter" else "")
        assert full in asked or name == "llm_refused", name
    known = {
        f"ray_facttune_{n}{'_total' if k == 'Counter' else ''}"
        for n, (k, *_) in telemetry.METRICS.items()
    }
    assert set(re.findall(r"ray_facttune_\w+", asked)) <= known
