"""`ray job submit` to a cluster as the shipped files start it: token, loopback, no task on the
head's CPUs but here, where the head is all there is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN, KEY = "0f" * 32, "sk-marked-7c1e5b9d3a2f4680"
pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


EXPORTED = {
    "ray_facttune_requests_total",
    "ray_facttune_llm_calls_total",
    "ray_facttune_llm_prompt_tokens_total",
    "ray_facttune_llm_waiting",
    "ray_facttune_llm_in_flight_limit",
    "ray_facttune_rows_total",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(environment of its users, dashboard's port, metrics' port, Ray's folder)"""
    folder = Path(tempfile.mkdtemp(prefix="ft-", dir="/tmp"))  # sockets need a short path
    keys = tmp_path_factory.mktemp("keys")
    (keys / "token").write_text(TOKEN)
    (keys / "llm").write_text(KEY + "\n")
    gcs, dashboard, exported, agent, client = free_ports(5)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(keys / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "MARKED_KEY_FILE": str(keys / "llm"),
    }
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--metrics-export-port={exported}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
    command += ["--object-store-memory=200000000"]
    with open(keys / "log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    children: list[psutil.Process] = []
    try:
        wait_for(dashboard)
        children = psutil.Process(head.pid).children(recursive=True)
        yield environment, dashboard, exported, folder
    finally:
        children += psutil.Process(head.pid).children(recursive=True)
        for process in [head, *children]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        head.wait()


def wait_for(port: int) -> None:
    for _ in range(240):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("no dashboard")


def submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = [RAY, "job", "submit", "--runtime-env", "jobs/runtime_env.yaml", "--"]
    command += [sys.executable, *words]
    return subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=400
    )


def answer(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, ""


@pytest.fixture(scope="module")
def scored(cluster, tmp_path_factory):
    """(run's folder, what its job said): two biographies scored by an endpoint that wants a key."""
    from facttune_ray.quickstart.annotator import AnnotatorOptions, running

    environment, *_ = cluster
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run") / "out"
    rows = [{"topic": t, "output": f"{t} sings in Lyon. {t} paints."} for t in ("Ada", "Bo")]
    (data / "M.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (data / "knowledge.jsonl").write_text('{"title": "Ada", "text": "Ada sings in Lyon."}\n')
    with running(AnnotatorOptions(api_key=KEY, error_share=0.2)) as url:
        words = ["score", f"data.folder={data}", "data.files=[M.jsonl]", f"run.out={out}"]
        words += [f"llm.base_url={url}", "llm.api_key_env=MARKED_KEY", "run.shards=2"]
        words += ["run.name=marked", "llm.max_wait_s=0.2", "run.max_error_fraction=1"]
        found, ended = {}, threading.Event()

        def scrape() -> None:  # a gauge is there while its process runs
            while not ended.wait(1):
                with contextlib.suppress(OSError):  # the agent has not begun
                    lines = answer(f"http://127.0.0.1:{cluster[2]}/metrics")[1].splitlines()
                    found.update({line.rpartition(" ")[0]: line for line in lines})

        follower = threading.Thread(target=scrape)
        follower.start()
        done = submit(environment, "jobs/pipeline.py", *words)
        time.sleep(15)  # counters are exported every few seconds
        ended.set()
        follower.join()
        metrics = list(found.values())
        assert done.returncode == 0, done.stdout[-3000:]
        again = submit(environment, "jobs/evaluate.py", *words)
        assert again.returncode == 0, again.stdout[-3000:]
    return out, done.stdout + done.stderr, metrics


def rows_of(out: Path) -> int:
    manifest = json.loads((out / "imported" / "all" / "verdicts" / "_MANIFEST.json").read_text())
    assert manifest["rows"] > 1
    return manifest["rows"]


def test_the_job_makes_the_tables_and_says_so_in_json(scored):
    out, said, _ = scored
    assert (out / "summary.json").exists()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith('{"time"')]
    tables = {line["table"]: line for line in lines if line.get("event") == "table"}
    verdicts = tables["imported/all/verdicts"]
    assert verdicts["run"] == "marked" and verdicts["stage"] == "verdicts"
    assert len({line["run_id"] for line in lines}) == 1 and verdicts["rows"] == rows_of(out)


def test_metrics_have_every_request_and_row(scored):
    out, _, metrics = scored
    assert {m.split("{")[0] for m in metrics} >= EXPORTED
    requests = [m for m in metrics if m.startswith("ray_facttune_requests_total")]
    assert any('status="200"' in m for m in requests)
    rows = [m for m in metrics if m.startswith("ray_facttune_rows_total")]
    written = sum(float(m.split()[-1]) for m in rows if 'stage="verdicts"' in m)
    assert written == 2 * rows_of(out)  # with the second opinion's


def test_a_key_from_a_file_is_nowhere(cluster, scored):
    out, said, metrics = scored
    assert KEY not in said and KEY not in "".join(metrics) and TOKEN not in said
    folders = [out, cluster[3]]
    searched = [p for f in folders for p in f.rglob("*") if p.is_file() and not p.is_symlink()]
    assert any("worker-" in p.name for p in searched)
    assert [p for p in searched if KEY.encode() in p.read_bytes()] == []


def test_without_the_token_nothing_is_told(cluster, scored):
    environment, dashboard, *_ = cluster
    url = f"http://127.0.0.1:{dashboard}/api/jobs/"
    assert answer(url)[0] in (401, 403)
    assert answer(url, Authorization=f"Bearer {TOKEN}")[0] == 200
    outside = environment | {"RAY_AUTH_TOKEN": "00" * 32}
    assert submit(outside, "jobs/pipeline.py", "quickstart").returncode != 0
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening if c.laddr.port == dashboard} == {"127.0.0.1"}


def test_a_wrong_word_is_one_line_and_a_failed_job(cluster):
    done = submit(cluster[0], "jobs/train.py", "quikstart")
    assert done.returncode != 0
    assert 'Did you mean "quickstart"?' in done.stdout + done.stderr
    assert "failed with exit code 2" in done.stdout + done.stderr


def test_what_a_job_carries_has_neither_data_nor_keys():
    environment = yaml.safe_load((REPO / "jobs" / "runtime_env.yaml").read_text())
    assert {"/.git/", "/runs/", "*.safetensors", "*.parquet"} <= set(environment["excludes"])
    assert environment["env_vars"] == {"FACTTUNE_LOG": "json"}
