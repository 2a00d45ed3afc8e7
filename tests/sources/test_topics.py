"""Files of topics, their splits, and ready-made responses: the rows, and the errors."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.config import load
from facttune_ray.errors import UserError
from facttune_ray.sources import topics
from facttune_ray.stages import prompts

NAMES = [f"Person {i}" for i in range(40)]


def of(folder, name, *more):
    return load([], ["data.source=topics", f"data.folder={folder}", f"data.topics={name}", *more])


def splits(folder, name, *more) -> dict[str, str]:
    return {r["topic"]: r["split"] for r in topics.topics(of(folder, name, *more))}


def written(folder, names=NAMES):
    (folder / "t.txt").write_text("".join(f"{n}\n" for n in names))
    return folder


SIZES = ["data.sizes.train=20", "data.sizes.val=5", "data.sizes.dpoval=2", "data.sizes.test=8"]


def test_splits_have_their_sizes_and_derive_from_the_seed(tmp_path):
    found = splits(written(tmp_path), "t.txt", *SIZES)
    counts = {s: list(found.values()).count(s) for s in ("train", "val", "test")}
    assert counts == {"train": 20, "val": 7, "test": 8}  # and 5 of the 40 are left out
    assert splits(tmp_path, "t.txt", *SIZES) == found
    assert splits(written(tmp_path, NAMES[::-1]), "t.txt", *SIZES) == found  # whatever their order
    assert splits(tmp_path, "t.txt", *SIZES, "run.seed=1") != found
    rest = splits(tmp_path, "t.txt", "data.val=0.1", "data.test=0.2")
    assert sorted(rest.values()) == ["test"] * 8 + ["train"] * 28 + ["val"] * 4


def test_every_kind_of_file_gives_the_same_topics(tmp_path):
    rows = [{"topic": n, "pronoun": "her"} for n in NAMES]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.csv").write_text("topic,pronoun\n" + "".join(f"{n},her\n" for n in NAMES))
    (tmp_path / "n.csv").write_text("name\n" + "".join(f"{n}\n" for n in NAMES))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode())
    expected = splits(written(tmp_path), "t.txt", *SIZES)
    for name in ("t.jsonl", "t.json", "t.csv", "t.parquet", "bom.txt"):
        assert splits(tmp_path, name, *SIZES) == expected, name
    assert splits(tmp_path, "n.csv", *SIZES, "data.topic_column=name") == expected
    (row,) = (r for r in topics.topics(of(tmp_path, "t.csv")) if r["topic"] == "Person 7")
    assert (row["pronoun"], row["lower_case"]) == ("her", None)


def test_splits_that_the_file_gives(tmp_path):
    (tmp_path / "t.csv").write_text("topic,split\nAda,train\nBo,dpoval\nCy,val\nDi,test\n")
    expected = {"Ada": "train", "Bo": "val", "Cy": "val", "Di": "test"}
    assert splits(tmp_path, "t.csv", *SIZES) == expected


def test_spaces_and_accents_have_one_form(tmp_path):
    (tmp_path / "t.txt").write_text("  Marie   Curie \nRene\u0301e Fleming\n")
    assert set(splits(tmp_path, "t.txt")) == {"Marie Curie", "Ren\u00e9e Fleming"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.txt", b"Ada\nBo\nAda\n", 't.txt:3: topic "Ada" stands at '),
        ("t.txt", b"Ada\nB\xff\nCy\n", "t.txt:2: not UTF-8: save the file as UTF-8"),
        ("t.txt", b"", "t.txt: the file is empty"),
        ("t.jsonl", b'{"topic": "Ada"}\n{"name": "Bo"}\n', 't.jsonl:2: no column "topic"'),
        ("t.jsonl", b'{"topic": 5}\n', 't.jsonl:1: "topic" must be a text, not 5'),
        ("t.jsonl", b'{"topic": "A"}\n{"topic": "\xff"}\n', "t.jsonl:2: not UTF-8"),
        ("t.csv", b"name,born\nAda,1815\n", 'no column "topic": it has name, born: name it in'),
        ("t.csv", b"topic,born\n,1815\n", "t.csv: row 1: the topic is empty"),
        ("t.csv", b"topic,split\nAda,dev\n", 'split "dev" is none of train, dpoval, val, test'),
        (
            "t.jsonl",
            b'{"topic": "A", "split": "test", "pronoun": 5}',
            '"pronoun" must be a text, not 5',
        ),
        ("t.jsonl", b'{"topic": "A", "split": ["test"]}\n', "none of train, dpoval, val, test"),
        ("t.xlsx", b"PK", "t.xlsx: its content is neither Parquet nor JSON nor CSV"),
        ("gone.txt", None, "gone.txt: no such file: check data.topics"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, capsys, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "k.jsonl").write_text('{"title": "Ada", "text": "Ada sang."}\n')
    words = ["data.source=topics", f"data.folder={tmp_path}", f"data.topics={name}"]
    words += ["data.knowledge=k.jsonl", f"run.out={tmp_path / 'out'}"]
    for stage in ("knowledge", "topics"):
        code = cli.main(["stage", stage, "bio", *words, "data.sizes.train=null"])
    assert code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("facttune: error: ") and says in error
    assert not (tmp_path / "out" / "topics" / "_MANIFEST.json").exists()


def test_too_few_topics(tmp_path):
    with pytest.raises(UserError) as e:
        splits(written(tmp_path, NAMES[:10]), "t.txt", *SIZES)
    assert "10 topics, but data.sizes asks for 35 (20 train, 7 val, 8 test)" in str(e.value)


# ---------------------------------------------------------------- ready-made responses


def responses(folder, *files, more=()):
    words = ["data.source=responses", f"data.folder={folder}", f"data.files=[{','.join(files)}]"]
    found = prompts.numbered(topics.responses(load([], [*words, *more])))
    return [{k: v for k, v in row.items() if k != "where"} for row in found]


def test_responses_of_every_kind_of_file(tmp_path):
    rows = [
        {"topic": "Ada", "prompt": "Who was Ada?", "response": text, "model": m}
        for m, text in (("a", "One."), ("a", "Two."), ("b", "Three."))
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    lines = "".join(f"{r['topic']},{r['prompt']},{r['response']},{r['model']}\n" for r in rows)
    (tmp_path / "r.csv").write_text("topic,prompt,response,model\n" + lines)
    expected = responses(tmp_path, "r.jsonl")
    assert [(r["model"], r["sample"], r["text"]) for r in expected] == [
        ("a", 0, "One."),
        ("a", 1, "Two."),
        ("b", 0, "Three."),
    ]
    assert len({r["response_id"] for r in expected}) == 3
    for name in ("r.parquet", "r.csv"):
        assert responses(tmp_path, name) == expected, name


def test_lists_of_responses_with_the_file_name_as_the_model(tmp_path):
    row = {"topic": "Ada", "question": "Who?", "responses": ["A.", "B."], "split": "test"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    found = responses(tmp_path, "mine.jsonl")
    assert [(r["model"], r["sample"], r["split"]) for r in found] == [
        ("mine", 0, "test"),
        ("mine", 1, "test"),
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"topic": "A", "response": "x"}], 'r.jsonl:1: no column "prompt": it has topic, resp'),
        ([{"topic": "A", "prompt": "p"}], 'r.jsonl:1: no column "response"'),
        ([{"topic": "A", "prompt": "p", "response": 5}], '"response" must be a text'),
        ([{"topic": "A", "prompt": " ", "response": "x"}], '"prompt" is empty'),
        (
            [{"topic": "A", "prompt": "p", "response": "x", "model": 7}],
            '"model" must be a text, not 7',
        ),
        (
            [{"topic": "A", "prompt": "p", "response": "x", "split": s} for s in ("train", "test")],
            'r.jsonl:2: topic "A" is in split train, too',
        ),
    ],
)
def test_wrong_responses_are_one_line(tmp_path, rows, says):
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError) as e:
        responses(tmp_path, "r.jsonl")
    assert says in str(e.value) and "\n" not in str(e.value)


def test_two_files_of_one_name_are_refused(tmp_path):
    row = {"topic": "Ada", "prompt": "Who?", "response": "x", "split": "test"}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="a/m.jsonl and .*b/m.jsonl: rows without a model"):
        responses(tmp_path, "a/m.jsonl", "b/m.jsonl")
    (tmp_path / "b" / "m.jsonl").write_text(json.dumps(row | {"model": "n"}) + "\n")
    assert [r["model"] for r in responses(tmp_path, "a/m.jsonl", "b/m.jsonl")] == ["m", "n"]
