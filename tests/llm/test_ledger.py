from facttune_ray.llm.ledger import Completion, Ledger, request_key
from facttune_ray.tables import Folder

DONE = Completion("- a fact.", 12, 3, "m-1", attempts=1, latency_s=0.2)


def test_completion_is_durable_before_close(tmp_path):
    folder = Folder.of(str(tmp_path / "ledger"))
    first = Ledger(folder)
    first.put("k", DONE)
    assert Ledger(folder).get("k") == DONE  # `first` is still open: as after a SIGKILL
    assert Ledger(folder).get("other") is None


def test_torn_last_row_is_dropped(tmp_path):
    folder = Folder.of(str(tmp_path / "ledger"))
    first = Ledger(folder)
    first.put("k1", DONE)
    first.put("k2", DONE)
    (segment,) = (tmp_path / "ledger").iterdir()
    segment.write_bytes(segment.read_bytes()[:-40])
    again = Ledger(folder)
    assert again.get("k1") == DONE and again.get("k2") is None


def test_empty_segment_of_a_killed_writer(tmp_path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "x.arrow").write_bytes(b"")
    assert Ledger(Folder.of(str(tmp_path / "ledger"))).known == {}


def test_key_depends_on_all_that_decides_a_completion():
    messages = [{"role": "user", "content": "hi"}]
    keys = {
        request_key("m", messages, {"temperature": 0.0}, 0),
        request_key("m", messages, {"temperature": 0.0}, 1),
        request_key("m", messages, {"temperature": 1.0}, 0),
        request_key("n", messages, {"temperature": 0.0}, 0),
        request_key("m", [{"role": "user", "content": "ho"}], {"temperature": 0.0}, 0),
    }
    assert len(keys) == 5
    assert request_key("m", messages, {"a": 1, "b": 2}, 0) == request_key(
        "m", messages, {"b": 2, "a": 1}, 0
    )
