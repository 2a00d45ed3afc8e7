"""Builds from good and bad rows, by several processes, after a kill, and in FActScore's form."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import row_files

from facttune_ray import cli
from facttune_ray.errors import UserError
from facttune_ray.knowledge import build
from facttune_ray.knowledge.articles import Articles
from facttune_ray.knowledge.passages import SEPARATOR
from facttune_ray.storage.folders import Folder


def jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def table(path, query):
    database = sqlite3.connect(path)
    rows = database.execute(query).fetchall()
    database.close()
    return rows


def meta(path):
    return dict(table(path, "SELECT key, value FROM meta"))


def content(path):
    """Everything that a reader sees of a database, in order."""
    queries = [
        "SELECT rowid, title, text FROM documents ORDER BY rowid",
        "SELECT key, title, kind FROM titles ORDER BY rowid",
        "SELECT * FROM spans ORDER BY first",
        "SELECT * FROM meta ORDER BY key",
    ]
    found = [table(path, q) for q in queries]
    return [*found, [Articles(path).search(q, 20) for q in ("word7", "title 31", "w99 w12")]]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two files of 12 MB together: several blocks, and large enough for a pool."""
    folder = tmp_path_factory.mktemp("large")
    for name in ("a", "b"):
        rows = (
            {
                "title": f"Title {i % 4900} {name if i % 7 else ''}",  # some repeat
                "text": " ".join(f"word{(i * j) % 1009} w{j % 211}." for j in range(90)),
            }
            for i in range(5000)
        )
        jsonl(folder / f"{name}.jsonl", rows)
    return folder


def test_a_repeated_title_gets_both_texts_in_order(tmp_path):
    first = jsonl(tmp_path / "1.jsonl", [{"title": "Ivo", "text": "One. Two."}])
    second = jsonl(
        tmp_path / "2.jsonl",
        [{"title": "Mara", "text": ["Born in Lyon.", "Plays."]}, {"title": "Ivo", "text": "Six."}],
    )
    assert build.build([first, second], tmp_path / "k.db") == 2
    articles = Articles(tmp_path / "k.db")
    assert articles.passages("Ivo") == ["One. Two.", "Six."]
    assert [(h.title, h.passage) for h in articles.search("six", 3)] == [("Ivo", "Six.")]
    assert [h.passage for h in articles.search("plays", 3)] == ["Plays."]
    assert not (tmp_path / "k.db.tmp").exists() and not (tmp_path / "k.db.tmp-journal").exists()


def test_factscore_can_read_the_database(tmp_path):
    """FActScore's DocDB reads columns of one table by title, and splits at the separator."""
    source = jsonl(tmp_path / "k.jsonl", [{"title": "Mara", "text": ["Born in Lyon.", "Plays."]}])
    build.build([source], tmp_path / "k.db")
    rows = table(tmp_path / "k.db", "SELECT text FROM documents WHERE title = 'Mara'")
    assert rows == [(f"Born in Lyon.{SEPARATOR}Plays.",)]
    (ddl,) = table(tmp_path / "k.db", "SELECT sql FROM sqlite_master WHERE name = 'documents'")
    assert ddl == ("CREATE TABLE documents (title PRIMARY KEY, text)",)


def test_unusual_rows_do_not_stop_the_build(tmp_path):
    lines = [
        '{"title": "Nul\\u0000Byte", "text": "a\\u0000b"}',
        '{"title": "Half \\ud800", "text": "x \\udfff y"}',
        '{"title": " ", "text": "no title"}',
        '{"title": "No text", "text": ""}',
        '{"title": "No passages", "text": ["", " \\n "]}',
        '{"title": "Nobody", "redirect": ""}',
        "",
        "   ",
        f'{{"title": "Mark", "text": "one{SEPARATOR}<s>two</s>"}}',
    ]
    (tmp_path / "k.jsonl").write_text("\r\n".join(lines))
    assert build.build([tmp_path / "k.jsonl"], tmp_path / "k.db") == 3
    articles = Articles(tmp_path / "k.db")
    assert articles.passages("Nul Byte") == articles.passages("Nul\0Byte") == ["a b"]
    assert articles.passages("Half \ufffd") == ["x \ufffd y"]
    assert articles.passages("Mark") == ["one", "two"]
    assert [h.passage for h in articles.search("two", 1)] == ["two"]
    assert meta(tmp_path / "k.db") == {"titles": 3, "passages": 4, "skipped": 4, "version": 2}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"title": "A"', "k.jsonl:2: not JSON"),
        (b'{"title": "A\xff", "text": "x"}', "k.jsonl:2: not UTF-8"),
        (b"[" * 100_000, "k.jsonl:2: not JSON"),
        (b'{"text": "x"}', 'k.jsonl:2: needs "title"'),
        (b'{"title": "A", "text": 3}', 'k.jsonl:2: needs "text"'),
        (b'{"title": "A", "text": ["x", null]}', 'k.jsonl:2: needs "text"'),
        (b'{"title": "A", "redirect": null}', 'k.jsonl:2: needs "text"'),
        (b"[]", 'k.jsonl:2: needs "title"'),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    (tmp_path / "k.jsonl").write_bytes(b'{"title": "Z", "text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        build.build([tmp_path / "k.jsonl"], tmp_path / "k.db")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "k.db").exists()


def test_an_input_without_articles_is_refused(tmp_path):
    source = jsonl(tmp_path / "k.jsonl", [{"title": "JFK", "redirect": "John F. Kennedy"}])
    with pytest.raises(UserError, match="the input has no article"):
        build.build([source], tmp_path / "k.db")
    assert [p.name for p in tmp_path.iterdir()] == ["k.jsonl"]


def test_write_leaves_no_file_when_an_article_is_bad(tmp_path):
    assert build.write([{"title": "A", "text": ("one", "two")}], tmp_path / "k.db") == 1
    assert Articles(tmp_path / "k.db").passages("A") == ["one", "two"]
    with pytest.raises(UserError, match='article 1: needs "text"'):
        build.write([{"title": "A"}], tmp_path / "x.db")
    assert [p.name for p in tmp_path.iterdir()] == ["k.db"]


def test_a_pool_builds_the_same_database_as_one_process(tmp_path, large):
    alone = build.build([large], tmp_path / "1.db", workers=1)
    assert alone == build.build(
        [large / "a.jsonl", large / "b.jsonl"], tmp_path / "2.db", workers=2
    )
    assert content(tmp_path / "1.db") == content(tmp_path / "2.db")


def test_a_pool_also_names_a_bad_line(tmp_path, large):
    lines = (large / "a.jsonl").read_bytes().splitlines(keepends=True) * 2
    lines[7000] = b"{}\n"
    (tmp_path / "bad.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="bad.jsonl:7001: needs"):
        build.build([tmp_path / "bad.jsonl"], tmp_path / "k.db", workers=2)


COMMAND = """
import sys
from facttune_ray.knowledge import build
if __name__ == "__main__":
    build.build(sys.argv[2:], sys.argv[1], workers=2, commit_s=0.0)
"""


def start(tmp_path: Path, out: Path, source: Path) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(COMMAND)
    return subprocess.Popen([sys.executable, str(script), str(out), str(source)])


def test_a_killed_build_is_resumed(tmp_path, large):
    out, unfinished = tmp_path / "k.db", tmp_path / "k.db.tmp"
    process = start(tmp_path, out, large)
    deadline = time.monotonic() + 30
    while not (unfinished.exists() and unfinished.stat().st_size > 5_000_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not out.exists()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert workers and not alive, "the pool's processes outlived the build"

    done = dict(table(unfinished, "SELECT file, lines FROM progress"))
    assert 0 < sum(done.values()) < 10_000
    database = sqlite3.connect(unfinished)
    with database:
        database.execute("CREATE TABLE marker (x)")  # a new start would drop it
    database.close()
    assert start(tmp_path, out, large).wait() == 0
    assert table(out, "SELECT name FROM sqlite_master WHERE name = 'marker'")
    build.build([large], tmp_path / "undisturbed.db", workers=1)
    assert content(out) == content(tmp_path / "undisturbed.db")


@pytest.mark.parametrize("change", ["source", "setting", "garbage"])
def test_an_unfinished_build_of_another_recipe_is_not_resumed(tmp_path, change):
    source = jsonl(tmp_path / "k.jsonl", [{"title": "Old", "text": "x"}])
    bad = jsonl(tmp_path / "z.jsonl", [{}])
    with pytest.raises(UserError):
        build.build([source, bad], tmp_path / "k.db", commit_s=0.0)
    assert (tmp_path / "k.db.tmp").exists()
    options = {}
    jsonl(bad, [{"title": "New", "text": "y"}])
    if change == "source":
        jsonl(source, [{"title": "Newer", "text": "y"}])
    elif change == "setting":
        options = {"passage_tokens": 9}
    else:
        (tmp_path / "k.db.tmp").write_text("what a crash of the machine left, long enough " * 9)
    assert build.build([source, bad], tmp_path / "k.db", **options) == 2
    assert (Articles(tmp_path / "k.db").find("Old") is None) == (change == "source")


def test_a_second_build_of_one_database_is_refused(tmp_path):
    source = jsonl(tmp_path / "k.jsonl", [{"title": "A", "text": "x"}])
    other = sqlite3.connect(tmp_path / "k.db.tmp", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match="is another build of it running"):
        build.build([source], tmp_path / "k.db")
    other.close()


def test_compressed_files_in_a_folder_are_read(tmp_path):
    rows = [{"title": f"T{i}", "text": f"Text {i}."} for i in range(20)]
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in/a.jsonl", rows[:10])
    packed = gzip.compress("".join(json.dumps(r) + "\n" for r in rows[10:]).encode())
    (tmp_path / "in/b.jsonl.gz").write_bytes(packed)
    assert build.build([tmp_path / "in"], tmp_path / "k.db") == 20
    assert Articles(tmp_path / "k.db").passages("T19") == ["Text 19."]


WIKI = [
    {"id": str(i), "url": f"https://x/{i}", "name": f"Title {i}", "body": f"Text {i}, and more."}
    for i in range(3000)
]


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_table_of_other_columns_becomes_the_same_database(tmp_path, form):
    """Parquet in the shape of Hugging Face's wikimedia/wikipedia, and the same rows as text."""
    file = row_files.write(tmp_path / "rows", WIKI, form)  # the content tells the form
    words = ["knowledge", "build", str(file), str(tmp_path / "k.db")]
    columns = ["--title-column", "name", "--text-column", "body"]
    assert cli.main([*words, *columns]) == 0
    articles = Articles(tmp_path / "k.db")
    assert articles.passages("Title 2999") == ["Text 2999, and more."]
    assert meta(tmp_path / "k.db")["titles"] == 3000
    with pytest.raises(UserError, match='needs "title": a string.*--title-column'):
        build.build([file], tmp_path / "x.db")


def test_an_unfinished_build_of_parquet_is_resumed(tmp_path):
    rows = [{"title": r["name"], "text": r["body"]} for r in WIKI]
    row_files.write(tmp_path / "a.parquet", rows, "parquet")
    bad = jsonl(tmp_path / "z.jsonl", [{}])
    with pytest.raises(UserError):
        build.build([tmp_path / "a.parquet", bad], tmp_path / "k.db", commit_s=0.0)
    done = dict(table(tmp_path / "k.db.tmp", "SELECT file, lines FROM progress"))
    assert sum(done.values()) == 3000
    with pytest.raises(UserError):  # a second attempt adds no row again
        build.build([tmp_path / "a.parquet", bad], tmp_path / "k.db", commit_s=0.0)
    count = "SELECT COUNT(*) FROM documents WHERE text LIKE '%and more.%and more.%'"
    assert table(tmp_path / "k.db.tmp", count) == [(0,)]


def test_articles_on_an_object_store(tmp_path, object_store):
    rows = [{"title": r["name"], "text": r["body"]} for r in WIKI]
    for i in range(2):
        place = Folder.of(object_store.uri(f"wiki/part-{i}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows[i::2]), tmp_path / "part", row_group_size=500)
        place.write_bytes((tmp_path / "part").read_bytes())
    for given in ("wiki/*.parquet", "wiki"):  # a glob, and a folder
        out = tmp_path / f"{len(given)}.db"
        assert build.build([object_store.uri(given)], out) == 3000
        assert Articles(out).passages("Title 17") == ["Text 17, and more."]


def test_the_build_command_prints_one_line(tmp_path, capsys):
    rows = [{"title": "A", "text": ["x", "y"]}, {"title": "B", "text": ""}]
    assert build.main_build([jsonl(tmp_path / "k.jsonl", rows)], tmp_path / "k.db") == 0
    printed = capsys.readouterr().out
    assert "1 titles, 2 passages, 1 rows skipped (empty)" in printed and printed.count("\n") == 1
