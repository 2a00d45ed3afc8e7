import bz2
import gzip
import lzma

import pyarrow as pa
import pytest

from facttune_ray.errors import UserError
from facttune_ray.knowledge import lines


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
    found = list(lines.blocks(path, size=64))
    assert b"".join(b.data for b in found) == DATA and len(found) > 10
    assert all(b.data.count(b"\n") == b.lines for b in found)
    late = list(lines.blocks(path, skip=37, size=64))
    assert late[0].first == 38 and late[0].data.startswith(b'{"line": 38}')
    assert sum(b.lines for b in late) == 63
    assert list(lines.blocks(path, skip=100, size=64)) == []


def test_unusual_files_are_read_by_lines(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\n" + b"x" * 100 + b"\nlast")
    found = list(lines.blocks(tmp_path / "a", size=8))
    assert b"".join(b.data for b in found) == b"one\n" + b"x" * 100 + b"\nlast"
    assert found[-1].first + found[-1].lines == 4


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_a_truncated_file_is_named(tmp_path, ending):
    path = compressed(tmp_path / f"a.jsonl{ending}", DATA * 50)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"a.jsonl{ending}: cannot be read"):
        list(lines.blocks(path))


def test_a_file_of_a_different_compression_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(DATA)
    with pytest.raises(UserError, match="is its compression not .gz"):
        list(lines.blocks(tmp_path / "a.jsonl.gz"))


def test_files_folders_and_globs_name_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl.zst", "notes.txt", "sub/c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [p.name for p in lines.files([tmp_path])] == ["a.jsonl.zst", "b.jsonl", "c.jsonl.gz"]
    assert [p.name for p in lines.files([f"{tmp_path}/*.jsonl"])] == ["b.jsonl"]
    assert [p.name for p in lines.files([tmp_path / "notes.txt"])] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    for missing in ("gone.jsonl", "*.gone", "empty"):
        with pytest.raises(UserError, match=missing.replace("*", r"\*")):
            lines.files([tmp_path / missing])
