import json
import re
import time
import xml.etree.ElementTree as ET

import pytest

from facttune_ray.evaluation import charts, report


def interval(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


NOTHING = {"value": None, "low": None, "high": None}


def model(correct, incorrect, words=18.0):
    return {
        "correct": interval(correct),
        "incorrect": interval(incorrect),
        "error_rate": interval(incorrect / (correct + incorrect), 0.02),
        **{k: interval(0.0, 0) for k in ("no_facts", "repeated", "unknown")},
        "length": interval(words),
        "topics": 100,
        "responses": 1000,
        "failed": 0,
        "no_article": 0,
        "factscore": {
            "factscore": 0.6,
            "factscore_lp": 0.512,
            "respond_ratio": 0.9,
            "facts_per_response": 12.3,
            "abstained": 100,
            "gamma": 10.0,
        },
    }


def comparison(reduction, spread, correct_change):
    return {
        "error_rate_reduction": interval(reduction, spread),
        "correct_change": interval(correct_change),
        "incorrect_change": interval(-0.9),
    }


def training_log(rounds, steps):
    return [
        {
            "round": r,
            "step": s,
            "loss": 0.6931 - 0.003 * s,
            "reward_accuracy": 0.0 if s == 1 else 0.8,
            "margin": 0.01 * (s - 1),
        }
        for r in range(1, rounds + 1)
        for s in range(1, steps + 1)
    ]


def candidate(name, value, error_rate):
    figures = {"error_rate": error_rate, "correct": 2.5, "incorrect": 0.5}
    return {"round": name, "value": value} | figures


@pytest.fixture
def summary():
    stage = {"rows": 1000, "errors": 0, "wall_s": 61.5, "calls": 900, "cached": 100}
    return {
        "run": {
            "name": "quickstart",
            "seed": 0,
            "created": "2026-01-01T00:00:00+00:00",
            "fingerprint": "abc",
            "config": {"run": {"seed": 0, "note": "</pre><script>"}},
            "versions": {"ray": "2.60.0"},
            "wall_s": 300.0,
            "split": "test",
        },
        "models": {
            "base": model(1.63, 1.37),
            "facttune_fs": model(2.51, 0.46),
            "facttune_mc": model(1.9, 1.5),
        },
        "comparisons": {
            "facttune_fs": comparison(0.63, 0.05, 0.88),
            "facttune_mc": comparison(0.03, 0.05, 0.27),
        },
        "selection": {
            "facttune_fs": {
                "chosen": "facttune_fs/round_2",
                "metric": "val correct - incorrect",
                "candidates": [
                    candidate("facttune_fs/round_1", 1.2, 0.25),
                    candidate("facttune_fs/round_2", 2.0, 0.15),
                    candidate("facttune_fs/round_3", None, None),
                ],
            }
        },
        "training": {"facttune_fs": training_log(3, 80), "facttune_mc": training_log(1, 6)},
        "stages": [
            {"table": "base/test/facts", "tokens": 5, "cost_usd": 0.25} | stage,
            {"table": "base/test/verdicts", "tokens": 7, "cost_usd": 1.0} | stage | {"errors": 3},
        ],
    }


HUMAN = {
    "ChatGPT": {
        "auroc": 0.834,
        "accuracy": 0.75,
        "pearson_score": 0.867,
        "pearson_supported": None,
        "facts": 4877,
        "responses": 157,
        "no_verdict": 9,
        "no_article": 2,
        "abstained": 26,
    }
}


def fact(text, supported, **more):
    names = ("score", "evidence", "human_label", "question", "answers")
    return {"fact": text, "supported": supported, "repeated": False} | dict.fromkeys(names) | more


FACTS = [
    fact("Mara <b>sings</b>.", False, evidence="She plays.", score=0.12, human_label="NS"),
    fact("Mara was born in Ashgrove.", True, question="Where?", answers=["Ashgrove", "Veldt"]),
    fact("Mara was born in Ashgrove.", True, repeated=True),
    fact("Mara keeps a ferret.", None),
    fact(None, None),
]
EXAMPLES = [
    {
        "topic": "Mara Veldt",
        "prompt": "Write.",
        "responses": [
            {"model": "base", "text": "<script>alert(1)</script>", "facts": FACTS},
            {"model": "facttune_fs", "text": None, "facts": []},
        ],
    }
]


def page_of(tmp_path, summary, examples=EXAMPLES):
    report.write_report(summary, examples, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_report_is_self_contained_and_inert(tmp_path, summary):
    page = page_of(tmp_path, summary)
    assert "<script" not in page and "<link" not in page and "@import" not in page
    assert "&lt;script&gt;alert(1)" in page and "Mara &lt;b&gt;sings" in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert not re.findall(r"url\((?!#)", page)
    assert "default-src 'none'" in page
    assert "FactTune-FS makes 63% fewer errors (95% interval 58.0% to 68.0%)" in page


def test_every_fact_shows_its_verdict_in_words_and_mark(tmp_path, summary):
    page = page_of(tmp_path, summary)
    kinds = re.findall(r'<li class="(\w+)">', page)
    assert kinds == ["false", "true", "true", "unknown"]
    said = re.findall(r'<span class="hidden">([^<]*): </span>', page)
    assert said == ["not supported", "supported", "supported", "no verdict"]
    for shown in ("She plays.", "score 0.12", "Ashgrove / Veldt", "✗ human", "repeated</span>"):
        assert shown in page
    assert '<b class="good">1✓</b> <b class="bad">1✗</b> <b class="unsure">1?</b>' in page
    assert "1 of its sentences could not be split" in page


def test_charts_are_well_formed_named_and_use_the_pages_colours(tmp_path, summary):
    page = page_of(tmp_path, summary)
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(drawn) == 6  # scatter, error rates, rounds, three training curves
    for svg in drawn:
        root = ET.fromstring(svg)
        assert root.get("role") == "img" and root.get("aria-label")
        bare = re.sub(r"var\(--c[0-9a-f]{6}, #[0-9a-f]{6}\)", "", svg)
        assert not re.findall(r"#[0-9a-f]{6}[;\"]", bare) and "<text" in svg
    referred = set(re.findall(r"url\(#(\w+)\)", page)) | set(re.findall(r'href="#(\w+)"', page))
    ids = re.findall(r'\bid="(\w+)"', page)
    assert referred <= set(ids)
    assert len(ids) == len(set(ids))
    assert "base 1.63 correct, 1.37 incorrect; FactTune-FS 2.51 correct" in page


def test_sections_without_data_are_left_out(tmp_path, summary):
    bare = summary | {"selection": {}, "training": {}, "comparisons": {}, "stages": []}
    page = page_of(tmp_path, bare, [])
    for section in ("selection", "training", "human", "rewards", "responses", "stages"):
        assert f'id="{section}"' not in page and f'href="#{section}"' not in page
    assert 'id="result"' in page
    assert 'id="result"' not in page_of(tmp_path, bare | {"models": {}}, [])


def test_human_and_reward_sections(tmp_path, summary):
    counted = {"responses": 1500, "mean": 0.5, "sd": 0.1, "pairs": 6123}
    bins = [
        {"low": 0.3, "high": 0.4, "facts": 30, "confidence": 0.35, "supported": 0.2},
        {"low": 0.9, "high": 1.0, "facts": 70, "confidence": 0.95, "supported": 0.9},
    ]
    sure = {"facts": 100, "auroc": 0.71, "ece": 0.08, "bins": bins}
    rewards = {"factscore": counted, "max_conf": counted | sure}
    page = page_of(tmp_path, summary | {"human": HUMAN, "rewards": rewards})
    assert "On ChatGPT, estimated verdicts agree with human labels at AUROC 0.834" in page
    assert "4,877" in page and "2 topics" in page
    assert "max_conf" in page and "0.710" in page and "6,123" in page
    assert "Reliability of confidence: max_conf AUROC 0.710" in page
    assert "Reliability" not in page_of(tmp_path, summary | {"rewards": {"factscore": counted}})


def test_a_model_without_any_judged_fact(tmp_path, summary):
    empty = model(1, 1) | dict.fromkeys(("correct", "incorrect", "error_rate", "length"), NOTHING)
    none = dict.fromkeys(("error_rate_reduction", "correct_change", "incorrect_change"), NOTHING)
    summary["models"]["facttune_fs"] = empty
    summary["comparisons"]["facttune_fs"] = none
    assert "FactTune-FS states no fact that could be judged." in page_of(tmp_path, summary)
    assert " - " in report.table(summary)
    charts.headline_png(summary, tmp_path / "head.svg")
    told = "".join(ET.parse(tmp_path / "head.svg").getroot().itertext())
    assert "nothing judged" in told and "distinct facts a response, held-out topics" in told


def test_no_model_at_all_and_no_val_figure(tmp_path, summary):
    nothing = [candidate(f"facttune_fs/round_{k}", None, None) for k in (1, 2)]
    summary["selection"]["facttune_fs"]["candidates"] = nothing
    bare = summary | {"models": {}, "comparisons": {}, "training": {}}
    assert 'id="selection"' in page_of(tmp_path, bare)
    charts.headline_png(bare, tmp_path / "head.png")
    assert report.table(bare).split()[0] == "model"


def test_headline_says_what_happened(summary):
    fs, mc = report.headline(summary)
    assert "15.5% of its facts are wrong, against 45.7%" in fs
    assert fs.endswith("Correct facts a response: 2.51 against 1.63 (+0.88).")
    assert mc.startswith("FactTune-MC shows no clear change")
    summary["comparisons"]["facttune_mc"] = comparison(-0.2, 0.05, 0.0)
    assert "FactTune-MC makes 20% more errors (95% interval 15.0% to 25.0%)" in "".join(
        report.headline(summary)
    )


def test_notes_warn_of_what_the_headline_hides(summary):
    assert report.notes(summary) == []
    summary["models"]["facttune_mc"] |= {
        "failed": 250,
        "repeated": interval(0.34),
        "unknown": interval(0.06),
        "no_facts": interval(0.2),
        "length": interval(9.0),
    }
    said = "\n".join(report.notes(summary))
    for words in ("250 of 1250", "34.0% of its", "6.0% of the", "in 20.0% of", "9 words"):
        assert f"{words}" in said
    assert len(report.notes(summary)) == 5


def test_an_odd_model_name_is_shown_as_it_is(tmp_path, summary):
    summary["models"]["a$x_1$<i>"] = model(1.0, 1.0)
    summary["training"]["a$x_1$<i>"] = training_log(1, 3)
    page = page_of(tmp_path, summary)
    assert "<i>" not in page and "a$x_1$&lt;i&gt;" in page
    written = [t.text for t in ET.fromstring(charts.scatter(summary)).iter() if t.text]
    assert "a$x_1$<i>" in written


def test_first_step_of_a_round_has_no_order_yet():
    log = training_log(2, 3)
    assert charts.by_round(log, "reward_accuracy") == {
        1: [(2, 0.8), (3, 0.8)],
        2: [(5, 0.8), (6, 0.8)],
    }
    assert [s for s, _ in charts.by_round(log, "margin")[2]] == [4, 5, 6]
    log[3]["margin"] = None
    assert [s for s, _ in charts.by_round(log, "margin")[2]] == [5, 6]


def test_summary_is_strict_json(tmp_path, summary):
    odd = summary | {"x": float("nan"), "y": [float("inf")], "z": ({"a": 1},)}
    report.write_summary(odd, tmp_path)
    text = (tmp_path / "summary.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["x"], found["y"], found["z"]) == (None, [None], [{"a": 1}])
    report.write_summary(dict(reversed(odd.items())), tmp_path)
    assert (tmp_path / "summary.json").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_closing_table(summary):
    text = report.table(summary | {"human": HUMAN})
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["model", "correct", "incorrect"]
    assert lines[2].split() == (
        "FactTune-FS 2.51 0.46 15.5% (13.5% to 17.5%) -63% 0.0% 0.0% 18".split()
    )
    assert lines[0].index("words") + 5 == len(lines[1]) == len(lines[2])
    assert "0.834" in lines[-1]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.44, "0.4 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_duration(seconds, shown):
    assert report.duration(seconds) == shown


def test_picture_for_the_readme(tmp_path, summary):
    charts.headline_png(summary, tmp_path / "head.png")
    charts.headline_png(summary, tmp_path / "head.svg")
    assert (tmp_path / "head.png").read_bytes()[:4] == b"\x89PNG"
    told = "".join(ET.parse(tmp_path / "head.svg").getroot().itertext())
    for text in ("FactTune-FS", "45.7% wrong", "15.5% wrong", "correct"):
        assert text in told


def test_many_examples_stay_quick_and_small(tmp_path, summary):
    facts = [fact(f"Fact {i}.", i % 2 == 0, evidence="w " * 500) for i in range(20)]
    some = [{"model": m, "text": "text", "facts": facts} for m in ("base", "facttune_fs")]
    many = [{"topic": f"T{i}", "prompt": "P", "responses": some} for i in range(500)]
    started = time.monotonic()
    page = page_of(tmp_path, summary, many)
    assert time.monotonic() - started < 20
    assert len(page) < 25e6
