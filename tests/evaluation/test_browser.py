"""report.html in headless Chromium: no requests, inert markup, speed, keyboard, accessibility."""

import time

import pytest

ODD = "<script>alert('run')</script><img src=x onerror=alert('run')></script><b>bold</b> &amp; 🎻"


@pytest.fixture(scope="module")
def report(measured_run):
    return measured_run(topics=45, samples=2, text=f" {ODD}") / "report.html"


def shown(page):
    return page.inner_text("#count").split(" prompts")[0].replace(",", "")


def test_opens_without_console_output_or_requests_and_markup_is_inert(opened, report):
    page = opened(report)
    assert page.said == [] and page.asked == [report.as_uri()]
    first = page.locator("#cards section .text").first
    assert ODD in first.inner_text()
    assert page.locator("#cards script, #cards img, #cards section b:text-is('bold')").count() == 0
    before = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert before and "Topic 0000" in page.inner_text("#cards summary >> nth=0")


def test_facts_show_verdict_evidence_question_samples_and_second_opinion(opened, report):
    page = opened(report)
    sides = page.locator("#cards .topic").first.locator("section h4")
    assert [h.split()[1] for h in sides.all_inner_texts()] == ["base", "FactTune-FS"]
    facts = page.locator("#cards .topic").first.locator("section").first.locator("ul.facts > li")
    # topic 0, sample 0 of base: facts 0 to 3 are right (k < 5)
    assert facts.evaluate_all("all => all.map(f => f.className)") == ["true"] * 4
    said = facts.first.locator("summary").inner_text().split("\n")
    assert said == ["✓", "supported:", "Topic 0000 was born in 1900."]
    facts.first.locator("summary").click()
    assert "Topic 0000 passage 0." in facts.first.locator("dl").inner_text()
    page.select_option("#by-split", "train")
    asked = page.locator("#cards .topic").first.locator("ul.facts > li").first
    asked.locator("summary").click()
    said = asked.locator("dl").inner_text()
    assert "When was it?" in said and "1900 / 1901 / (empty)" in said and "share 100%" in said
    page.select_option("#by-split", "test")
    page.select_option("#by-verdict", "second")
    chips = page.locator("#cards .chip").all_inner_texts()
    assert chips and set(chips) == {"✓ lexical"}


def test_samples_turn_and_sentences_are_marked_by_their_worst_fact(opened, report):
    page = opened(report)
    topic = page.locator("#cards .topic").first
    topic.get_by_label("next sample").click()
    assert "sample 2 of 2" in topic.inner_text()
    # sample 1 of base: 3 + k < 5, so the last two sentences are wrong
    marked = topic.locator("section").first.locator(".sentence")
    kinds = marked.evaluate_all("all => all.map(s => s.className)")
    assert kinds == ["sentence true"] * 2 + ["sentence false"] * 2
    assert marked.nth(2).inner_text() == "Topic 0000 was born in 1902."
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "previous sample"


def test_the_browser_works_by_keyboard(opened, report):
    page = opened(report)
    press = page.keyboard.press
    assert shown(page) == "1 to 20 of 90"
    press("n")
    assert shown(page) == "21 to 40 of 90"
    focused = "document.activeElement.innerText.split('\\n')[0]"
    assert page.evaluate(focused).startswith("Topic 0020")
    press("j")
    assert page.evaluate(focused).startswith("Topic 0021")
    press("Enter")
    assert page.locator("#cards .topic[open]").count() == 2
    press("k")
    press("p")
    assert shown(page) == "1 to 20 of 90"
    press("/")
    page.keyboard.type("topic 0007 1902")
    page.locator("#count", has_text=" of 2 ").wait_for()
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "by-verdict"
    press("ArrowDown")  # with a wrong fact
    assert page.evaluate("document.activeElement.value") == "wrong"
    page.locator("#search").focus()
    press("Escape")
    page.locator("#count", has_text=" prompts").wait_for()
    page.locator("#count", has_not_text=" of 2 ").wait_for()
    assert page.said == []


def test_filters_and_order(opened, report):
    page = opened(report)
    for name, value, expected in (
        ("split", "test", "45"),
        ("group", "rare", "23"),
        ("verdict", "right", None),
        ("model", "facttune_fs", None),
    ):
        page.select_option(f"#by-{name}", value)
        if expected:
            assert shown(page).split(" of ")[1] == expected
    # all four facts of a tuned sample right: 7t + 3s + k < 8 (mod 10) for k in 0..3
    right = [t for t in range(0, 45, 2) if {(7 * t) % 10, (7 * t + 3) % 10} & set(range(5))]
    assert shown(page).split(" of ")[1] == str(len(right))
    heads = page.locator("#cards section h4").all_inner_texts()
    assert heads and all("FactTune-FS" in h for h in heads)
    page.select_option("#by-verdict", "unknown")
    assert page.inner_text("#count") == "nothing matches these filters"
    page.select_option("#by-verdict", "all")
    page.select_option("#by-sort", "topic")
    assert "Topic 0000" in page.inner_text("#cards summary >> nth=0")


def test_the_worst_response_is_shown_first(opened, report):
    page = opened(report)

    def wrong():
        return int(page.inner_text("#cards section h4 .tally >> nth=0").split("✗")[0].split()[-1])

    page.select_option("#by-model", "base")
    first = wrong()
    page.select_option("#by-sort", "response")
    page.locator("#cards[aria-busy=false]").wait_for()
    assert wrong() == 4 > first  # every fact of a response is wrong
    assert "0✓" in page.inner_text("#cards section h4 .tally >> nth=0")

    def wrong_facts(model):
        tallies = page.locator(f"#cards summary > .tally:has-text('{model}')").all_inner_texts()
        return [int(t.split("✗")[0].split()[-1]) for t in tallies]

    for model, name in (("facttune_fs", "FactTune-FS"), ("base", "base")):
        page.select_option("#by-model", model)
        page.select_option("#by-sort", "none")
        most = max(wrong_facts(name))
        page.select_option("#by-sort", "wrong")  # of the chosen model alone
        page.locator("#cards[aria-busy=false]").wait_for()
        assert wrong_facts(name) == sorted(wrong_facts(name), reverse=True)
        assert wrong_facts(name)[0] >= most


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(opened, report, serious_faults, scheme, width):
    page = opened(report, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_button_switches_to_dark(opened, report):
    page = opened(report, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != light
    page.click("#theme")
    assert page.evaluate(ground) == light


@pytest.mark.slow
def test_5000_responses_open_in_three_seconds_in_20_megabytes(opened, measured_run):
    report = measured_run(topics=250, samples=10, facts=20, noise=6) / "report.html"
    assert 5e6 < report.stat().st_size <= 20e6
    took = []
    for _ in range(2):  # the better of two: others may be at work on this machine
        started = time.monotonic()
        page = opened(report)
        took.append(time.monotonic() - started)
    assert "5,000 responses" in page.inner_text("#count")
    assert page.said == [] and min(took) <= 3
    painted_ms = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert page.evaluate(painted_ms) < 1000
