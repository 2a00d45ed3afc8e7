"""The recorded report of `facttune demo`. If today's report has another form, record it again, as
commands/demo.py says."""

import base64
import gzip
import json
import re

import pytest

from facttune_ray.commands import demo

# The recorded topics are of the split test alone, whose facts need no questions.
NOT_RECORDED = {"by-split", "question", "answers", "conf"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return demo.demo(str(tmp_path_factory.mktemp("demo") / "demo.html"))


@pytest.fixture(scope="module")
def report(measured_run):
    return measured_run(topics=10) / "report.html"


def ids(page):
    """Of sections and of the browser's controls, not of charts."""
    return set(re.findall(r'<(?:h[23]|summary|select|input|div|button)[^>]* id="([\w-]+)"', page))


def facts(page):
    """The keys of all facts of a page."""
    packed = re.findall(r'id="part-\w+">([^<]+)<', page)
    parts = [json.loads(gzip.decompress(base64.b64decode(p))) for p in packed]
    responses = [r for p in parts for c in p.get("cards", ()) for r in c["responses"]]
    return {k for r in responses for f in r["facts"] for k in f}


def test_it_has_the_sections_and_the_facts_of_todays_report(recorded, report):
    old, new = recorded.read_text(), report.read_text()
    assert ids(new) - NOT_RECORDED <= ids(old)
    assert facts(new) - NOT_RECORDED <= facts(old)
    columns = re.compile(r'<th scope="col">([a-zA-Z ]+)</th>')
    assert set(columns.findall(new)) - NOT_RECORDED <= set(columns.findall(old))


def test_it_opens_without_console_output_or_requests(opened, recorded):
    page = opened(recorded)
    assert page.said == [] and page.asked == [recorded.as_uri()]
    assert page.inner_text("#recorded").startswith("A recorded run.")
    assert page.locator("#cards .topic").count() == 20
