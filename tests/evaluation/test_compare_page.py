"""`facttune compare --html`: the page of several runs, its figures, how it works in Chromium."""

import base64
import hashlib
import html
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.evaluation import compare_runs, compare_topics
from facttune_ray.evaluation.report import compare_page

ODD = "<script>alert('run')</script><img src=x onerror=alert('run')> <b>bold</b> &amp; 🎻"


@pytest.fixture(scope="module")
def runs(measured_run):
    """Two runs about ten topics: four facts a response, and three."""
    return [str(measured_run(topics=10, samples=2, facts=n, text=f" {ODD}")) for n in (4, 3)]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "compare.html"
    assert cli.main(["compare", *runs, "--html", str(file)]) == 0
    return file


@pytest.fixture
def copy(runs, tmp_path):
    """copy(): a copy of the second run, to damage."""
    return lambda: shutil.copytree(runs[1], tmp_path / "copy")


def net_change(t, right):
    """Of topic t: without fact 3, a response loses a correct or an incorrect fact."""
    return sum(-1 if (7 * t + 3 * s + 3) % 10 < right else 1 for s in (0, 1)) / 2


def test_changes_of_topics_come_from_the_counts(runs):
    shared = compare_topics.changes(runs, ["a", "b"])
    assert shared.topics == 10 and list(shared.models) == ["facttune_fs", "base"]
    for model, right in (("base", 5), ("facttune_fs", 8)):
        rows = shared.models[model]
        found = {r["topic"]: r["net"] for r in rows}
        assert found == {f"Topic {t:04d}": [net_change(t, right)] for t in range(10)}
        sizes = [abs(r["net"][0]) for r in rows]
        assert sizes == sorted(sizes, reverse=True)
    first = next(r for r in shared.models["base"] if r["topic"] == "Topic 0003")
    # topic 3 of base: 21 + 3s + k < 5 (mod 10): facts 0 to 3 of sample 0, fact 0 of sample 1
    assert first["runs"][0] == {"correct": 2.5, "incorrect": 1.5, "net": 1.0, "error_rate": 3 / 8}
    assert first["runs"][1] == {"correct": 2.0, "incorrect": 1.0, "net": 1.0, "error_rate": 2 / 6}
    assert first["error_rate"] == [2 / 6 - 3 / 8]


def test_the_page_has_the_figures_of_the_command(runs, page):
    text = html.unescape(re.sub(r"<[^>]+>", " ", page.read_text()))
    found = compare_runs.compare(runs)
    for r in found["paired"]:
        cut = r["error_rate_reduction"]
        assert f"{100 * cut['value']:.1f}%" in text
        assert f"{100 * cut['low']:.1f}% to {100 * cut['high']:.1f}%" in text
    for r in found["rows"]:
        assert f"{100 * r['error_rate']['value']:.1f}%" in text
    assert 'aria-label="Error rate: base' in page.read_text()
    names = [r["run"] for r in found["runs"]]
    assert ", ".join(names) in text and "The runs have the same settings" in text


def test_settings_that_differ_and_warnings_are_on_the_page(runs, copy, tmp_path):
    other = copy()
    summary = json.loads((other / "summary.json").read_text())
    summary["run"]["config"]["train"]["lr"] = 0.125
    summary["run"]["estimator"] = "<b>nli"
    (other / "summary.json").write_text(json.dumps(summary))
    file = tmp_path / "c.html"
    assert cli.main(["compare", runs[0], str(other), "--html", str(file)]) == 0
    text = file.read_text()
    assert '<th scope="row">train.lr</th><td class="words">5e-05</td>' in text
    assert '<td class="words">0.125</td>' in text
    assert "copy is judged by &lt;b&gt;nli" in text


def test_one_script_is_allowed_and_nothing_is_requested(page):
    text = page.read_text()
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.S)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    assert "alert(" not in text  # responses are packed


def test_a_run_of_other_topics_is_one_line(runs, measured_run, copy, tmp_path, capsys):
    words = ["--html", str(tmp_path / "c.html")]
    other = copy()
    csv = other / "csv/responses.csv"
    csv.write_text(csv.read_text().replace('"Topic ', '"Other '))
    assert cli.main(["compare", runs[0], str(other), *words]) == 2
    said = capsys.readouterr().err
    assert "shares no topic with copy: --html pairs the topics of models of the same" in said
    assert said.count("\n") == 1 and not (tmp_path / "c.html").exists()
    assert cli.main(["compare", runs[0], str(other)]) == 0  # the tables of the terminal say so
    assert "share no topic under a model of the same name" in capsys.readouterr().out
    assert cli.main(["compare", *runs, str(other), *words]) == 0  # of three, two share topics
    assert "share no topic" in (tmp_path / "c.html").read_text()


def damage(run, what):
    if what == "no csv":
        (run / "csv/responses.csv").unlink()
    elif what == "no scopes":
        summary = json.loads((run / "summary.json").read_text())
        del summary["run"]["scopes"]
        (run / "summary.json").write_text(json.dumps(summary))
    elif what == "no verdicts":
        shutil.rmtree(run / "base/test/verdicts")
    else:
        part = run / "base/test/facts/part-00000.parquet"
        pq.write_table(pq.read_table(part).drop_columns(["fact"]), part)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("no csv", "csv/responses.csv is missing or empty: run `facttune report` again"),
        ("no scopes", "summary.run.scopes is not as this version writes it: run `facttune report`"),
        ("no verdicts", "base/test/verdicts is not a finished table"),
        ("no column", "base/test/facts has no column fact: another version"),
    ],
)
def test_a_damaged_run_is_one_line(runs, copy, tmp_path, capsys, what, line):
    other = copy()
    damage(other, what)
    assert cli.main(["compare", runs[0], str(other), "--html", str(tmp_path / "c.html")]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize(("name", "line"), [("", "is a folder"), ("/x/c.html", "cannot write")])
def test_a_place_that_cannot_be_written_is_one_line(runs, tmp_path, capsys, name, line):
    (tmp_path / "x").write_text("a file")
    assert cli.main(["compare", *runs, "--html", f"{tmp_path}{name}"]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_runs_and_pages_may_be_on_an_object_store(runs, page, object_store):
    from pathlib import Path

    from facttune_ray.storage.folders import Folder

    there = object_store.uri("compared")
    Folder.of(there).upload(Path(runs[1]))
    out = object_store.uri("compare.html")
    assert cli.main(["compare", runs[0], there, "--html", out]) == 0
    made = Folder.of(out).read_bytes().decode()
    assert "compared: FactTune comparison" in made and "endpoint_override" not in made
    packed = re.compile(r'id="packed">([^<]+)<')
    assert packed.search(made)[1] == packed.search(page.read_text())[1]


def test_of_many_topics_the_most_changed_are_shown(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_topics, "MOST_TOPICS", 4)
    monkeypatch.setattr(compare_topics, "MOST_RESPONSES", 17)  # eight of each topic
    shared = compare_topics.changes(runs, ["a", "b"])
    assert [len(rows) for rows in shared.models.values()] == [4, 4] and len(shared.opened) == 2
    file = tmp_path / "c.html"
    compare_topics.write(runs, str(file))
    text = file.read_text()
    assert "6 of 10 shared topics changed least and are left out" in text
    assert "The page has the responses to 2 topics" in text
    assert len(set(re.findall(r"#topic=([^&]+)&amp;", text))) == 2


def names(page):
    return page.locator("section.model:visible tbody tr:visible th").all_inner_texts()


def test_opens_side_by_side_and_markup_is_inert(opened, page, runs):
    shown = opened(page)
    assert shown.said == [] and shown.asked == [page.as_uri()]
    heads = shown.locator("#topic h4").all_inner_texts()
    assert [h.split()[0] for h in heads] == [r.rsplit("/", 1)[1] for r in runs]
    assert [shown.locator("#topic section").nth(i).locator("li").count() for i in (0, 1)] == [4, 3]
    assert ODD in shown.locator("#topic .text").nth(1).inner_text()
    assert shown.locator("#topic script, #topic img, #topic .text b").count() == 0
    shown.locator("#topic li summary").first.click()
    assert "passage 0." in shown.locator("#topic li dl").first.inner_text()
    shown.get_by_label("next response").click()
    assert "response 2 of 2" in shown.inner_text("#topic")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert shown.evaluate(focused) == "previous response"


def test_every_topic_has_an_address(opened, page):
    shown = opened(page, "#topic=Topic%200007&model=base")
    head = "#topic h3"
    assert shown.inner_text(head) == "Topic 0007, base"
    assert shown.input_value("#by-model") == "base"
    assert shown.locator("tr[aria-current] th:visible").inner_text() == "Topic 0007"
    shown.locator("section.model:visible a", has_text="Topic 0002").click()
    assert shown.inner_text(head) == "Topic 0002, base"
    assert shown.url.endswith("#topic=Topic%200002&model=base")
    shown.go_back()
    shown.locator(head, has_text="Topic 0007").wait_for()
    shown.select_option("#by-model", "facttune_fs")
    shown.locator(head, has_text="Topic 0007, FactTune-FS").wait_for()
    shown.evaluate("location.hash = '#topic=%3Cimg src=x onerror=alert(1)%3E&model=constructor'")
    shown.locator(
        "#topic", has_text="<img src=x onerror=alert(1)> This page has no such"
    ).wait_for()
    assert shown.said == [] and shown.locator("#topic img").count() == 0
    shown.evaluate("location.hash = '#topic=Topic+0007&model=base'")  # as the report writes it
    shown.locator(head, has_text="Topic 0007, base").wait_for()


def test_topics_are_sorted_and_found(opened, page):
    shown = opened(page)
    assert len(names(shown)) == 10
    shown.click("section.model:visible th button:text('topic')")
    assert names(shown) == [f"Topic {t:04d}" for t in range(10)]
    by = "section.model:visible th button:text-is('net change')"
    shown.click(by)
    cells = shown.locator("section.model:visible tbody td:nth-last-child(2)")
    found = [float(c) for c in cells.all_inner_texts()]
    assert found == sorted((net_change(t, 8) for t in range(10)), reverse=True)
    shown.click(by)
    assert [float(c) for c in cells.all_inner_texts()] == found[::-1]
    assert shown.locator("th[aria-sort]:visible").get_attribute("aria-sort") == "ascending"
    shown.fill("#search", "0003")
    assert names(shown) == ["Topic 0003"] and shown.inner_text("#count") == "1 of 10 topics"


def test_the_page_works_by_keyboard(opened, page):
    shown = opened(page)
    shown.click("section.model:visible th button:text('topic')")
    shown.evaluate("location.hash = '#topic=Topic%200004'")
    shown.locator("#topic h3", has_text="Topic 0004").wait_for()
    shown.keyboard.press("j")
    shown.locator("#topic h3", has_text="Topic 0005").wait_for()
    shown.keyboard.press("k")
    shown.locator("#topic h3", has_text="Topic 0004").wait_for()
    shown.keyboard.press("/")
    shown.keyboard.type("0009")
    assert names(shown) == ["Topic 0009"]
    shown.keyboard.press("Escape")
    assert len(names(shown)) == 10 and shown.said == []


def test_tables_need_no_script_and_print_whole(chromium, page):
    context = chromium.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(page.as_uri())
    assert shown.locator("section.model:visible").count() == 2
    assert len(names(shown)) == 20 and "need JavaScript" in shown.inner_text("noscript")
    assert not shown.locator("form").is_visible()
    shown.emulate_media(media="print")
    boxes = "document.querySelectorAll('.tall')"
    context.close()
    context = chromium.new_context()
    shown = context.new_page()
    shown.goto(page.as_uri())
    shown.emulate_media(media="print")
    assert shown.evaluate(f"[...{boxes}].every((b) => b.scrollHeight <= b.clientHeight + 1)")
    assert not shown.locator("nav").is_visible() and not shown.locator("form").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(opened, page, serious_faults, scheme, width):
    shown = opened(page, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert serious_faults(shown) == []
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_headline_tells_clear_changes_from_others():
    def row(model, low, high):
        cut = {"value": 0.3, "low": low, "high": high}
        return {"run": "b", "model": model, "topics": 1200, "p_holm": 0.004} | {
            "error_rate_reduction": cut
        }

    rows = [row("facttune_fs", 0.2, 0.4), row("base", -0.1, 0.7), row("dola", None, None)]
    assert compare_page.headline({"runs": [{"run": "a"}], "paired": rows}) == [
        "FactTune-FS of b: the error rate is 30% lower than in a (95% interval 20.0% to 40.0%, p "
        "0.004) over 1,200 shared topics.",
        "No clear change of the error rate against a: base of b.",
        "Too few topics or errors for an interval: dola of b.",
    ]
