"""Shared fixtures: a local Ray cluster, a browser, an object store, the labelled data."""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

import bench  # noqa: F401  Ray's workers find it, too: it puts jobs/ on their path
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and tests run side by side
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin slow the other processes
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")  # of tests/object_store.py; workers need it, too
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")  # no role to ask for

REPO = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("FACTTUNE_CHROMIUM") or shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first: at the end one would keep one core busy alone."""
    long = {item.path for item in items if "chaos" in item.keywords}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def small_preset() -> str:
    """Path of the preset that makes a quickstart small."""
    return str(REPO / "tests" / "small.yaml")


@pytest.fixture(scope="session")
def tiny_presets(small_preset) -> list[str]:
    """Paths of the presets that make a quickstart tiny: one model, tuned once."""
    return [small_preset, str(REPO / "tests" / "tiny.yaml")]


@pytest.fixture(scope="session")
def ray_cluster():
    from facttune_ray.runtime import cluster

    cluster.start_ray()
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def object_store():
    """An S3 server (tests/object_store.py) that every process of this machine reaches."""
    pytest.importorskip("moto")
    made = runpy.run_path(str(REPO / "tests" / "object_store.py"))
    with made["running"]() as store:
        yield store


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("no chromium: apt-get install chromium, or name it in FACTTUNE_CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def serious_faults():
    """serious_faults(page): what axe finds while every box of the page is open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")

    def find(page):
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        return [
            (v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"])
            for v in axe.Axe().run(page).response["violations"]
            if v["impact"] in ("serious", "critical")
        ]

    return find


@pytest.fixture(scope="session")
def labelled_data() -> Path:
    """Folder with ChatGPT.jsonl, InstructGPT.jsonl and knowledge.jsonl (FActScore's release)."""
    folder = Path(os.environ.get("FACTTUNE_DATA", REPO.parent / "shared" / "data" / "factscore"))
    if not (folder / "ChatGPT.jsonl").exists():
        pytest.skip("labelled data not found: set FACTTUNE_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def spacy_pipeline(tmp_path_factory) -> str:
    """Folder of a spaCy pipeline that parses the sentences of tests/spacy_pipeline.py."""
    pytest.importorskip("spacy")
    made = runpy.run_path(str(REPO / "tests" / "spacy_pipeline.py"))
    return made["train"](tmp_path_factory.mktemp("spacy") / "pipeline")


@pytest.fixture(scope="session")
def human_score():
    """S / (S + NS) over a labelled record's facts, repeats included; None when it has neither."""

    def score(record) -> float | None:
        labels = [label for s in record.sentences for _, label in s.human_facts]
        judged = labels.count("S") + labels.count("NS")
        return labels.count("S") / judged if judged else None

    return score


@pytest.fixture(scope="module")
def one_thread():
    """Torch with one thread: more threads slow down tiny models."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
