"""The counts of signs equal counts made by hand."""

import json

import pyarrow as pa

from facttune_ray.evaluation import hacking
from facttune_ray.evaluation.breakdowns import Scope
from facttune_ray.evaluation.report import text
from facttune_ray.storage import tables
from facttune_ray.storage.schema import TABLES
from facttune_ray.storage.tables import Folder

# topic -> sentences, each with its facts: (fact, supported)
SAID = {
    "Togo": {
        "Togo borders Togo and Benin.": [
            ("Togo borders Togo.", True),
            ("Togo borders Benin.", True),
        ],
        "Togo is a country.": [("Togo is a country.", True)],
        "The coast of.": [("The coast of.", True)],
    },
    "Mali": {
        "Mali is a country.": [("Mali is a country.", None), ("Mali is a country.", None)],
        "Its capital is Mali.": [("Its capital is Mali.", False)],
        "Mali is hot.": [("Mali is hot.", False)],
    },
    "Peru": {"Peru is a country.": [("Peru is a country.", False)]},
}


def write(root: Folder, scope: str, said, copies: int = 1) -> None:
    responses, facts, verdicts = [], [], []
    for topic, sentences in said.items():
        for sample in range(copies):
            rid, position, seen = f"{topic}/{sample}", 0, set()
            ids = {"response_id": rid, "topic": topic, "split": "test"}
            responses.append(ids | {"prompt_id": topic, "model": "base", "sample": sample})
            for number, (sentence, stated) in enumerate(sentences.items()):
                for fact, supported in stated:
                    one = ids | {"fact_id": f"{rid}/{position}"}
                    place = {"sentence": number, "sentence_text": sentence, "position": position}
                    facts.append(one | place | {"fact": fact, "repeated": fact in seen})
                    verdicts.append(one | {"supported": supported})
                    seen.add(fact)
                    position += 1
            failed = {"fact_id": f"{rid}/failed", "fact": None, "error": "timeout"}
            facts.append(ids | failed | {"sentence": 99, "sentence_text": "Lost."})
    for name, rows in (("responses", responses), ("facts", facts), ("verdicts", verdicts)):
        tables.write_part(root / scope / name, name, 0, rows, {})
        tables.write_manifest(root / scope / name, name, {}, 1, 0.0)


def test_signs_by_hand(tmp_path):
    root = Folder.of(str(tmp_path))
    write(root, "base/test", SAID)
    write(root, "none/test", {})
    found = hacking.signs(root, {"base": Scope("base/test"), "none": Scope("none/test")})
    base = found["base"]
    # of four supported distinct facts, one names only Togo
    assert base["name_only"] == {"value": 0.25, "count": 1, "of": 4}
    # three of seven sentences are one frame
    assert base["frames"] == {"value": 3 / 7, "count": 3, "of": 7}
    assert base["common"] == [{"frame": "… is a country", "topics": 3, "sentences": 3}]
    # eight distinct facts, one fragment
    assert base["fragments"] == {"value": 1 / 8, "count": 1, "of": 8}
    empty = {"value": None, "count": 0, "of": 0}
    assert found["none"] == dict.fromkeys(hacking.SIGNS, empty) | {"common": []}


def test_a_sentence_that_one_topic_repeats_is_no_shared_frame(tmp_path):
    root = Folder.of(str(tmp_path))
    write(root, "a/test", {"Togo": SAID["Togo"]}, copies=3)
    assert hacking.signs(root, {"a": Scope("a/test")})["a"]["frames"]["count"] == 0
    write(root, "b/test", SAID, copies=3)
    found = hacking.signs(root, {"b": Scope("b/test")})["b"]
    assert found["frames"] == {"value": 9 / 21, "count": 9, "of": 21}
    assert found["common"][0]["topics"] == 3 and found["common"][0]["sentences"] == 9


def test_facts_without_sentences_are_their_own_sentences():
    frames = hacking.Frames()
    rows = [
        {"response_id": t, "topic": t, "fact": f"{t} {verb}."}
        for t in ("Togo", "Mali")
        for verb in ("rests", "rests", "sings to Togo")
    ]
    frames.add(pa.Table.from_pylist(rows, TABLES["facts"]))
    assert (frames.shared(), frames.sentences) == (2, 4)
    assert [f["frame"] for f in frames.common()] == ["… rests"]


def test_a_rise_is_noted_and_shown(summary, made):
    assert text.notes(summary) == []
    summary["hacking"]["facttune_fs"] = made.hacking(0.30, 0.22, 0.07)
    name_only, fragments = text.notes(summary)
    assert "FactTune-FS: 30.0% of its supported facts name nothing but their own topic" in name_only
    assert "supported facts name nothing but their own topic, against 1.0% of base's" in name_only
    assert "7.0% of its facts are fragments" in fragments
    said = text.markdown(summary)
    assert "| FactTune-FS | 30.0% | 22.0% | 7.0% |" in said
    assert "signs of hacking  name only" in text.table(summary)
    summary["comparisons"] = {}  # no tuned model: nothing to compare
    assert "signs of hacking" not in text.table(summary)


def test_the_report_has_the_signs_before_and_after(measured_run):
    folder = measured_run(topics=4)
    found = json.loads((folder / "summary.json").read_bytes())["hacking"]
    # "Topic 0001 was born in 1900." is said of all topics
    assert found["base"]["frames"] == {"value": 1.0, "count": 16, "of": 16}
    assert found["facttune_fs"]["common"][0]["topics"] == 4
    head, base, _ = (folder / "csv/hacking.csv").read_text().splitlines()
    assert head.startswith("model,name_only,name_only.count,name_only.of,frames,")
    assert base.startswith("base,0.0,0,10,1.0,16,16,")
    page = (folder / "report.html").read_text()
    assert 'id="hacking"' in page and "… was born in 1900" in page
