import errno

import pytest

from facttune_ray import cli
from facttune_ray.errors import RecipeMismatch, UserError
from facttune_ray.storage import tables
from facttune_ray.storage.schema import digest, seed_from
from facttune_ray.storage.tables import Folder

PROMPT = {"prompt_id": "p", "topic": "Mara Veldt", "split": "train", "prompt": "Write."}
PROMPT |= {"pronoun": "her", "lower_case": None, "error": None, "group": None}


def make(folder, recipe, shards=2):
    tables.begin(folder, recipe)
    for shard in range(shards):
        tables.write_part(folder, "prompts", shard, [PROMPT] * (shard + 1), {"calls": 10})
    return tables.write_manifest(folder, "prompts", recipe, shards, wall_s=1.5)


def test_rows_and_manifest_are_read_as_written(tmp_path):
    folder = Folder.of(str(tmp_path)) / "prompts"
    written = make(folder, {"a": 1})
    counts = ("rows", "calls", "errors", "shards")
    assert [written[key] for key in counts] == [3, 20, 0, 2]
    assert tables.matching_manifest(folder, {"a": 1}) == written
    assert list(tables.rows(folder, 1)) == [PROMPT, PROMPT]
    assert len(list(tables.rows(folder))) == 3


def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path):
    folder = Folder.of(str(tmp_path)) / "prompts"
    make(folder, {"train.lr": 1e-5, "same": 1, "input.groups": "x"})
    with pytest.raises(RecipeMismatch) as caught:
        tables.matching_manifest(folder, {"train.lr": 3e-5, "same": 1, "input.groups": "y"})
    message = str(caught.value)
    assert "train.lr was 1e-05, now 3e-05" in message
    assert "another run.out" in message
    assert "same" not in message and "input.groups" not in message


def test_an_unfinished_table_keeps_parts_of_the_same_recipe_only(tmp_path):
    folder = Folder.of(str(tmp_path)) / "prompts"
    tables.begin(folder, {"a": 1})
    tables.write_part(folder, "prompts", 1, [PROMPT], {})
    assert tables.matching_manifest(folder, {"a": 1}) is None
    tables.begin(folder, {"a": 1})
    assert tables.present(folder, 2) == {1}
    tables.begin(folder, {"a": 2})
    assert tables.present(folder, 2) == set()


def test_errors_are_counted_without_reading_rows(tmp_path):
    folder = Folder.of(str(tmp_path)) / "answers"
    rows = [{"question_id": "q", "error": None}, {"question_id": "r", "error": "timeout"}]
    tables.write_part(folder, "answers", 0, rows, {})
    assert tables.part_stats(folder, 0) == {"rows": 2, "errors": 1}


def test_a_path_through_a_file_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another one") as caught:
        (Folder.of(str(tmp_path / "file")) / "a" / "b").write_json({})
    assert "\n" not in str(caught.value)


def test_a_full_disk_gives_one_line():
    with pytest.raises(UserError, match="no space left"), tables.writing("t"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_inside_a_library_gives_one_line():
    with pytest.raises(UserError, match="no space left"), tables.writing("model"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_bug_is_not_reported_as_bad_input():
    with pytest.raises(ZeroDivisionError), tables.writing("t"):
        raise ZeroDivisionError


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UserError, match="nope://x"):
        Folder.of("nope://x")


def test_ids_are_the_same_in_every_process():
    assert digest("Mara Veldt", "Write.") == "0db45f0affcc45c988d3"
    assert digest("a", "b") != digest("ab", "")
    assert 0 <= seed_from(0, "x") < 2**63


@pytest.mark.parametrize("words", [["quickstart", "--out"], ["ledger", "stats"]])
def test_a_file_in_place_of_a_folder_gives_one_line(tmp_path, capsys, words):
    (tmp_path / "people.txt").write_text("Ada\n")
    assert cli.main([*words, str(tmp_path / "people.txt")]) == 2
    error = capsys.readouterr().err
    assert "people.txt" in error and "is a file, not a folder" in error and error.count("\n") == 1


def test_a_damaged_manifest_gives_one_line(tmp_path, capsys):
    manifest = tmp_path / "prompts" / "_MANIFEST.json"
    manifest.parent.mkdir()
    manifest.write_text('{"rows": 1')
    assert cli.main(["status", "quickstart", f"run.out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"{manifest}: damaged, not JSON: remove it" in error
    manifest.unlink()
    assert cli.main(["status", "quickstart", f"run.out={tmp_path}"]) == 2
    assert "no table there: name a run's folder" in capsys.readouterr().err


def test_rows_about_some_topics(tmp_path):
    folder = Folder.of(str(tmp_path))
    for shard, topics in enumerate(("ab", "cd")):
        rows = [{"fact_id": t, "topic": t} for t in topics]
        tables.write_part(folder, "facts", shard, rows, {})
    assert tables.rows_if_finished(folder, 0, {"a"}) == []
    tables.write_manifest(folder, "facts", {}, 2, 0.0)
    found = tables.rows(folder, topics={"a", "d", "e"})
    assert [r["fact_id"] for r in found] == ["a", "d"]
    assert [r["fact_id"] for r in tables.rows_if_finished(folder, 1, {"a", "d"})] == ["d"]
