import json
import re
import xml.etree.ElementTree as ET

import pytest

from facttune_ray.evaluation.report import charts, charts_training, files, parts, pictures, text
from facttune_ray.evaluation.report import page as page_file
from facttune_ray.evaluation.report.browser import Cards

NOTHING = {"value": None, "low": None, "high": None}


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
    return page_file.page(files.finite(summary), parts.packed(cards.cards))


def test_report_is_self_contained(summary):
    page = page_of(summary)
    assert len(re.findall("<script", page)) == 4  # looks, index, a part, and the one that runs
    assert "@import" not in page and "alert(1)" not in page and "<b>sings" not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert not re.findall(r"url\((?!#)", page)
    assert "default-src 'none'" in page and "strict-dynamic" not in page
    assert "error rate is 63% lower than the base model" in page


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
        "hacking",
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


def test_human_and_reward_sections(summary, human):
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
    page = page_of(summary | {"human": human, "rewards": rewards, "reward_agreement": agree})
    assert "On ChatGPT, estimated verdicts agree with human labels at AUROC 0.834" in page
    assert "4,877" in page and "2 topics" in page
    assert "max_conf" in page and "0.710" in page and "6,123" in page
    assert "Reliability of confidence: max_conf AUROC 0.710" in page
    assert "Risk against coverage: max_conf PRR 0.44" in page
    assert "Rank correlation of rewards: factscore and max_conf -0.25" in page
    assert "Reliability" not in page_of(summary | {"rewards": {"factscore": counted}})


def test_second_opinion_and_tests_are_shown(summary):
    second = summary["second_opinion"]["comparisons"]["facttune_fs"]
    second["p_holm"] = {"error_rate": 0.0312}
    page = page_of(summary)
    assert "By the second estimator, lexical, it is 51% lower (47.0% to 55.0%)." in page
    assert "0.031" in page and "took no part in training" in page  # not the p without Holm's
    assert "&lt; 0.001" in page and "Holm" in page
    alone = summary | {"second_opinion": {}}
    fs, mc = text.headline(alone)
    assert fs.endswith(
        "No independent judge: chat rewarded this model and measured it, which flatters it "
        "(evaluation.estimator)."
    )
    assert "judge" not in mc  # no verdict rewarded it
    page = page_of(alone)
    assert text.notes(alone) == [] and fs.replace("'", "&#39;") in page
    assert page.count("by the judge that rewarded it") == 1
    assert text.table(alone).startswith("FactTune-FS: No independent judge: chat rewarded")
    assert text.table(summary).startswith("model")
    summary["second_opinion"] |= {"estimator": "chat+lexical", "shared": ["chat"]}
    page = page_of(summary)
    assert "chat+lexical shares chat with it" in page and "took no part" not in page
    assert "chat rewarded this model, and the second estimator shares chat with it" in page


def test_a_judge_that_prefers_base_is_noted(summary, made):
    lost = {"pairs": 9, "wins": 1, "losses": 6, "ties": 2, "by_order": 1, "failed": 0}
    lost |= {"win_rate": made.interval(0.2), "p": 0.01, "p_holm": 0.0212}
    summary["judged"] = {"facttune_fs": {"fluency": lost}}
    assert "FactTune-FS loses in fluency" in text.notes(summary)[0]
    page = page_of(summary)
    assert "gpt compared responses" in page and "<td>0.021</td>" in page
    lost["p_holm"] = 0.08  # the interval alone is no test
    assert text.notes(summary) == []


def test_groups_kinds_lengths_and_errors_are_shown(summary, made):
    models = {n: made.model(1.0, e) for n, e in (("base", 1.0), ("facttune_fs", 0.25))}
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


def test_a_model_without_any_judged_fact(summary, made):
    empty = made.model(1, 1) | dict.fromkeys(
        ("correct", "incorrect", "error_rate", "length"), NOTHING
    )
    none = dict.fromkeys(("error_rate_reduction", "correct_change", "incorrect_change"), NOTHING)
    summary["models"]["facttune_fs"] = empty
    summary["comparisons"]["facttune_fs"] |= none
    assert "FactTune-FS states no fact that could be judged." in page_of(summary)
    assert " - " in text.table(summary)
    assert pictures.headline(summary)[:4] == b"\x89PNG"


def test_no_model_at_all_and_no_val_figure(summary, made):
    nothing = [made.candidate(f"facttune_fs/round_{k}", None, None) for k in (1, 2)]
    summary["selection"]["facttune_fs"] |= {"candidates": nothing, "metric": None}
    bare = summary | {"models": {}, "comparisons": {}, "training": {}}
    page = page_of(bare)
    assert 'id="selection"' in page and "the last: no val topic gave a figure" in page
    assert "FactTune-FS: no val topic gave a figure to choose a round by" in page
    assert pictures.headline(bare)[:4] == b"\x89PNG"
    assert text.table(bare).split()[0] == "model"


def test_rows_over_different_topics_are_labelled(summary, made):
    summary["models"]["ChatGPT"] = made.model(1.0, 1.0)
    summary["run"]["splits"]["ChatGPT"] = "all"
    page = page_of(summary)
    assert page.count("<small>test topics</small>") > 3 and "<small>all topics</small>" in page
    assert "Held-out topics (split test), or all of them, as each row says" in page
    assert "ChatGPT, all topics" in text.table(summary)
    assert "base, test topics" in text.markdown(summary)
    assert pictures.headline(summary)[:4] == b"\x89PNG"


def test_a_penalty_of_zero_is_not_mentioned(summary):
    told = "a response of at most 10 facts is penalised"
    assert told in page_of(summary)
    for m in summary["models"].values():
        m["factscore"]["gamma"] = 0.0
    page = page_of(summary)
    assert "penalised" not in page and "as in the\noriginal.\n" in page


def test_the_page_explains_time_files_and_pairs(summary):
    summary["rewards"] = {"factscore": {"responses": 9, "mean": 0.5, "sd": 0.1, "pairs": 8}}
    summary["run"]["config"]["groups"]["max_pairs"] = 4
    page = page_of(summary)
    assert "have the same" not in page and "Made in" not in page
    assert "Its tables took 5 min 00 s in all, some of them at the same time" in page
    assert "preferences that the reward\nmakes, at most 4 a prompt (groups.max_pairs)." in page


def test_a_model_name_with_markup_is_escaped(summary, made):
    summary["models"]["a$x_1$<i>"] = made.model(1.0, 1.0)
    summary["training"]["a$x_1$<i>"] = made.training_log(1, 3)
    page = page_of(summary)
    assert "<i>" not in page and "a$x_1$&lt;i&gt;" in page
    written = [t.text for t in ET.fromstring(charts.scatter(summary)).iter() if t.text]
    assert "a$x_1$<i>" in written


def test_first_step_of_a_round_has_no_order_yet(made):
    log = made.training_log(2, 3)
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


def test_picture_for_the_readme(summary):
    assert pictures.headline(summary)[:4] == b"\x89PNG"
    assert pictures.reliability(summary) == b""
