from pathlib import Path

from facttune_ray import config, spread

ROWS = [{"topic": f"t{i % 7}", "n": i, "text": "\ud800é", "score": None} for i in range(50)]


def test_each_row_comes_once_in_order_whole_topics_together():
    with spread.spread(iter(ROWS), 4, held=8) as parts:  # most rows wait in files
        found = dict(parts)
    assert set(found) == {0, 1, 2, 3}
    for shard, rows in found.items():
        assert rows == [r for r in ROWS if spread.shard_of(r["topic"], 4) == shard]
    assert sum(map(len, found.values())) == 50


def test_shards_follow_the_number_of_topics(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 5000)
    words = ["data.source=factscore", f"data.folder={tmp_path}", "data.files=[a.jsonl]"]
    assert spread.shards_of(config.load([], words)) == 20  # 5,000 / 256
    assert spread.shards_of(config.load([], [*words, "run.shards=3"])) == 3
    assert spread.shards_of(config.load([], ["data.world.train=150"])) == 8
