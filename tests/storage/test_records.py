"""The one reader of row files: formats by content, compression, blocks, files and globs."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
import row_files

from facttune_ray.errors import UserError
from facttune_ray.storage import records
from facttune_ray.storage.folders import Folder


def compressed(path, data):
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data[:50]) + gzip.compress(data[50:]))
        case ".bz2":
            path.write_bytes(bz2.compress(data))
        case ".xz":
            path.write_bytes(lzma.compress(data))
        case ".zst":
            path.write_bytes(pa.compress(data[:50], "zstd", asbytes=True))
            with open(path, "ab") as f:  # several frames, as parallel compressors write
                f.write(pa.compress(data[50:], "zstd", asbytes=True))
        case _:
            path.write_bytes(data)
    return path


ENDINGS = ("", ".gz", ".bz2", ".xz", ".zst")
DATA = b"".join(b'{"line": %d}\n' % i for i in range(1, 101))


@pytest.mark.parametrize("ending", ENDINGS)
def test_blocks_hold_whole_lines_and_skip_finished_lines(tmp_path, ending):
    path = compressed(tmp_path / f"a.jsonl{ending}", DATA)
    found = list(records.blocks(str(path), size=64))
    assert b"".join(b.data for b in found) == DATA and len(found) > 10
    assert all(b.data.count(b"\n") == b.count for b in found)
    late = list(records.blocks(str(path), skip=37, size=64))
    assert late[0].first == 38 and late[0].data.startswith(b'{"line": 38}')
    assert sum(b.count for b in late) == 63
    assert list(records.blocks(str(path), skip=100, size=64)) == []


def test_unusual_files_are_read_by_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbfone\n" + b"x" * 100 + b"\nlast")
    found = list(records.blocks(str(tmp_path / "a.jsonl"), size=8))
    assert b"".join(b.data for b in found) == b"one\n" + b"x" * 100 + b"\nlast"
    assert found[-1].first + found[-1].count == 4


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_a_truncated_file_is_named(tmp_path, ending):
    path = compressed(tmp_path / f"a.jsonl{ending}", DATA * 50)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"a.jsonl{ending}: row \d+: cannot be read"):
        list(records.blocks(str(path)))


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_damaged_file_of_lines_is_one_line(tmp_path, ending):
    path = compressed(tmp_path / f"t.txt{ending}", b"Ada\nBea\n" * 900)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"t.txt{ending}: cannot be read: .*: check data.topics"):
        list(records.lines(str(path), "data.topics"))


ROWS = [{"title": f"T{i}", "text": f"Text, {i}.\nMore."} for i in range(2500)]


@pytest.mark.parametrize("form", ["parquet", "csv", "json", "jsonl"])
@pytest.mark.parametrize("name", ["rows", "rows.dat", "rows.jsonl.gz"])
def test_a_file_is_recognised_by_its_content(tmp_path, form, name):
    if form == "csv" and name.endswith(".jsonl.gz"):
        pytest.skip("a text of CSV does not tell that its name is wrong")
    path = str(row_files.write(tmp_path / name, ROWS, form))
    assert [row for _, row in records.read(path)] == ROWS
    packed = str(compressed(tmp_path / "packed.gz", open(path, "rb").read()))
    if form != "parquet":
        assert [row for _, row in records.read(packed)] == ROWS
    late = list(records.blocks(path, skip=1501, size=20_000))
    found = [place_and_row for block in late for place_and_row in block.rows()]
    assert [row for _, row in found] == ROWS[1501:]
    assert found[0][0].endswith(":1502" if form == "jsonl" else ": row 1502")
    assert sum(block.count for block in late) == 999 and len(late) > (form == "parquet")


def test_only_the_asked_columns_of_parquet_are_read(tmp_path):
    path = str(row_files.write(tmp_path / "rows.parquet", ROWS, "parquet"))
    block = next(records.blocks(path, columns=("text", "gone")))
    assert next(block.rows())[1] == {"text": ROWS[0]["text"]}
    assert set(next(next(records.blocks(path, columns=("gone",))).rows())[1]) == {"title", "text"}


def test_rows_are_counted_without_being_read(tmp_path):
    assert records.count(str(row_files.write(tmp_path / "a", ROWS, "parquet"))) == 2500
    assert records.count(str(row_files.write(tmp_path / "b", ROWS, "json"))) == 2500
    assert records.count(str(row_files.write(tmp_path / "c", ROWS, "jsonl"))) == 2500
    (tmp_path / "t.txt").write_text("Ada\nBo\n")
    assert records.count(str(tmp_path / "t.txt")) == 2
    assert records.count(str(tmp_path / "gone.txt")) == 0


def test_files_folders_and_globs_name_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl.zst", "notes.txt", "sub/c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [Path(p).name for p in records.files([tmp_path])] == [
        "a.jsonl.zst",
        "b.jsonl",
        "c.jsonl.gz",
    ]
    assert [Path(p).name for p in records.files([f"{tmp_path}/*.jsonl"])] == ["b.jsonl"]
    assert [Path(p).name for p in records.files([tmp_path / "notes.txt"])] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    for missing in ("gone.jsonl", "*.gone", "empty"):
        with pytest.raises(UserError, match=missing.replace("*", r"\*")):
            records.files([tmp_path / missing])


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_reads_that_a_store_refuses_are_tried_again(object_store, tmp_path, form):
    there = Folder.of(object_store.uri(f"refused.{form}"))
    there.write_bytes(row_files.write(tmp_path / "rows", ROWS[:2], form).read_bytes())
    refused: list[str] = []

    def three_times(number, method, path):
        if method == "GET" and len(refused) < 3:
            refused.append(path)
            return True
        return False

    object_store.refuses = three_times
    try:
        rows = [row for _, row in records.read(there.uri, "data.files")]
    finally:
        object_store.refuses = lambda number, method, path: False
    assert [r["title"] for r in rows] == ["T0", "T1"] and len(refused) == 3
