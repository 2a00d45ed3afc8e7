import json
import math

import pytest

from facttune_ray.errors import UserError
from facttune_ray.export import rewards
from facttune_ray.scoring.pairs import count_pairs
from facttune_ray.storage.schema import TABLES, digest


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
    who = found["Ada"]["Who?"]
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


def test_val_is_named_dpoval_and_a_split_without_topics_has_no_file(tmp_path):
    assert rewards.write(str(tmp_path), "val", lambda: iter(tables())) == 1
    assert rewards.write(str(tmp_path), "test", lambda: iter(tables())) == 0
    assert sorted(p.name for p in (tmp_path / "rewards").iterdir()) == [
        "pairs_count_dpoval_1.txt",
        "rewards_dpoval_1.json",
    ]


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


def test_a_mix_may_not_take_the_name_of_a_reward(tmp_path):
    ((responses, scored, _), *_) = tables()
    mixes = [mix(responses[0], "aq_max_conf", 1.0)]
    with pytest.raises(UserError, match="rename the mix"):
        rewards.write(str(tmp_path), "train", lambda: [(responses, scored, mixes)])
