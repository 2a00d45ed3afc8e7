"""A summary in words."""

import pytest

from facttune_ray.evaluation.report import text


def test_headline_by_hand(summary, made):
    fs, mc = text.headline(summary)
    assert "15.5% of its facts are wrong, against 45.7%" in fs
    assert "Correct facts a response: 2.51 against 1.63 (+0.88). By the second" in fs
    assert mc.startswith("FactTune-MC shows no clear change")
    summary["comparisons"]["facttune_mc"] = made.comparison(-0.2, 0.05, 0.0)
    assert (
        "FactTune-MC's error rate is 20% higher than the base model's (95% interval 15.0% to 25.0%)"
    ) in text.headline(summary)[1]


@pytest.mark.parametrize(("low", "high"), [(None, None), (None, 0.7)])
def test_an_unknown_interval_makes_no_claim(summary, low, high):
    cut = {"value": 0.63, "low": low, "high": high}
    summary["comparisons"]["facttune_fs"]["error_rate_reduction"] = cut
    summary["second_opinion"]["comparisons"]["facttune_fs"]["error_rate_reduction"] = cut
    fs, _ = text.headline(summary)
    why = "too few topics or errors for an interval"
    assert fs.startswith(f"FactTune-FS: {why}: 15.5% of its facts are wrong, against 45.7% for the")
    assert fs.endswith(f"By the second estimator, lexical: {why}.") and "lower" not in fs
    summary["run"]["config"]["evaluation"]["resamples"] = 0
    assert "FactTune-FS: evaluation.resamples=0: 15.5%" in text.headline(summary)[0]


@pytest.mark.parametrize(
    ("value", "low", "high", "says"),
    [
        (0.0, 0.0, 0.0, "there is no clear change (95% interval of the cut: 0.0% to 0.0%)."),
        (-0.1, -0.3, 0.1, "there is no clear change (95% interval of the cut: -30.0% to 10.0%)."),
        (-0.2, -0.3, -0.1, "it is 20% higher (10.0% to 30.0%)."),
    ],
)
def test_the_second_estimator_claims_no_more_than_the_first(summary, value, low, high, says):
    cut = {"value": value, "low": low, "high": high}
    summary["second_opinion"]["comparisons"]["facttune_fs"]["error_rate_reduction"] = cut
    assert text.headline(summary)[0].endswith(f" By the second estimator, lexical, {says}")


def test_rewards_of_some_shards_are_noted(summary):
    summary["run"]["reward_parts"] = [3, 64]
    (line,) = text.notes(summary)
    assert line.startswith("The figures of rewards come from 3 of 64 parts")


def test_notes_list_caveats(summary, made):
    assert text.notes(summary) == []
    summary["models"]["facttune_mc"] |= {
        "failed": 250,
        "repeated": made.interval(0.34),
        "unknown": made.interval(0.06),
        "no_facts": made.interval(0.2),
        "length": made.interval(9.0),
    }
    said = "\n".join(text.notes(summary))
    for words in ("250 of 1250", "34.0% of its", "6.0% of the", "in 20.0% of", "9 words"):
        assert f"{words}" in said
    assert len(text.notes(summary)) == 5


def test_summary_in_markdown(summary, human):
    said = text.markdown(summary | {"human": human})
    assert "| FactTune-FS | 2.51 | 0.46 | 15.5% (13.5% to 17.5%) | -63% |" in said
    assert said.startswith("# quickstart")


def test_closing_table(summary, human):
    said = text.table(summary | {"human": human})
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
