"""Tasks of a reader in three viewers of the same responses, driven in Chromium.

The seconds of a task end when what the reader looks for is on the page. Clicks are those of the
shortest way that the viewer offers. A task that a viewer cannot do has no entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import facttune_ray

MODELS = ("base", "facttune_fs")
WAIT_S = 60.0  # for a server to listen, or for something to be on a page
Responses = dict[str, list[dict[str, Any]]]
# (what is done, clicks, steps on a page of playwright)
Task = tuple[str, int, Callable[[Any], Any]]


def responses(run: str) -> Responses:
    """The test responses of two models, each with its judged facts."""
    opened, found = facttune_ray.load(run), {}
    for model in MODELS:
        scope = next(s for s in opened.tables["responses"] if s.startswith(model) and "test" in s)
        said = opened.verdicts.filter(scope=scope).to_table().to_pylist()
        verdicts = {v["fact_id"]: v for v in said}
        facts: dict[str, list[dict]] = {}
        for f in opened.facts.filter(scope=scope).to_table().to_pylist():
            if f["fact"]:
                v = verdicts[f["fact_id"]]
                one = {"fact": f["fact"], "supported": bool(v["supported"])}
                facts.setdefault(f["response_id"], []).append(one | {"evidence": v["evidence"]})
        rows = opened.responses.filter(scope=scope).to_table().to_pylist()
        found[model] = [
            {k: r[k] for k in ("topic", "sample", "prompt", "text")}
            | {"facts": facts.get(r["response_id"], [])}
            for r in rows
        ]
    return found


def score(response: Mapping[str, Any]) -> float:
    facts = response["facts"]
    return sum(f["supported"] for f in facts) / max(1, len(facts))


def worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first response, by name, of those with the lowest score: as Inspect sorts them."""
    name = min(rows, key=lambda r: (score(r), r["topic"], r["sample"]))
    return f"{name['topic']} {name['sample']}"


def write(found: Responses, folder: Path) -> Path:
    """Write the responses for both other viewers. -> data.json"""
    for rows in found.values():
        for r in rows:
            r["score"] = score(r)
    data = folder / "data.json"
    data.write_text(json.dumps(found))
    tests = [
        {
            "vars": {"prompt": f"{r['prompt']} #{r['sample']}"},
            "assert": [{"type": "javascript", "value": "file://check.js"}],
        }
        for r in found[MODELS[0]]
    ]
    providers = [{"id": f"file://{model}.js", "label": model} for model in MODELS]
    config = {"prompts": ["{{prompt}}"], "providers": providers, "tests": tests}
    (folder / "promptfooconfig.json").write_text(json.dumps(config))
    known = "const rows = (model) => require('./data.json')[model];\n"
    (folder / "check.js").write_text(
        f"{known}module.exports = (text, {{ vars }}) => {{\n"
        f"  const r = {list(MODELS)}.flatMap(rows).find((x) => x.text === text\n"
        "    && `${x.prompt} #${x.sample}` === vars.prompt);\n"
        "  const said = (f) => `${f.supported}: ${f.fact} ${f.evidence}`;\n"
        "  const reason = r.facts.map(said).join('; ');\n"
        "  return { pass: r.score === 1, score: r.score, reason };\n};\n"
    )
    for model in MODELS:
        (folder / f"{model}.js").write_text(
            f"{known}module.exports = class {{\n  id() {{ return '{model}'; }}\n"
            f"  async callApi(p) {{\n    const r = rows('{model}');\n"
            "    const same = (x) => `${x.prompt} #${x.sample}` === p;\n"
            "    return { output: r.find(same).text };\n  }\n};\n"
        )
    return data


@contextlib.contextmanager
def inspect(data: Path, binaries: Path) -> Iterator[str]:
    """Serve Inspect's viewer. -> its address"""
    logs, port = data.parent / "logs", _free_port()
    logs.mkdir()
    script = Path(__file__).with_name("inspect_log.py")
    subprocess.run([str(binaries / "python"), str(script), str(data), str(logs)], check=True)
    command = [str(binaries / "inspect"), "view", "--log-dir", str(logs), "--port", str(port)]
    with _served(command, port, dict(os.environ)):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def promptfoo(data: Path, installed: Path) -> Iterator[str]:
    """Serve promptfoo's viewer. -> the address of the evaluation"""
    here, port = data.parent, _free_port()
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1"}
    environment = {**os.environ, **quiet, "PROMPTFOO_CONFIG_DIR": str(here / "home")}
    binary = str(installed / "node_modules/.bin/promptfoo")
    config = str(here / "promptfooconfig.json")
    evaluate = [binary, "eval", "--no-table", "-c", config]
    done = subprocess.run(evaluate, cwd=here, env=environment, capture_output=True, text=True)
    if "Eval complete" not in done.stdout + done.stderr:  # it exits with 100 when a test failed
        raise RuntimeError(done.stdout + done.stderr)
    with _served([binary, "view", "-n", "-p", str(port)], port, environment):
        yield f"http://127.0.0.1:{port}/eval"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def _served(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            until_s = time.monotonic() + WAIT_S
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1.0).close()
                    break
                if time.monotonic() > until_s:
                    raise RuntimeError(f"{command[0]} does not listen")
                time.sleep(0.2)
            yield
        finally:
            os.killpg(server.pid, 15)


def tasks(run: str, inspect_url: str, promptfoo_url: str, name: str) -> dict[str, list[Task]]:
    """Viewer -> its tasks, which follow one another on one page. `name`: the worst response."""
    page = (Path(run).absolute() / "report.html").as_uri()
    wrong = "#cards li.false"
    details = "View output and test details"
    return {
        "report": [
            ("open", 0, lambda p: (p.goto(page), p.wait_for_selector("#cards[aria-busy=false]"))),
            ("worst response", 1, lambda p: (_sort(p), p.wait_for_selector(wrong))),
            ("evidence", 1, lambda p: (_click(p, f"{wrong} summary"), _see(p, f"{wrong} dl.why"))),
            ("judge", 1, lambda p: (_click(p, f"{wrong} .tools button"), _see(p, "#cards .trace"))),
            ("link", 1, lambda p: (_click(p, f"{wrong} .tools a"), _named(p, "fact="))),
            ("print", 1, lambda p: p.pdf()),
        ],
        "inspect": [
            ("open", 0, lambda p: (p.goto(inspect_url), _see(p, "text=local/base"))),
            (
                "worst response",
                2,
                lambda p: (
                    _click(p, "text=local/base"),
                    p.get_by_text("Score", exact=True).last.click(),
                    _see(p, f"text={name}"),
                ),
            ),
            (
                "evidence",
                2,
                lambda p: (
                    _click(p, f"text={name}"),
                    p.get_by_text("Scoring", exact=True).first.click(),
                    _see(p, "text=Explanation"),
                ),
            ),
            (
                "judge",
                1,
                lambda p: (
                    p.get_by_text("Transcript", exact=True).first.click(),
                    _see(p, "text=Is this fact supported?"),
                ),
            ),
            ("link", 0, lambda p: _named(p, "samples/sample/")),
            ("print", 1, lambda p: p.pdf()),
        ],
        "promptfoo": [
            ("open", 0, lambda p: (p.goto(promptfoo_url), _see(p, f"[aria-label='{details}']"))),
            (
                "evidence",
                2,
                lambda p: (
                    _click(p, f"[aria-label='{details}']"),
                    p.get_by_text("Evaluation", exact=True).first.click(),
                    _see(p, "text=Reason"),
                ),
            ),
            ("link", 0, lambda p: _named(p, "rowId=")),
            ("print", 1, lambda p: p.pdf()),
        ],
    }


def _sort(page: Any) -> Any:
    page.select_option("#by-sort", "response")
    return page.wait_for_selector("#cards[aria-busy=false]")


def _click(page: Any, selector: str) -> Any:
    return page.locator(selector).first.click()


def _see(page: Any, selector: str) -> Any:
    return page.locator(selector).first.wait_for()


def _named(page: Any, part: str) -> Any:
    """Wait until the address names the item."""
    return page.wait_for_function("part => location.href.includes(part)", arg=part)


def measure(viewers: Mapping[str, list[Task]], repeats: int) -> list[dict[str, Any]]:
    """[{"viewer", "task", "clicks", "seconds": the median}]"""
    from playwright.sync_api import sync_playwright

    took: dict[tuple[str, str, int], list[float]] = {}
    with sync_playwright() as playwright:
        binary = os.environ.get("FACTTUNE_CHROMIUM") or shutil.which("chromium")
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=binary, args=options)
        for _ in range(repeats):
            for viewer, steps in viewers.items():
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.set_default_timeout(1000 * WAIT_S)
                for task, clicks, step in steps:
                    began_s = time.monotonic()
                    step(page)
                    took.setdefault((viewer, task, clicks), []).append(time.monotonic() - began_s)
                page.close()
        browser.close()
    return [
        {"viewer": v, "task": t, "clicks": c, "seconds": round(statistics.median(s), 2)}
        for (v, t, c), s in took.items()
    ]
