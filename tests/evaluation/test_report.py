import json
import re
import xml.etree.ElementTree as ET

import pytest

from facttune_ray.evaluation import (
    charts,
    charts_training,
    files,
    pictures,
    report,
    text,
)
from facttune_ray.evaluation.browser import Cards


def interval(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


NOTHING = {"value": None, "low": None, "high": None}


def model(correct, incorrect, words=18.0):
    return {
        "correct": interval(correct),
        "incorrect": interval(incorrect),
        "error_rate": interval(incorrect / (correct + incorrect), 0.02),
        **{k: interval(0.0, 0) for k in ("no_facts", "repeated", "unknown", "abstained")},
        "f1@12": interval(0.5),
        "recall@12": interval(0.4),
        "length": interval(words),
        "topics": 100,
        "responses": 1000,
        "failed": 0,
        "no_article": 0,
        "factscore": {
            "factscore": interval(0.6),
            "factscore_lp": interval(0.512),
            "respond_ratio": interval(0.9),
            "facts_per_response": interval(12.3),
            "abstained": 100,
            "gamma": 10.0,
        },
    }


def comparison(reduction, spread, correct_change):
    return {
        "error_rate_reduction": interval(reduction, spread),
        "correct_change": interval(correct_change),
        "incorrect_change": interval(-0.9),
        "p": {"error_rate": 0.004},
        "p_holm": {"error_rate": 0.0002},
        "wins": {"error_rate": {"win_rate": interval(0.8)}},
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
            "config": {"run": {"seed": 0, "note": "</pre><script>"}, "evaluation": {"k": []}},
            "versions": {"ray": "2.60.0"},
            "wall_s": 300.0,
            "split": "test",
            "estimator": "chat",
            "rewarded": ["facttune_fs"],
            "judge": "gpt",
            "fingerprints": {"base/test/facts": "f00"},
        },
        "k": [12],
        "second_opinion": {
            "estimator": "lexical",
            "models": {
                n: model(1.2, e) | {"facts": 90, "agree": 0.9, "kappa": 0.8}
                for n, e in (("base", 1.1), ("facttune_fs", 0.5))
            },
            "comparisons": {"facttune_fs": comparison(0.51, 0.04, 0.5)},
        },
        "judged": {},
        "length_matched": {},
        "groups": [],
        "kinds": [],
        "lengths": {},
        "human": {},
        "rewards": {},
        "reward_agreement": {},
        "heldout": {},
        "errors": [],
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
        "kappa": 0.5,
        "ece": 0.07,
        "prr": 0.6,
        "human_supported": 0.65,
        "estimated_supported": 0.6,
        "pearson_score": 0.867,
        "pearson_supported": None,
        "facts": 4877,
        "responses": 157,
        "no_verdict": 9,
        "no_article": 2,
        "abstained": 26,
    }
}


FACTS = [
    {"fact": "Mara <b>sings</b>.", "supported": False, "evidence": "She plays.", "human": "NS"},
    {"fact": "Mara was born in Ashgrove.", "supported": True, "question": "Where?"},
]
CARDS = Cards(
    [
        {
            "topic": "Mara Veldt",
            "prompt": "Write.",
            "split": "test",
            "group": None,
            "responses": [
                {"model": "base", "sample": 0, "text": "<script>alert(1)</script>", "facts": FACTS},
                {"model": "facttune_fs", "sample": 0, "text": None, "facts": []},
            ],
        }
    ]
)


def page_of(summary, cards=CARDS):
    return report.page(files.finite(summary), cards)


def test_report_is_self_contained(summary):
    page = page_of(summary)
    assert len(re.findall("<script", page)) == 3  # looks, packed responses, and the one that runs
    assert "@import" not in page and "alert(1)" not in page and "<b>sings" not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert not re.findall(r"url\((?!#)", page)
    assert "default-src 'none'" in page
    assert "FactTune-FS makes 63% fewer errors (95% interval 58.0% to 68.0%)" in page


def test_charts_are_well_formed_named_and_use_the_pages_colours(summary):
    page = page_of(summary)
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


def test_sections_without_data_are_left_out(summary):
    bare = summary | {"selection": {}, "training": {}, "comparisons": {}, "stages": []}
    bare["second_opinion"] = {}
    page = page_of(bare, Cards())
    for section in (
        "trust",
        "where",
        "selection",
        "training",
        "human",
        "rewards",
        "responses",
        "stages",
    ):
        assert f'id="{section}"' not in page and f'href="#{section}"' not in page
    assert 'id="result"' in page
    assert 'id="result"' not in page_of(bare | {"models": {}}, Cards())


def test_human_and_reward_sections(summary):
    counted = {"responses": 1500, "mean": 0.5, "sd": 0.1, "pairs": 6123}
    bins = [
        {"low": 0.3, "high": 0.4, "facts": 30, "confidence": 0.35, "supported": 0.2},
        {"low": 0.9, "high": 1.0, "facts": 70, "confidence": 0.95, "supported": 0.9},
    ]
    sure = {"facts": 100, "auroc": 0.71, "ece": 0.08, "prr": 0.44, "bins": bins}
    sure["curve"] = [[0.5, 0.1], [1.0, 0.3]]
    rewards = {"factscore": counted, "max_conf": counted | sure}
    agree = {"names": list(rewards), "spearman": [[1.0, -0.25], [-0.25, None]]}
    agree["order"] = [[1.0, 0.4], [0.4, None]]
    page = page_of(summary | {"human": HUMAN, "rewards": rewards, "reward_agreement": agree})
    assert "On ChatGPT, estimated verdicts agree with human labels at AUROC 0.834" in page
    assert "4,877" in page and "2 topics" in page
    assert "max_conf" in page and "0.710" in page and "6,123" in page
    assert "Reliability of confidence: max_conf AUROC 0.710" in page
    assert "Risk against coverage: max_conf PRR 0.44" in page
    assert "Rank correlation of rewards: factscore and max_conf -0.25" in page
    assert "Reliability" not in page_of(summary | {"rewards": {"factscore": counted}})


def test_second_opinion_and_tests_are_shown(summary):
    page = page_of(summary)
    assert "By the second estimator, lexical, its errors are 51% fewer (47.0% to 55.0%)." in page
    assert "&lt; 0.001" in page and "Holm" in page
    alone = summary | {"second_opinion": {}}
    said = "\n".join(text.notes(alone))
    assert "FactTune-FS is measured by the estimator that rewarded it (chat)" in said
    assert "FactTune-MC" not in said  # no verdict rewarded it


def test_a_judge_that_prefers_base_is_noted(summary):
    lost = {"pairs": 9, "wins": 1, "losses": 6, "ties": 2, "by_order": 1, "failed": 0, "p": 0.1}
    summary["judged"] = {"facttune_fs": {"fluency": lost | {"win_rate": interval(0.2)}}}
    assert "FactTune-FS loses in fluency" in text.notes(summary)[0]
    assert "gpt compared responses" in page_of(summary)


def test_groups_kinds_lengths_and_errors_are_shown(summary):
    models = {n: model(1.0, e) for n, e in (("base", 1.0), ("facttune_fs", 0.25))}
    bins = [{"words": w, "precision": 0.5, "responses": 10} for w in (10.0, 20.0)]
    summary |= {
        "groups": [{"group": g, "models": models} for g in ("rare", "frequent")],
        "kinds": [
            {
                "kind": "born in",
                "models": dict.fromkeys(summary["models"], {"correct": 0.1, "incorrect": 0.2}),
            }
        ],
        "lengths": {"base": {"spearman": -0.25, "bins": bins}},
        "errors": [
            {"table": "base/test/facts", "why": "x<y", "error": True, "rows": 3, "ids": ["f1"]}
        ],
    }
    page = page_of(summary)
    assert "rare: base 50.0%, FactTune-FS 20.0%; frequent" in page
    assert "rank correlation: base -0.25" in page and "born in" in page and "x&lt;y" in page


def test_a_model_without_any_judged_fact(summary):
    empty = model(1, 1) | dict.fromkeys(("correct", "incorrect", "error_rate", "length"), NOTHING)
    none = dict.fromkeys(("error_rate_reduction", "correct_change", "incorrect_change"), NOTHING)
    summary["models"]["facttune_fs"] = empty
    summary["comparisons"]["facttune_fs"] |= none
    assert "FactTune-FS states no fact that could be judged." in page_of(summary)
    assert " - " in text.table(summary)
    assert pictures.headline(summary)[:4] == b"\x89PNG"


def test_no_model_at_all_and_no_val_figure(summary):
    nothing = [candidate(f"facttune_fs/round_{k}", None, None) for k in (1, 2)]
    summary["selection"]["facttune_fs"]["candidates"] = nothing
    bare = summary | {"models": {}, "comparisons": {}, "training": {}}
    assert 'id="selection"' in page_of(bare)
    assert pictures.headline(bare)[:4] == b"\x89PNG"
    assert text.table(bare).split()[0] == "model"


def test_headline_says_what_happened(summary):
    fs, mc = text.headline(summary)
    assert "15.5% of its facts are wrong, against 45.7%" in fs
    assert "Correct facts a response: 2.51 against 1.63 (+0.88). By the second" in fs
    assert mc.startswith("FactTune-MC shows no clear change")
    summary["comparisons"]["facttune_mc"] = comparison(-0.2, 0.05, 0.0)
    assert "FactTune-MC makes 20% more errors (95% interval 15.0% to 25.0%)" in "".join(
        text.headline(summary)
    )


def test_notes_warn_of_what_the_headline_hides(summary):
    assert text.notes(summary) == []
    summary["models"]["facttune_mc"] |= {
        "failed": 250,
        "repeated": interval(0.34),
        "unknown": interval(0.06),
        "no_facts": interval(0.2),
        "length": interval(9.0),
    }
    said = "\n".join(text.notes(summary))
    for words in ("250 of 1250", "34.0% of its", "6.0% of the", "in 20.0% of", "9 words"):
        assert f"{words}" in said
    assert len(text.notes(summary)) == 5


def test_an_odd_model_name_is_shown_as_it_is(summary):
    summary["models"]["a$x_1$<i>"] = model(1.0, 1.0)
    summary["training"]["a$x_1$<i>"] = training_log(1, 3)
    page = page_of(summary)
    assert "<i>" not in page and "a$x_1$&lt;i&gt;" in page
    written = [t.text for t in ET.fromstring(charts.scatter(summary)).iter() if t.text]
    assert "a$x_1$<i>" in written


def test_first_step_of_a_round_has_no_order_yet():
    log = training_log(2, 3)
    assert charts_training.by_round(log, "reward_accuracy") == {
        1: [(2, 0.8), (3, 0.8)],
        2: [(5, 0.8), (6, 0.8)],
    }
    assert [s for s, _ in charts_training.by_round(log, "margin")[2]] == [4, 5, 6]
    measured = [{"round": r, "step": s, "margin": 0.5} for r, s in ((1, 0), (1, 3), (2, 2))]
    assert charts_training.held_out(log, measured, "margin") == [(0, 0.5), (3, 0.5), (5, 0.5)]
    log[3]["margin"] = None
    assert [s for s, _ in charts_training.by_round(log, "margin")[2]] == [5, 6]


def test_summary_is_strict_json_and_every_table_a_csv(summary):
    odd = summary | {"x": float("nan"), "y": [float("inf")], "z": ({"a": 1},)}
    made = files.contents(odd, {}, CARDS)
    found = json.loads(made["summary.json"], parse_constant=pytest.fail)
    assert (found["x"], found["y"], found["z"]) == (None, [None], [{"a": 1}])
    again = files.contents(dict(reversed(odd.items())), {}, CARDS)
    assert again["summary.json"] == made["summary.json"]
    names = ("models", "comparisons", "stages", "facts", "responses")
    assert {f"csv/{n}.csv" for n in names} <= set(made)
    head, first, *_ = made["csv/facts.csv"].decode().splitlines()
    assert head.startswith("topic,split,model,sample,fact,supported")
    assert first.startswith("Mara Veldt,test,base,0,Mara <b>sings</b>.,False")
    models = made["csv/models.csv"].decode().splitlines()
    assert "error_rate,error_rate.low,error_rate.high" in models[0] and len(models) == 4


def test_summary_in_markdown(summary):
    said = text.markdown(summary | {"human": HUMAN})
    assert "| FactTune-FS | 2.51 | 0.46 | 15.5% (13.5% to 17.5%) | -63% |" in said
    assert said.startswith("# quickstart")


def test_closing_table(summary):
    said = text.table(summary | {"human": HUMAN})
    lines = said.splitlines()
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
    assert text.duration(seconds) == shown


def test_picture_for_the_readme(summary):
    assert pictures.headline(summary)[:4] == b"\x89PNG"
    assert pictures.reliability(summary) == b""
