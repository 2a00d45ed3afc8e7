import io
import json
import math

import pytest

from facttune_ray.errors import UserError
from facttune_ray.interop import rewards
from facttune_ray.schema import REWARD_COLUMNS, TABLES, digest
from facttune_ray.scoring.pairs import count_pairs


def response(topic, prompt, sample, text, split="train", **more):
    prompt_id = digest(topic, prompt)
    row = dict.fromkeys(TABLES["responses"].names) | {"prompt_id": prompt_id, "topic": topic}
    row |= {"response_id": digest(prompt_id, "base", sample), "split": split, "model": "base"}
    return row | {"sample": sample, "prompt": prompt, "text": text} | more


def reward(r, **more):
    row = dict.fromkeys(TABLES["rewards"].names)
    row |= {k: r[k] for k in ("response_id", "prompt_id", "topic", "split", "model", "error")}
    return row | {"facts": 3, "errors": 0, "abstained": False} | more


def mix(r, name, value):
    ids = {k: r[k] for k in ("response_id", "prompt_id", "topic", "split")}
    return ids | {"name": name, "value": value, "error": None}


def tables():
    """Two shards: Ada with two questions, then Bo; one topic of val."""
    a = [response("Ada", "Who?", i, t) for i, t in enumerate(["x", "y", "x"])]
    lost = response("Ada", "Who?", 3, None, error="timeout")
    when = response("Ada", "When?", 0, "1815.")
    bo, val = response("Bo", "Who?", 0, "Bo."), response("Cy", "Who?", 0, "Cy.", split="val")
    gone = response("Di", "Who?", 0, None, error="timeout")
    first = [*a, lost, when]
    scored = [
        reward(a[0], factscore=0.5, max_conf=0.75, ne_neg_ent=-0.5, words=1),
        reward(a[1], factscore=None, max_conf=0.25, words=1),
        reward(a[2], factscore=1.0, max_conf=0.75, words=1),
        reward(lost, facts=0, errors=1),
        reward(when, factscore=0.0, words=1, abstained=True),
    ]
    mixes = [mix(a[0], "both", 0.1), mix(a[1], "both", None), mix(a[2], "both", 0.2)]
    mixes += [mix(lost, "both", None), mix(when, "both", None)]
    second = [bo, val, gone]
    others = [reward(bo, words=1), reward(val, p_true=0.5, words=1), reward(gone, facts=0)]
    more = [mix(r, "both", None) for r in second]
    return [(first, scored, mixes), (second, others, more)]


def test_rewards_by_hand(tmp_path):
    assert rewards.write(str(tmp_path), "train", lambda: iter(tables())) == 2
    folder = tmp_path / "rewards"
    assert sorted(p.name for p in folder.iterdir()) == [
        "pairs_count_train_2.txt",
        "rewards_train_2.json",
    ]
    found = json.loads((folder / "rewards_train_2.json").read_text())
    assert list(found) == ["Ada", "Bo"] and list(found["Ada"]) == ["Who?", "When?"]
    who = {k: v for k, v in found["Ada"]["Who?"].items() if k != "facttune"}
    unknown = {k: [i for i, v in enumerate(vs) if v != v] for k, vs in who.items()}
    assert unknown == {
        "responses": [],
        "factscore_avg": [1],
        "aq_max_conf_avg": [],
        "ne_neg_ent_avg": [1, 2],
        "both_avg": [1],
    }  # p_true is of val alone; no other column has a value
    assert who["responses"] == ["x", "y", "x"] and who["aq_max_conf_avg"] == [0.75, 0.25, 0.75]
    assert who["factscore_avg"][::2] == [0.5, 1.0]
    assert math.isnan(found["Bo"]["Who?"]["factscore_avg"][0])
    assert (folder / "pairs_count_train_2.txt").read_text().splitlines() == [
        "factscore_avg:  \t1",
        "aq_max_conf_avg:  \t2",
        "ne_neg_ent_avg:  \t0",
        "both_avg:  \t1",
    ]


def test_val_is_their_dpoval_and_no_topic_is_no_file(tmp_path):
    assert rewards.write(str(tmp_path), "val", lambda: iter(tables())) == 1
    assert rewards.write(str(tmp_path), "test", lambda: iter(tables())) == 0
    assert sorted(p.name for p in (tmp_path / "rewards").iterdir()) == [
        "pairs_count_dpoval_1.txt",
        "rewards_dpoval_1.json",
    ]
    assert rewards.find(str(tmp_path), "val").endswith("rewards_dpoval_1.json")
    (tmp_path / "rewards" / "rewards_dpoval_9.json").write_text("{}")
    with pytest.raises(UserError, match="2 files"):
        rewards.find(str(tmp_path), "val")
    with pytest.raises(UserError, match="no file"):
        rewards.find(str(tmp_path), "train")


def test_a_failed_write_leaves_nothing(tmp_path):
    def shards():
        yield tables()[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        rewards.write(str(tmp_path), "train", shards)
    assert not list((tmp_path / "rewards").glob("*"))


def test_pairs():
    assert count_pairs([0.0, 0.5, 0.5, math.nan], 0.0) == 2
    assert count_pairs([0.0, 0.5, 1.0], 0.5) == 1


def test_rewards_come_back(tmp_path):
    shards = tables()
    rewards.write(str(tmp_path), "train", lambda: iter(shards))
    path = rewards.find(str(tmp_path), "train")
    everything = [r for responses, _, _ in shards for r in responses]
    found = list(rewards.read(path, everything))
    train = [r for _, rows, _ in shards for r in rows if r["split"] == "train"]
    train.pop()  # a question without any response is in no file
    assert [r for rows, _ in found for r in rows] == train
    mixes = [m for _, _, rows in shards for m in rows if m["topic"] in ("Ada", "Bo")]
    assert [m for _, rows in found for m in rows] == mixes


def test_a_file_of_the_reference(tmp_path):
    path = tmp_path / "rewards_train_1.json"
    one, two = response("Ada", "Who?", 0, "a b"), response("Ada", "Who?", 1, "c")
    lists = {"factscore_avg": [math.nan, 1], "aq_max_conf_avg": [0.5, 0.25], "ours_avg": [1, 2]}
    path.write_text(json.dumps({"Ada": {"Who?": {"responses": ["c", "a b"]} | lists}, "Bo": {}}))
    ((rows, mixes),) = rewards.read(str(path), [one, two])
    known = [{k: v for k, v in r.items() if k in REWARD_COLUMNS and v is not None} for r in rows]
    assert known == [{"factscore": 1.0, "max_conf": 0.25}, {"max_conf": 0.5}]  # by text
    assert [(r["words"], r["facts"], r["judged"]) for r in rows] == [
        (2, None, None),
        (1, None, None),
    ]
    assert [(m["response_id"], m["name"], m["value"]) for m in mixes] == [
        (one["response_id"], "ours", 2.0),
        (two["response_id"], "ours", 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"Ada": {"Who?": {"responses": ["a", "b"], "aq_avg": [1]}}}',
            '1 values of "aq_avg" for 2',
        ),
        ('{"Ada": {"Who?": {"responses": ["z"]}}}', "no response has the text"),
        ('{"Ada": {"Who?": {"responses": ["a"], "x_avg": ["1"]}}}', "expected a list of numbers"),
        ('{"Ada": {"Who?": [1]}}', "expected .*responses"),
        ('{"Ada": {"Why?": {"responses": []}}}', "no question of the topic"),
        ('{"Ada": 3}', "expected .question"),
        ('{"Ada": {"Who?": ', "not readable as JSON"),
        ('["Ada"]', "not readable as JSON: expected one of {"),
        ("", "not readable as JSON"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, says):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        list(rewards.read(str(path), [response("Ada", "Who?", 0, "a")]))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        list(rewards.read(str(tmp_path / "none.json"), []))


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
def test_members_do_not_depend_on_the_pieces(chunk):
    value = {"a": {"x": [1.5, "}", '\\"']}, "é}": 12345, "n": [], "last": -7}
    text = json.dumps(value, indent=2)
    assert dict(rewards._members(io.StringIO(text), chunk)) == value
    assert dict(rewards._members(io.StringIO(" { } "), chunk)) == {}


def test_a_mix_may_not_take_the_name_of_a_reward(tmp_path):
    ((responses, scored, _), *_) = tables()
    mixes = [mix(responses[0], "aq_max_conf", 1.0)]
    with pytest.raises(UserError, match="rename the mix"):
        rewards.write(str(tmp_path), "train", lambda: [(responses, scored, mixes)])
