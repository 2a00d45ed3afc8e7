import json
import re

import pytest

from facttune_ray.evaluation import report


def interval(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


def model(correct, incorrect):
    return {
        "correct": interval(correct),
        "incorrect": interval(incorrect),
        "error_rate": interval(incorrect / (correct + incorrect), 0.02),
        **{k: interval(0.0, 0) for k in ("no_facts", "repeated", "unknown")},
        "length": interval(18.0),
        "topics": 100,
        "responses": 1000,
        "failed": 0,
    }


@pytest.fixture
def summary():
    change = {
        "error_rate_reduction": interval(0.65, 0.05),
        "correct_change": interval(0.9),
        "incorrect_change": interval(-0.9),
    }
    stage = {"rows": 1000, "errors": 0, "wall_s": 1.5, "calls": 900, "cached": 100}
    return {
        "run": {
            "name": "quickstart",
            "seed": 0,
            "created": "2026-01-01T00:00:00+00:00",
            "fingerprint": "abc",
            "config": {"run": {"seed": 0}},
            "versions": {"ray": "2.60.0"},
            "wall_s": 300.0,
            "split": "test",
        },
        "models": {"base": model(1.6, 1.3), "facttune_fs": model(2.5, 0.4)},
        "comparisons": {"facttune_fs": change},
        "selection": {
            "facttune_fs": {
                "chosen": "facttune_fs/round_1",
                "metric": "val correct - incorrect",
                "candidates": [
                    {
                        "round": "facttune_fs/round_1",
                        "value": 2.0,
                        "error_rate": 0.15,
                        "correct": 2.5,
                        "incorrect": 0.5,
                    }
                ],
            }
        },
        "training": {
            "facttune_fs": [
                {"round": 1, "step": s, "loss": 0.69 - s / 100, "reward_accuracy": 0.5}
                for s in range(5)
            ]
        },
        "stages": [{"table": "base/test/facts", "tokens": 5, "cost_usd": 0.0} | stage],
    }


EXAMPLES = [
    {
        "topic": "Mara Veldt",
        "prompt": "Write.",
        "responses": [
            {
                "model": "base",
                "text": "<script>alert(1)</script>",
                "facts": [
                    {
                        "fact": "Mara <b>sings</b>.",
                        "supported": False,
                        "evidence": "She plays.",
                        "human_label": None,
                        "repeated": False,
                    }
                ],
            }
        ],
    }
]


def test_report_is_self_contained_and_inert(tmp_path, summary):
    report.write_report(summary, EXAMPLES, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page and "Mara &lt;b&gt;sings" in page
    assert not re.findall(r'(?:src|href)="(?!#)', page.replace("xlink:href", "href"))
    assert "FactTune-FS has a 65.0% lower error rate" in page
    assert page.count("<svg") == 2


def test_sections_without_data_are_left_out(tmp_path, summary):
    bare = summary | {"selection": {}, "training": {}, "comparisons": {}}
    report.write_report(bare, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Which round" not in page and "fact by fact" not in page


def test_summary_is_strict_json(tmp_path, summary):
    report.write_summary(summary | {"x": float("nan"), "y": [float("inf")]}, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (found["x"], found["y"]) == (None, [None])


def test_closing_table(summary):
    lines = report.table(summary).splitlines()
    assert lines[0].split()[:3] == ["model", "correct", "incorrect"]
    assert lines[2].startswith("FactTune-FS") and "-65%" in lines[2]
