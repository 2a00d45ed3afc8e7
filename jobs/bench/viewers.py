"""Tasks of a reader in three viewers of the same responses, driven in Chromium.

The seconds of a task end when what the reader looks for is on the page. A task that a viewer does
not offer has no entry.
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


def responses(run: str) -> Responses:
    """The test responses of two models, each with its judged facts and its score."""
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
            | {"facts": some, "score": sum(f["supported"] for f in some) / max(1, len(some))}
            for r in rows
            for some in [facts.get(r["response_id"], [])]
        ]
    return found


def worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first response, by name, of those with the lowest score: as Inspect sorts them."""
    name = min(rows, key=lambda r: (r["score"], r["topic"], r["sample"]))
    return f"{name['topic']} {name['sample']}"


def write(found: Responses, folder: Path) -> Path:
    """Write the responses for both other viewers. -> data.json"""
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


class Reader:
    """A reader of one page of Chromium, whose clicks are counted."""

    def __init__(self, page: Any) -> None:
        page.set_default_timeout(1000 * WAIT_S)
        self.page, self.clicks = page, 0

    def click(self, what: str | Any) -> None:
        """`what`: a selector, of which the first match counts, or a locator."""
        (self.page.locator(what).first if isinstance(what, str) else what).click()
        self.clicks += 1

    def choose(self, selector: str, value: str) -> None:
        self.page.select_option(selector, value)
        self.clicks += 1

    def see(self, selector: str) -> None:
        self.page.locator(selector).first.wait_for()

    def address_has(self, part: str) -> None:
        self.page.wait_for_function("part => location.href.includes(part)", arg=part)


# Each viewer yields the name of a task when its aim is on the page. All tasks follow on one page.


def read_report(r: Reader, address: str, worst: str) -> Iterator[str]:
    ready, wrong = "#cards[aria-busy=false]", "#cards li.false"
    r.page.goto(address)
    r.see(ready)
    yield "open"
    r.choose("#by-sort", "response")
    r.see(f"{ready} li.false")
    yield "worst response"
    r.click(f"{wrong} summary")
    r.see(f"{wrong} dl.why")
    yield "evidence"
    r.click(f"{wrong} .tools button")
    r.see("#cards .trace")
    yield "judge"
    r.click(f"{wrong} .tools a")
    r.address_has("fact=")
    yield "link"
    r.page.pdf()
    yield "print"


def read_inspect(r: Reader, address: str, worst: str) -> Iterator[str]:
    def named(text: str) -> Any:
        return r.page.get_by_text(text, exact=True)

    r.page.goto(address)
    r.see("text=local/base")
    yield "open"
    r.click("text=local/base")
    r.click(named("Score").last)
    r.see(f"text={worst}")
    yield "worst response"
    r.click(f"text={worst}")
    r.click(named("Scoring").first)
    r.see("text=Explanation")
    yield "evidence"
    r.click(named("Transcript").first)
    r.see("text=Is this fact supported?")
    yield "judge"
    r.address_has("samples/sample/")
    yield "link"
    r.page.pdf()
    yield "print"


def read_promptfoo(r: Reader, address: str, worst: str) -> Iterator[str]:
    details = "[aria-label='View output and test details']"
    r.page.goto(address)
    r.see(details)
    yield "open"
    r.click(details)
    r.click(r.page.get_by_text("Evaluation", exact=True).first)
    r.see("text=Reason")
    yield "evidence"
    r.address_has("rowId=")
    yield "link"
    r.page.pdf()
    yield "print"


VIEWERS: dict[str, Callable[[Reader, str, str], Iterator[str]]] = {
    "report": read_report,
    "inspect": read_inspect,
    "promptfoo": read_promptfoo,
}


def measure(addresses: Mapping[str, str], worst: str, repeats: int) -> list[dict[str, Any]]:
    """[{"viewer", "task", "clicks", "seconds": the median}]. `addresses`: viewer -> its page."""
    from playwright.sync_api import sync_playwright

    took: dict[tuple[str, str, int], list[float]] = {}
    with sync_playwright() as playwright:
        binary = os.environ.get("FACTTUNE_CHROMIUM") or shutil.which("chromium")
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=binary, args=options)
        for _ in range(repeats):
            for viewer, read in VIEWERS.items():
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                reader, clicks, began_s = Reader(page), 0, time.monotonic()
                for task in read(reader, addresses[viewer], worst):
                    key = viewer, task, reader.clicks - clicks
                    took.setdefault(key, []).append(time.monotonic() - began_s)
                    clicks, began_s = reader.clicks, time.monotonic()
                page.close()
        browser.close()
    return [
        {"viewer": v, "task": t, "clicks": c, "seconds": round(statistics.median(s), 2)}
        for (v, t, c), s in took.items()
    ]
