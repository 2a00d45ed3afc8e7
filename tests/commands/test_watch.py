"""`facttune watch`: who sees the page, what it shows of a run in every state, and that it only
reads."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import json
import os
import re
import threading
import time

import pytest

from facttune_ray import cli, config
from facttune_ray.commands import watched as watched_file
from facttune_ray.commands.watch import Server
from facttune_ray.commands.watched import Watched
from facttune_ray.runtime import settings
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder

IDLE = "No command that makes this run was found on this machine"
ODD = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"


@pytest.fixture
def cfg(tmp_path):
    out = f"run.out={tmp_path / 'out'}"
    return config.load(["quickstart"], [out, "run.shards=2", "tune.facttune_mc.rounds=0"])


@pytest.fixture
def root(cfg):
    return Folder.of(cfg.run.out)


@pytest.fixture
def served():
    """server = served(watched): it answers in threads of this process"""
    servers = []

    def serve(watched):
        server = Server(watched)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Every look and report is made again when it is asked for."""
    monkeypatch.setattr(watched_file, "STATE_S", {True: 0.0, False: 0.0})
    monkeypatch.setattr(watched_file, "PAGE_S", 0.0)
    monkeypatch.setattr(watched_file, "SHARE", float("inf"))


def write(root, name, rows, parts=2, finished=True, shards=2):
    table = name.rsplit("/", 1)[-1]
    tables.begin(root / name, {})
    for shard in range(parts):
        tables.write_part(root / name, table, shard, rows if shard == 0 else [], {"calls": 2})
    if finished:
        tables.write_manifest(root / name, table, {}, shards, 1.0)


def respond(root, scope="base/tune", split="val", right=(True, False)):
    """Judged responses of a scope: their texts hold markup."""
    head = {"response_id": f"{scope}/r", "topic": "Ada", "split": split}
    said = {"prompt_id": "p", "model": "base", "sample": 0, "prompt": "Write.", "text": f"A. {ODD}"}
    write(root, f"{scope}/responses", [head | said])
    facts = [
        {"fact_id": f"{scope}/{i}", "fact": f"{ODD} {i}", "start": 0, "end": 2} for i in (0, 1)
    ]
    write(root, f"{scope}/facts", [head | f | {"repeated": False, "position": 0} for f in facts])
    judged = [
        {"fact_id": f["fact_id"], "response_id": head["response_id"], "supported": true}
        for f, true in zip(facts, right, strict=True)
    ]
    write(root, f"{scope}/verdicts", judged)


def ask(server, path="/", token=None, method="GET", **headers):
    """(status, headers, text); `token`: in the cookie"""
    if token is not None:
        headers["Cookie"] = f"other=1; {server.cookie}={token}"
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def headline(fragment):
    return re.search(r'role="status"><b>(.*?)</b>', fragment)[1]


# --- who sees the page


def test_only_who_has_the_token_sees_a_page(cfg, served):
    server = served(Watched.of_config(cfg))
    assert server.server_address[0] == "127.0.0.1" and len(server.token) == 48
    assert server.url == f"http://127.0.0.1:{server.server_port}/?token={server.token}"
    for path, token in (
        ("/", None),
        ("/live", "wrong"),
        ("/?token=wrong", None),
        ("/?token=é", ""),
    ):
        status, _, text = ask(server, path.replace("é", "%C3%A9"), token)
        assert (status, "token" in text, "<" in text) == (403, True, False)
    status, headers, _ = ask(server, f"/?token={server.token}")
    assert (status, headers["Location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
    assert ask(server, "/", server.token)[0] == 200
    assert ask(server, "/../../etc/passwd", server.token)[0] == 404
    assert ask(server, "/", server.token, "POST")[0] == 501
    status, headers, text = ask(server, "/live", server.token, "HEAD")
    assert (status, text) == (200, "") and int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "host", ("[", "evil.example", "evil.example:80", "", "127.0.0.1.evil.example")
)
def test_a_request_by_another_host_name_is_refused(cfg, served, host):
    server = served(Watched.of_config(cfg))
    assert ask(server, "/live", server.token, Host=host)[0] == 421
    assert ask(server, "/live", server.token, Host="localhost:8890")[0] == 200  # by a tunnel


def test_the_policy_allows_the_scripts_of_the_page_alone(cfg, root, served):
    respond(root)
    server = served(Watched.of_config(cfg))
    _, headers, page = ask(server, "/", server.token)
    policy = headers["Content-Security-Policy"]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(scripts) == 2 and all(f"'sha256-{d}'" in policy for d in digests)
    assert policy.startswith("default-src 'none'; ") and "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy and "unsafe-inline'; script" in policy
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    fragment = ask(server, "/live", server.token)[2]
    assert "<script" not in fragment and "<img" not in fragment and "&lt;script&gt;" in fragment
    assert "<script>window.ran" not in page and "<img" not in page


def test_a_port_that_is_taken_is_one_line(cfg, served, capsys):
    port = served(Watched.of_config(cfg)).server_port
    words = ["watch", "quickstart", f"run.out={cfg.run.out}", "--port"]
    assert cli.main([*words, str(port)]) == 2
    error = capsys.readouterr().err
    assert f"--port {port}: cannot listen there" in error and error.count("\n") == 1
    assert cli.main([*words, "99999"]) == 2
    assert cli.main(["watch", "/nowhere/run"]) == 2


# --- the states of a run


def test_a_run_that_has_not_begun(cfg, root):
    watched = Watched.of_config(cfg)
    page = watched.page()
    assert headline(page) == "The run has not begun"
    assert "not begun" in page and "facttune_fs/round_1" in page and not root.exists()


def test_a_run_that_begins_grows_and_stops(cfg, root):
    watched = Watched.of_config(cfg)
    before = re.search(r'data-version="(\w*)"', watched.page())[1]
    write(root, "prompts", [{"topic": "Ada"}])
    respond(root)
    write(root, "base/tune/rewards", [{"error": f"no {ODD}"}] * 3, parts=1, finished=False)
    folder = os.open(root.path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as a driver does
    try:
        shown = watched.fragment()
        assert headline(shown).startswith("Running: 4 of ")
    finally:
        os.close(folder)
    assert headline(watched.fragment()).startswith(f"{IDLE}: 4 of ")
    assert re.search(r'data-version="(\w*)"', shown)[1] != before
    assert "3 of about 6 rows, 1/2 parts" in shown and 'value="0.500"' in shown
    assert "base/tune/rewards: <b" in shown and "no &lt;script&gt;" in shown
    assert "First responses of base/tune" in shown
    assert shown.count('<li class="true">') == shown.count('<li class="false">') == 1
    page = watched.page()
    assert "Val topics" in page and "50.0%" in page


def test_figures_are_of_test_topics_once_base_has_answered_them(cfg, root):
    respond(root)
    respond(root, "facttune_fs/round_1/tune", right=(True, True))
    watched = Watched.of_config(cfg)
    assert "Val topics" in watched.page() and "FactTune-FS" in watched.page()
    respond(root, "base/test", "test")
    page = watched.page()
    assert "Held-out topics" in page and "Val topics" not in page


def test_training_curves_of_a_log_that_is_being_written(cfg, root):
    train = root / "facttune_fs/round_1/train"
    (train / tables.RECIPE).write_json({})
    lines = [
        json.dumps({"step": i, "steps": 40, "loss": 0.7 - i / 100, "reward_accuracy": 0.8})
        for i in range(1, 11)
    ]
    (train / "train.jsonl").write_bytes(("\n".join(lines) + '\n{"step": 11, "st').encode())
    page = Watched.of_config(cfg).page()
    assert "step 10 of 40" in page and "loss 0.600, reward accuracy 0.800" in page
    assert "Training, loss at the end of each round: FactTune-FS round 1: 0.600" in page


def test_half_written_and_damaged_files(cfg, root):
    respond(root)
    watched = Watched.of_config(cfg)
    good = watched.page()
    (root / "base/tune/rewards" / tables.RECIPE).write_bytes(b"{")
    (root / "base/tune/rewards/part-00000.parquet").write_bytes(b"PAR1")
    (root / "base/tune/rewards/part-00001.parquet.12ab.tmp").write_bytes(b"PAR1")
    (root / "ledger/a-000000.arrow").write_bytes(b"ARROW1")
    assert "0 rows, 0/2 parts" in watched.fragment()
    manifest = root / "base/tune/verdicts" / tables.MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:20])
    shown = watched.fragment()
    assert "cannot be read just now" in shown and "damaged, not JSON" in shown
    assert "50.0%" in watched.page()  # the last report stays
    manifest.write_bytes(whole)
    (root / "base/tune/verdicts/part-00000.parquet").delete_file()  # a table that is withdrawn
    assert "50.0%" in watched.page() and "50.0%" in good
    assert headline(watched.fragment()).startswith(f"{IDLE}: 3 of ")


def test_a_folder_alone_says_by_whom_its_facts_are_judged(cfg, root):
    respond(root, "base/tune", "val")
    assert "judged by chat" in Watched.of_folder(cfg.run.out).page()  # the default: no settings
    (root / settings.FILE).write_bytes(b"{")  # damaged
    assert "judged by chat" in Watched.of_folder(cfg.run.out).page()
    words = [f"run.out={cfg.run.out}", "verdicts.estimator=lexical", "run.name=mine"]
    settings.keep(root, config.load(["quickstart"], words))
    page = Watched.of_folder(cfg.run.out).page()
    assert "judged by lexical" in page and "<h1>mine</h1>" in page


def test_a_page_that_is_closed_is_no_error_and_a_bug_is_told_without_keys(
    cfg, served, monkeypatch, capfd
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef0123456789abcdef")
    watched = Watched.of_config(cfg)
    server = served(watched)
    error = [BrokenPipeError("closed"), RuntimeError("no sk-0123456789abcdef0123456789abcdef")]

    def fail():
        raise error.pop(0)

    monkeypatch.setattr(watched, "fragment", fail)
    assert ask(server, "/live", server.token)[0] == 503
    assert ask(server, "/live", server.token)[0] == 503
    told, until_s = "", time.monotonic() + 30
    while "RuntimeError" not in told and time.monotonic() < until_s:  # a thread prints it
        told += capfd.readouterr().err
        time.sleep(0.05)
    assert "RuntimeError" in told
    assert "BrokenPipeError" not in told and "sk-0123" not in told


def test_a_large_report_has_its_parts(cfg, root, served):
    (root / "report_data/9b2e.js").write_bytes(b"facttune_part()")
    (root / "ledger/9b2e.js").write_bytes(b"no part")
    server = served(Watched.of_config(cfg))
    status, headers, text = ask(server, "/report_data/9b2e.js", server.token)
    assert (status, text) == (200, "facttune_part()")
    assert headers["Content-Type"].startswith("text/javascript")
    assert ask(server, "/report_data/9b2e.js")[0] == 403
    for other in ("/report_data/aa.js", "/ledger/9b2e.js", "/report_data/../ledger/9b2e.js"):
        assert ask(server, other, server.token)[0] == 404


def test_a_finished_run_shows_its_report(cfg, root):
    for name in ("base/test", "facttune_fs/round_1/test"):
        respond(root, name, "test")
    (root / "summary.json").write_json({})
    (root / "report.html").write_bytes(b"<p>of a finished run</p>")
    assert Watched.of_folder(cfg.run.out).page() == "<p>of a finished run</p>"
    assert 'data-version="finished"' in Watched.of_folder(cfg.run.out).fragment()
    assert (
        "of a finished run" not in Watched.of_config(cfg).page()
    )  # other tables are still to come


def test_it_writes_nothing(cfg, root):
    respond(root)
    write(root, "base/tune/rewards", [{}], parts=1, finished=False)
    before = {name: (i.size, i.mtime_ns) for name, i in root.infos().items()}
    watched = Watched.of_config(cfg)
    for _ in range(2):
        watched.page()
        watched.fragment()
    assert {name: (i.size, i.mtime_ns) for name, i in root.infos().items()} == before


def test_looks_and_reports_are_rare_and_short(cfg, root, monkeypatch):
    respond(root)
    monkeypatch.setattr(watched_file, "STATE_S", {True: 60.0, False: 60.0})
    monkeypatch.setattr(watched_file, "PAGE_S", 60.0)
    made, looked = [], []
    real, watched = watched_file.partial, Watched.of_config(cfg)
    monkeypatch.setattr(watched_file, "partial", lambda *a: made.append(a) or real(*a))
    tables_of = watched.look.tables
    monkeypatch.setattr(watched.look, "tables", lambda: looked.append(1) or tables_of())
    watched.page()
    respond(root, "base/test", "test")
    for _ in range(3):
        watched.page()
        watched.fragment()
    assert (len(made), len(looked)) == (1, 1)


def test_a_run_in_an_object_store(object_store, cfg):
    root = Folder.of(object_store.uri("watched"))
    respond(root)
    page = Watched.of_folder(object_store.uri("watched")).page()
    assert "3 of 3 tables are finished; the last change was " in page and "50.0%" in page


# --- in a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(cfg, root, served, chromium, serious_faults, scheme):
    write(root, "prompts", [{"topic": "Ada"}])
    respond(root)
    write(root, "base/tune/rewards", [], parts=1, finished=False)
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 390, "height": 900})
    page.goto(served(Watched.of_config(cfg)).url)
    page.wait_for_selector("#live .facts")
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_the_page_follows_the_run_and_markup_stays_text(cfg, root, served, monkeypatch, chromium):
    monkeypatch.setattr(watched_file, "STATE_S", {True: 0.2, False: 0.2})
    write(root, "prompts", [{"topic": "Ada"}])
    server = served(Watched.of_config(cfg))
    page = chromium.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    assert "token" not in page.url and "machine: 1 of" in page.inner_text("#live")
    respond(root)
    page.wait_for_selector("#result", timeout=60_000)  # later figures load the page again
    page.wait_for_selector("details.topic[open]")
    page.click("details.topic > summary")  # closes it: the page is in use from now on
    page.wait_for_selector("#live .facts")
    respond(root, "base/test", "test")
    page.wait_for_selector("#newer a", timeout=60_000)
    assert page.locator("details.topic[open]").count() == 0
    assert "window.ran" in page.inner_text("#live .text")
    assert page.evaluate("window.ran") is None and said == []
    page.close()
