import json
import os
import sqlite3
import subprocess
import sys

import pytest

from facttune_ray.errors import UserError
from facttune_ray.knowledge import build
from facttune_ray.knowledge.articles import Articles
from facttune_ray.knowledge.retrieval import BM25


def jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_articles_are_read_as_built(tmp_path):
    source = jsonl(
        tmp_path / "k.jsonl",
        [
            {"title": "Mara Veldt", "text": ["Born in Lyon.", "Plays."]},
            {"title": "Ivo", "text": "One. Two."},
            {"title": "Ivo", "text": "Three."},
        ],
    )
    assert build.build([source], tmp_path / "k.db") == 2
    articles = Articles(tmp_path / "k.db")
    assert articles.passages("Mara Veldt") == ["Born in Lyon.", "Plays."]
    assert articles.passages("mara_veldt") == ["Born in Lyon.", "Plays."]
    assert articles.passages("Ivo") == ["One. Two.", "Three."]
    assert articles.passages("Nobody") is None


def test_a_long_text_is_cut_at_sentence_ends():
    sentence = "word " * 99 + "end."
    parts = build.passages(" ".join([sentence] * 5))
    assert [len(p.split()) for p in parts] == [200, 200, 100]


def test_databases_of_factscores_form_are_read(tmp_path):
    with sqlite3.connect(tmp_path / "e.db") as database:
        database.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
        database.execute(
            "INSERT INTO documents VALUES ('A', '<s>A one.</s><s>####SPECIAL####SEPARATOR####two')"
        )
    assert Articles(tmp_path / "e.db").passages("A") == ["A one.", "two"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"title": "A"', "k.jsonl:2: not JSON"),
        ('{"text": "x"}', 'k.jsonl:2: needs "title"'),
        ('{"title": "A", "text": 3}', 'k.jsonl:2: needs "text"'),
        ("[]", 'k.jsonl:2: needs "title"'),
    ],
)
def test_an_error_names_the_file_and_line_of_a_bad_row(tmp_path, line, says):
    (tmp_path / "k.jsonl").write_text('{"title": "Z", "text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        build.build([tmp_path / "k.jsonl"], tmp_path / "k.db")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "k.db").exists()


def test_missing_databases_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Articles(tmp_path / "gone.db")
    (tmp_path / "x.db").write_text("not a database at all, but long enough to look at")
    with pytest.raises(UserError, match="not a database with documents"):
        Articles(tmp_path / "x.db")


def test_bm25_uses_no_gpu_when_jax_is_installed(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text(
        "import os\n"
        "def top_k(scores, k):\n"
        "    if os.environ.get('JAX_PLATFORMS') != 'cpu':\n"
        "        raise RuntimeError('Unable to initialize backend cuda')\n"
    )
    code = "from facttune_ray.knowledge.retrieval import BM25; print(BM25(['a']).top('a', 1))"
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    path = f"{tmp_path}:{env.get('PYTHONPATH', '')}"
    found = subprocess.run(
        [sys.executable, "-c", code], env=env | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert found.stdout == "[0]\n", found.stderr


def test_bm25_prefers_the_rare_word_and_breaks_ties_by_order():
    index = BM25(["She was born in Lyon.", "She plays the cello.", "She was born again."])
    assert index.top("Where is the cello?", 1) == [1]
    assert index.top("zebra", 2) == [0, 1]
    assert index.top("cello", 9) == [1, 0, 2]
