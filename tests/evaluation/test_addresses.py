"""Addresses, traces and parts of report.html in headless Chromium, as a file and over HTTP."""

import base64
import functools
import gzip
import http.server
import json
import re
import shutil
import threading
from urllib.parse import urlsplit

import pytest

from facttune_ray.evaluation.report import parts

READY = "#cards[aria-busy=false]"
MARKUP = "<script>alert('run')</script><img src=x onerror=alert('run')>"
IN_VIEW = "n => { const r = n.getBoundingClientRect(); return r.top >= 0 && r.top < innerHeight }"


def steps_of(rows):
    """A trace for each fact, in the form of stages/traces.py."""
    asked = {"text": "True", "model": "judge-1", "prompt_tokens": 1234, "completion_tokens": 2}
    asked |= {"cost_usd": 0.00042, "latency_s": 0.731, "attempts": 2}
    odds = [["start of every fact", -0.7], ["words in the best sentence", 2.2]]
    return {
        f["fact_id"]: [
            {
                "stage": "verdicts",
                "by": "judge-1",
                "messages": [["system", "You judge."], ["user", f"{f['fact']}\n{MARKUP}"]],
                "params": {"temperature": 0.0},
                "answers": [asked],
            },
            {"stage": "second opinion", "by": "lexical", "threshold": 0.5, "score": 0.818}
            | {"sentence": "She was born.", "parts": odds},
        ]
        for f in rows["facts"]
    }


@pytest.fixture(scope="module")
def report(measured_run):
    return measured_run(topics=45, samples=2, traces=steps_of) / "report.html"


@pytest.fixture(scope="module")
def large(measured_run):
    """A report with most of its parts beside the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "INLINE_BYTES", 30_000)
        patch.setattr(parts, "PART_FACTS", 200)
        file = measured_run(topics=45, samples=2, noise=3, traces=steps_of) / "report.html"
    assert 5 < len(list((file.parent / "report_data").iterdir())) < 40
    return file


@pytest.fixture
def served(large):
    """Address of the folder of `large` on a local HTTP server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=large.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/report.html"
        server.shutdown()


def go(page, address):
    """Follow an address as a reader does who types it into the address bar."""
    page.evaluate("a => { location.hash = a }", address)
    page.wait_for_timeout(50)
    page.wait_for_selector(READY)


def target(page):
    page.wait_for_selector(".target")
    assert page.locator(".target").count() == 1
    assert page.locator(".target").evaluate(IN_VIEW)
    return page.locator(".target")


def test_the_address_of_a_fact_opens_it_whatever_the_filters_say(opened, report):
    fact = "facttune_fs/round_1/test/31/1/2"
    for at in (f"#fact={fact}", f"#model=base&verdict=wrong&q=nothing&fact={fact}&topic=elsewhere"):
        page = opened(report, at)
        assert "Topic 0031 was born in 1902." in target(page).inner_text()
        assert page.evaluate("document.activeElement.className") == "true target"
        assert target(page).locator("dl").is_visible()
        assert "sample 2 of 2" in page.locator("#cards .topic[open]").inner_text()
        assert page.inner_text("#count").startswith("21 to 40 of 90")
        assert page.input_value("#by-model") == page.input_value("#search") == ""
        assert page.said == [] and page.locator("#missing").is_hidden()


def test_topics_responses_and_lists_have_addresses_that_their_links_give(opened, report):
    page = opened(report, "#topic=Topic+0007&verdict=wrong&model=facttune_fs")
    assert target(page).locator("summary strong").first.inner_text() == "Topic 0007"
    assert page.input_value("#by-model") == "facttune_fs"  # it does not hide the topic
    heads = page.locator("#cards .topic[open] h4").all_inner_texts()
    assert heads and all("FactTune-FS" in h for h in heads)
    link = page.locator("#cards .topic[open] section .link").first
    assert link.get_attribute("href") == (
        "#topic=Topic+0007&response=facttune_fs%2Fround_1%2Ftest%2F7%2F0"
    )
    link.click()
    page.wait_for_selector("section.target")
    assert "FactTune-FS" in target(page).locator("h4").inner_text()
    page.select_option("#by-verdict", "right")
    listed = page.locator("#filter-link a").get_attribute("href")
    assert listed == page.evaluate("location.hash") == "#verdict=right&model=facttune_fs"
    again = opened(report, listed)
    assert again.inner_text("#count") == page.inner_text("#count")
    assert again.input_value("#by-verdict") == "right"


def test_back_and_forward_restore_what_was_shown(opened, report):
    page = opened(report)
    untouched = page.inner_text("#count")
    page.select_option("#by-split", "test")
    page.click("#next")
    second = page.inner_text("#count")
    assert second.startswith("21 to 40 of 45")
    page.fill("#search", "topic 0007")
    page.locator("#count", has_text="1 to 1 of 1").wait_for()
    page.go_back()
    page.wait_for_function("t => document.querySelector('#count').textContent === t", arg=second)
    page.go_back()
    page.go_back()
    page.wait_for_function("t => document.querySelector('#count').textContent === t", arg=untouched)
    assert page.input_value("#by-split") == ""
    page.go_forward()
    page.locator("#count", has_text="1 to 20 of 45").wait_for()
    assert page.input_value("#by-split") == "test"


@pytest.mark.parametrize(
    "at, line",
    [
        ("#fact=none", 'This page has no fact "none".'),
        ("#response=none&verdict=wrong", 'This page has no response "none".'),
        ("#topic=T%26%3D", 'This page has no topic "T&=".'),
        ("#verdict=__proto__", 'This page has no verdict "__proto__".'),
        ("#sort=constructor&page=0", 'This page has no sort "constructor" and no page "0".'),
        ("#colour=red", 'This page has nothing that is called "colour".'),
        ("#chart-result-99", 'This page has no part "chart-result-99".'),
        ("#%E0%A4%A", 'This page has no part "%E0%A4%A".'),
        (f"#topic={MARKUP}", f'This page has no topic "{MARKUP}".'),
        (f"#{MARKUP.replace('=', '')}", f'This page has no part "{MARKUP.replace("=", "")}".'),
    ],
)
def test_an_address_in_vain_says_so_in_one_line_and_markup_in_it_is_inert(opened, report, at, line):
    page = opened(report, at)
    page.locator("#missing:not([hidden])").wait_for()
    assert page.locator("#missing").text_content() == line
    assert page.locator("#missing").evaluate(IN_VIEW)
    assert page.said == [] and page.locator("#missing *").count() == 0
    assert page.inner_text("#count").startswith("1 to 20 of ")
    go(page, "#topic=Topic+0003")
    assert page.locator("#missing").is_hidden() and target(page).is_visible()


def test_sections_charts_and_closed_boxes_have_addresses(opened, report):
    page = opened(report, "#chart-result-1")
    assert target(page).evaluate("n => n.tagName") == "FIGURE"
    go(page, "#prints")
    assert target(page).is_visible()  # in a box that was closed
    for link in page.locator("main > .link, figure > .link").all():
        name = link.get_attribute("href")[1:]
        assert page.evaluate("n => document.getElementById(n) !== null", name), name
    page.locator("figure .link").nth(1).click()
    assert page.evaluate("location.hash") == "#chart-result-2"
    page.wait_for_selector("#chart-result-2.target")


def test_a_link_copies_its_address(opened, report):
    page = opened(report, permissions=["clipboard-read", "clipboard-write"])
    link = page.locator("ul.facts .link").first
    link.click()
    page.locator("#copied", has_text="The address is copied.").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url == report.as_uri() + "#topic=Topic+0000&fact=base%2Ftest%2F0%2F0%2F0"


def test_one_click_shows_what_a_judge_read_and_said(opened, report):
    page = opened(report)
    fact = page.locator("ul.facts > li").first
    fact.get_by_role("button", name="trace of Topic 0000 was born in 1900.").click()
    trace = fact.locator(".trace")
    trace.locator("h5").first.wait_for()
    said = trace.inner_text()
    assert f"Topic 0000 was born in 1900.\n{MARKUP}" in said and "You judge." not in said
    assert (
        "judge-1, 1,234 prompt tokens, 2 completion tokens, $0.00042, 0.731 s, 2 attempts" in said
    )
    assert "Answer\nTrue" in said.replace("\n\n", "\n") and "temperature 0" in said
    assert "words in the best sentence\t+2.20" in said and "log-odds\t+1.50" in said
    trace.locator("summary").first.click()
    assert "You judge." in trace.inner_text()
    link = trace.locator(".link").get_attribute("href")
    assert (
        opened(report, link).locator(".target .trace h5").first.inner_text() == "Verdict: judge-1"
    )
    assert page.said == []


@pytest.mark.parametrize("way", ["file", "http"])
def test_parts_beside_the_page_are_read_when_they_are_needed(opened, large, request, way):
    page = opened(large if way == "file" else request.getfixturevalue("served"))
    assert not any("report_data" in url for url in page.asked)  # the page alone opens
    fact = "base/tune/40/1/3"  # in the last part
    go(page, f"#topic=Topic+0040&fact={fact}&trace=1")
    assert "was born in 1903" in target(page).inner_text()
    page.locator(".target .trace h5").first.wait_for()
    read = [url for url in page.asked if "report_data" in url]
    assert 2 <= len(read) <= 4  # the part of each split's topic, and the trace
    assert {urlsplit(url).netloc for url in page.asked} == {urlsplit(page.url).netloc}
    page.fill("#search", "topic 0044 1902")
    page.locator("#count", has_text=" of 2 prompts").wait_for()
    assert page.said == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)>')")
    page.wait_for_timeout(100)
    assert page.said and "1" not in page.said  # the policy refuses it


def test_a_page_without_the_folder_beside_it_says_what_is_missing(opened, large, tmp_path):
    alone = shutil.copy(large, tmp_path / "report.html")
    page = opened(alone, "#topic=Topic+0044")
    line = page.locator("#cards .topic[open] .bad", has_text="report_data")
    line.wait_for()
    assert "is not beside this page: copy its folder with the page" in line.inner_text()
    go(page, "#topic=Topic+0000")
    assert page.locator("#cards .topic[open] ul.facts > li").count() > 0
    page.fill("#search", "1902")
    said = page.locator("#missing", has_text="The search is incomplete: report_data/")
    said.wait_for()
    go(page, "#topic=Topic+0044&fact=c07e")
    page.locator("#missing", has_text='no fact "c07e" that can be read: report_data/').wait_for()


def parts_of(file):
    """The names of the parts in the index of a page."""
    found = re.search(r'id="index"[^>]*>([^<]+)<', file.read_text())
    index = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return {name for names in index["parts"] for name in names}


def test_every_part_of_the_index_is_in_the_page_or_beside_it(large):
    page = large.read_text()
    there = {f.name.removesuffix(".js") for f in (large.parent / "report_data").iterdir()}
    inside = set(re.findall(r'id="part-(\w+)"', page))
    assert parts_of(large) == there | inside and not there & inside
    assert len(page) < 500_000 and "'strict-dynamic'" in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_an_open_trace(opened, report, serious_faults, scheme):
    narrow = {"color_scheme": scheme, "viewport": {"width": 390, "height": 900}}
    page = opened(report, "#topic=Topic+0002&fact=base/test/2/0/1&trace=1", **narrow)
    page.locator(".target .trace h5").first.wait_for()
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(media="print")
    assert page.locator(".link:visible, .tools:visible, #missing:visible").count() == 0
