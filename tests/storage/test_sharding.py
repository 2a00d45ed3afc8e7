import json
from pathlib import Path

import pyarrow as pa
import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.sources.shards import shards_of
from facttune_ray.storage import sharding

ROWS = [{"topic": f"t{i % 7}", "n": i, "text": "\ud800é", "score": None} for i in range(50)]


def test_each_row_is_in_its_topics_shard_once_and_in_order():
    with sharding.sharded(iter(ROWS), 4, held=8) as parts:  # most rows wait in files
        shards = dict(parts)
    assert set(shards) == {0, 1, 2, 3}
    for shard, rows in shards.items():
        assert rows == [r for r in ROWS if sharding.shard_of(r["topic"], 4) == shard]
    assert sum(map(len, shards.values())) == 50


def test_shards_follow_the_number_of_topics(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 5000)
    words = ["data.source=factscore", f"data.folder={tmp_path}", "data.files=[a.jsonl]"]
    assert shards_of(config.load([], words)) == 20  # 5,000 / 256
    assert shards_of(config.load([], [*words, "run.shards=3"])) == 3
    assert shards_of(config.load([], ["data.world.train=150"])) == 8


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl.bz2", "t.txt.zst", "t.json", "t.json.gz"])
def test_rows_are_counted_in_compressed_files_and_in_json(tmp_path: Path, name: str):
    rows = [{"topic": f"Person {i}"} for i in range(5000)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with pa.output_stream(str(tmp_path / name)) as f:  # compressed by its suffix
        f.write((json.dumps(rows) if ".json" in name and ".jsonl" not in name else text).encode())
    words = ["data.source=topics", f"data.folder={tmp_path}", f"data.topics={name}"]
    assert shards_of(config.load([], [*words, "prompts.domain=bio"])) == 20


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl.gz", b"\x1f\x8bno gzip"),
        ("t.json", b"{no JSON"),
        ("t.parquet", b"PAR1 and no more"),
    ],
)
def test_an_unreadable_file_gives_one_line(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    words = ["data.source=topics", f"data.folder={tmp_path}", f"data.topics={name}"]
    with pytest.raises(UserError, match=f"{name}: (cannot be read|not JSON)") as error:
        shards_of(config.load([], [*words, "prompts.domain=bio"]))
    assert "\n" not in str(error.value)
