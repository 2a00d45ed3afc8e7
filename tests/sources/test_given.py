"""Preference files of the user: each form and format by hand, and the message for each error."""

from __future__ import annotations

import csv
import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facttune_ray.config import GroupsConfig
from facttune_ray.errors import UserError
from facttune_ray.export import preferences, rewards
from facttune_ray.sources import given
from facttune_ray.storage import records
from facttune_ray.storage.schema import REWARD_COLUMNS

PLAIN = GroupsConfig()
GROUPED = {"prompt": "Who is Ada?", "responses": ["a", "b", "c"], "rewards": [1.0, 0.5, None]}
PAIRED = {"prompt": "Who is Ada?", "responses": ["a", "b", "c"], "pairs": [[0, 1], [2, 1]]}
CHOSEN = {"prompt": "Who is Ada?", "chosen": "a", "rejected": "b"}


def file_of(tmp_path, *rows, name="p.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def groups(tmp_path, *rows, cfg=PLAIN):
    return given.read([file_of(tmp_path, *rows)], cfg).groups


# ---------------------------------------------------------------- forms


def test_rewards_by_hand(tmp_path):
    (found,) = groups(tmp_path, GROUPED)
    assert (found["responses"], found["rewards"]) == (["a", "b"], [1.0, 0.5])  # null: left out
    assert (found["pairs"], found["given_pairs"]) == (1, None)
    assert (found["topic"], found["split"], found["prompt"]) == ("Who is Ada?", "train") + (
        "Who is Ada?",
    )
    assert len(set(found["response_ids"])) == 2


def test_pairs_by_hand(tmp_path):
    (found,) = groups(tmp_path, PAIRED | {"topic": "Ada"})
    assert (found["responses"], found["given_pairs"]) == (["a", "b", "c"], [[0, 1], [2, 1]])
    assert (found["rewards"], found["pairs"]) == ([1.0, -2.0, 1.0], 2)  # wins minus losses
    assert found["topic"] == "Ada"


def test_chosen_and_rejected_of_a_prompt_become_one_group(tmp_path):
    other = {"prompt": "Who is Bo?", "chosen": "x", "rejected": "y"}
    rows = [CHOSEN, other, CHOSEN | {"rejected": "c"}, CHOSEN, CHOSEN | {"rejected": "a"}]
    rows += [{"prompt": "Who is Ada?", "chosen": "c", "rejected": "b"}]
    found = given.read([file_of(tmp_path, *rows)], PLAIN)
    ada, bo = found.groups
    assert ada["responses"] == ["a", "b", "c"]
    assert ada["given_pairs"] == [[0, 1], [0, 2], [2, 1]]
    assert (bo["responses"], bo["pairs"]) == (["x", "y"], 1)
    assert found.left_out == 2  # one stands twice, one is of equal texts


def test_the_threshold_applies_to_rewards(tmp_path):
    rows = [GROUPED, {"prompt": "p", "responses": ["a", "b"], "rewards": [0, 1]}]
    found = given.read([file_of(tmp_path, *rows)], GroupsConfig(threshold=0.5))
    assert ([g["prompt"] for g in found.groups], found.left_out) == (["p"], 1)


def test_rows_of_one_prompt_with_rewards_stay_apart(tmp_path):
    """The rewards of two rows may have different scales."""
    again = GROUPED | {"responses": ["d", "e", "f"]}
    found = given.read([file_of(tmp_path, GROUPED, again, GROUPED)], PLAIN)
    assert [g["responses"] for g in found.groups] == [["a", "b"], ["d", "e"]]
    assert len({g["prompt_id"] for g in found.groups}) == 2 and found.left_out == 1


def test_equal_and_empty_texts_make_no_pair(tmp_path):
    row = {"prompt": "p", "responses": ["x", "x", "", "y"], "rewards": [0.5, 0.9, 2.0, 1.0]}
    (found,) = groups(tmp_path, row)
    assert (found["responses"], found["rewards"]) == (["x", "y"], [0.5, 1.0])  # the first counts
    row = {"prompt": "p", "responses": ["x", "x", "", "y"]} | {"pairs": [[0, 1], [3, 2], [3, 1]]}
    (found,) = groups(tmp_path, row)
    assert found["given_pairs"] == [[0, 1]] and found["responses"] == ["y", "x"]


ASK = {"role": "user", "content": "Who?"}
USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]},
        {"prompt": "Hi", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        {"chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        {"prompt": [USER], "responses": [[said("a")], [said("b")]], "pairs": [[0, 1]]},
    ],
)
def test_chat_messages(tmp_path, row):
    (found,) = groups(tmp_path, row)
    assert (found["prompt"], found["responses"]) == ("Hi", ["a", "b"])


# ---------------------------------------------------------------- formats


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [CHOSEN, {"prompt": 'B, "o"\n', "chosen": "x\ny", "rejected": "é"}]
    file_of(tmp_path, *rows)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    (tmp_path / "p.json").write_text(json.dumps(rows, indent=1))
    file_of(tmp_path, *rows, name="lines.json")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with open(tmp_path / "p.csv", "w", newline="") as f:
        out = csv.DictWriter(f, rows[0])
        out.writeheader()
        out.writerows(rows)
    names = ("p.jsonl", "p.jsonl.gz", "p.json", "lines.json", "p.parquet", "p.csv")
    for name in names:
        found = given.read([str(tmp_path / name)], PLAIN).groups
        assert [g["responses"] for g in found] == [["a", "b"], ["x\ny", "é"]], name
        assert found[1]["prompt"] == 'B, "o"'
    every = given.read([str(tmp_path / name) for name in names], PLAIN)
    assert every.groups == found and every.left_out == 10


def test_lists_in_parquet_and_csv(tmp_path):
    both = [GROUPED | {"pairs": None}, PAIRED | {"rewards": None}]
    pq.write_table(pa.Table.from_pylist(both), tmp_path / "p.parquet")
    with open(tmp_path / "p.csv", "w", newline="") as f:
        out = csv.DictWriter(f, ["prompt", "responses", "rewards", "pairs"])
        out.writeheader()
        for row in (GROUPED, PAIRED):
            out.writerow({k: v if k == "prompt" else json.dumps(v) for k, v in row.items()})
    one, other = (
        given.read([str(tmp_path / name)], PLAIN).groups for name in ("p.parquet", "p.csv")
    )
    assert one == other and [g["pairs"] for g in one] == [1, 2]


def test_prompts_as_keys(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"Who is Ada?": {k: PAIRED[k] for k in ("responses", "pairs")}}))
    assert given.read([str(path)], PLAIN).groups == groups(tmp_path, PAIRED)


def test_prompts_that_differ_by_white_space_at_the_end_are_one(tmp_path):
    rows = [CHOSEN, CHOSEN | {"prompt": "Who is Ada? \n", "rejected": "c"}]
    (found,) = groups(tmp_path, *rows)
    assert (found["prompt"], found["responses"]) == ("Who is Ada?", ["a", "b", "c"])


def test_a_null_response_with_a_null_reward_is_counted(tmp_path):
    row = GROUPED | {"responses": ["a", "b", None]}
    found = given.read([file_of(tmp_path, row, row | {"prompt": "Who is Bo?"})], PLAIN)
    assert [g["responses"] for g in found.groups] == [["a", "b"]] * 2 and found.empty == 2
    row |= {"rewards": [1.0, 0.5, 0.25]}
    refused(lambda: groups(tmp_path, row), "responses[2] is null, but its reward is 0.25")


def test_exported_conversations_come_back(tmp_path):
    row = {"prompt": [SYSTEM, USER, said("Hello."), ASK], "responses": ["a", "b"]}
    made = groups(tmp_path, row | {"rewards": [1.0, 0.0]})
    preferences.write(str(tmp_path), made, chat=True)
    for kind in ("preferences", "grouped"):
        (back,) = given.read([str(tmp_path / kind / "train.jsonl")], PLAIN).groups
        assert {k: back[k] for k in ("prompt", "turns", "responses")} == {
            k: made[0][k] for k in ("prompt", "turns", "responses")
        }
    preferences.write(str(tmp_path), made)
    line = json.loads((tmp_path / "preferences" / "train.jsonl").read_text())
    assert (
        line["prompt"]
        == "Be kind.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant:\n"
    )


def test_exported_preferences_come_back(tmp_path):
    row = {"topic": "Ada", "split": "train", "prompt": "Who is Ada?"}
    row |= {"responses": ["a", "b", "c"], "rewards": [0.0, 1.0, 0.5]}
    for chat in (False, True):
        preferences.write(str(tmp_path), [row], chat=chat)
        (pairs,) = given.read([str(tmp_path / "preferences" / "train.jsonl")], PLAIN).groups
        assert (pairs["prompt"], pairs["topic"], pairs["pairs"]) == ("Who is Ada?", "Ada", 3)
        (whole,) = given.read([str(tmp_path / "grouped" / "train.jsonl")], PLAIN).groups
        assert {k: whole[k] for k in row} == row


def test_the_recipe_is_the_content_of_the_file(tmp_path):
    one = given.recipe([file_of(tmp_path, CHOSEN)])
    assert one == given.recipe([file_of(tmp_path, CHOSEN, name="other.jsonl")])
    assert one != given.recipe([file_of(tmp_path, PAIRED)])


# ---------------------------------------------------------------- one clear line


def refused(read, says):
    with pytest.raises(UserError) as e:
        read()
    assert says in str(e.value) and "\n" not in str(e.value), str(e.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, 'p.jsonl:2: give "prompt" with "responses" and "rewards"'),
        ({"text": "a"}, "it has text"),
        ({}, "it has nothing"),
        ({"prompt": "p", "chosen": "a"}, 'p.jsonl:2: no "rejected"'),
        ({"chosen": "a", "rejected": "b"}, 'p.jsonl:2: no "prompt"'),
        ({"prompt": "p", "responses": ["a", "b"]}, 'p.jsonl:2: no "rewards"'),
        ({"chosen": [], "rejected": []}, '"chosen" must be a text or a list of chat messages'),
        ({"responses": ["a", "b"], "rewards": [0, 1]}, 'p.jsonl:2: no "prompt"'),
        (GROUPED | {"rewards": [1.0]}, "p.jsonl:2: 1 rewards for 3 responses"),
        (GROUPED | {"rewards": [1.0, float("nan"), 0]}, "rewards[1] is nan: it must be finite"),
        (GROUPED | {"rewards": [1.0, 0, float("inf")]}, "rewards[2] is inf: it must be finite"),
        (GROUPED | {"rewards": [1.0, "0", True]}, "rewards[1] is '0': it must be a number"),
        (GROUPED | {"rewards": [1.0, 0, True]}, "rewards[2] is True: it must be a number"),
        (GROUPED | {"rewards": 1.0}, '"rewards" must be a list'),
        (GROUPED | {"pairs": [[0, 1]]}, 'has "rewards" and "pairs"'),
        (GROUPED | {"prompt": " \n"}, 'p.jsonl:2: "prompt" is empty'),
        (CHOSEN | {"prompt": ""}, 'p.jsonl:2: "prompt" is empty'),
        (CHOSEN | {"prompt": 5}, '"prompt" must be a text or a list of chat messages, not 5'),
        (CHOSEN | {"topic": 5}, '"topic" must be a text, not 5'),
        (PAIRED | {"pairs": [[0, 3]]}, "pairs[0] is [0, 3]: it must be [winner, loser]"),
        (PAIRED | {"pairs": [[0]]}, "pairs[0] is [0]: it must be"),
        (PAIRED | {"responses": ["a", None]}, '"responses[1]" must be a text'),
        (
            CHOSEN | {"prompt": [USER, SYSTEM]},
            '"prompt" must end with a user message, not user, system',
        ),
        (CHOSEN | {"chosen": [USER]}, '"chosen" must be an assistant message'),
        (CHOSEN | {"chosen": [USER, said("a")]}, '"chosen" must be an assistant message'),
        (CHOSEN | {"chosen": [{"role": "assistant"}]}, 'needs "role" and "content"'),
        ([1], "p.jsonl:2: expected an object with columns"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path, row, says):
    refused(lambda: groups(tmp_path, CHOSEN, row), says)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([GROUPED | {"rewards": [None] * 3}] * 2, "every reward is null: nothing to train on"),
        ([GROUPED | {"rewards": [0.5] * 3}], "no usable pair in 1 rows"),
        ([CHOSEN | {"rejected": "a"}], "no usable pair in 1 rows"),
        ([PAIRED | {"pairs": []}], "no usable pair in 1 rows"),
        ([], "p.jsonl: the file is empty"),
    ],
)
def test_files_without_a_pair(tmp_path, rows, says):
    refused(lambda: groups(tmp_path, *rows), says)


@pytest.mark.parametrize("settings", [{"threshold": 0.5}, {"max_pairs": 3}, {"weights": "margin"}])
def test_settings_of_rewards_do_not_fit_pairs(tmp_path, settings):
    cfg, (key,) = GroupsConfig(**settings), settings
    for row in (CHOSEN, PAIRED):
        refused(lambda row=row: groups(tmp_path, row, cfg=cfg), f"p.jsonl:1: groups.{key}=")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"", "p.txt: the file is empty"),
        ("p.txt", b"Ada", "p.txt: its content is neither Parquet nor JSON nor CSV"),
        ("p.jsonl", b'{"a": 1', "p.jsonl:1: not JSON"),
        ("p.json", b'{"a": 1', "p.json: not JSON"),
        ("p.json", b"5", "p.json: expected a list of objects"),
        ("p.json", b"[5]", "p.json: row 1: expected an object"),
        ("p.jsonl", b'{"a": "\xff"}\n', "p.jsonl:1: not UTF-8"),
        ("p.parquet", b"no parquet at all", "p.parquet: its content is neither Parquet"),
        ("p.parquet", b"PAR1 and no more", "p.parquet: row 1: cannot be read"),
        ("p.jsonl.gz", b"no gzip", "p.jsonl.gz:1: not JSON"),
        ("p.jsonl.gz", b"\x1f\x8b no gzip", "p.jsonl.gz: row 1: cannot be read"),
        ("p.csv", b"prompt,chosen\na,b,c\n", "p.csv: row 1: not as many cells"),
        ("p.csv", b'prompt,rewards\na,"[1"\n', "p.csv: row 1: not JSON"),
        ("p.csv", b"prompt,chosen\n", "p.csv: the file is empty"),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    refused(lambda: list(records.read(str(tmp_path / name))), says)


def test_a_missing_file(tmp_path):
    refused(lambda: given.recipe([str(tmp_path / "gone.jsonl")]), "gone.jsonl: no such file")
    refused(lambda: given.recipe([str(tmp_path)]), "no such file")


@pytest.mark.parametrize("value", ["", [], 5, [""], {"a": "b"}, [1], None])
def test_data_groups_must_name_files(value):
    refused(lambda: given.files(value), "data.groups")


def test_one_file_or_several():
    assert given.files("a.csv") == ["a.csv"] and given.files(["a", "b"]) == ["a", "b"]


# ---------------------------------------------------------------- FactTune's rewards files


def test_a_rewards_file_of_the_scripts(tmp_path):
    lists = {"factscore_avg": [math.nan, 1, 0.5], "aq_max_conf_avg": [0.5, 0.25, 0.5]}
    asked = {"Who?": {"responses": ["a", "b", "c"]} | lists}
    path = tmp_path / "rewards_train_2.json"
    path.write_text(json.dumps({"Ada": asked, "Bo": {}}))
    (found,) = given.read([str(path)], PLAIN, "factscore_avg").groups
    assert (found["topic"], found["prompt"]) == ("Ada", "Who?")
    assert (found["responses"], found["rewards"]) == (["b", "c"], [1.0, 0.5])
    (found,) = given.read([str(path)], PLAIN, "aq_max_conf_avg").groups
    assert (found["rewards"], found["pairs"]) == ([0.5, 0.25, 0.5], 2)
    refused(
        lambda: given.read([str(path)], PLAIN, "ne_avg"),
        "row 1: no data.reward=ne_avg; its lists are aq_max_conf_avg, factscore_avg",
    )


def test_exported_rewards_can_be_trained_on(tmp_path):
    def row(i, **more):
        ids = {"response_id": f"r{i}", "prompt_id": "p", "topic": "Ada", "split": "train"}
        return ids | {"prompt": "Who?", "text": "abc"[i]} | more

    values = [dict.fromkeys(REWARD_COLUMNS) | {"factscore": v} for v in (0.5, None, 1.0)]
    scored = [row(i) | v for i, v in enumerate(values)]
    rewards.write(str(tmp_path), "train", lambda: [([row(i) for i in range(3)], scored, [])])
    path = str(tmp_path / "rewards" / "rewards_train_1.json")
    (found,) = given.read([path], PLAIN, "factscore_avg").groups
    assert (found["responses"], found["rewards"]) == (["a", "c"], [0.5, 1.0])
