"""A run's tables as datasets: scopes, filters, unfinished runs, folders that are no run."""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import facttune_ray
from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder

SCOPES = ("base/tune", "base/test", "facttune_fs/round_1/test")


def write(root, name, rows, finished=True):
    """One part a list of rows."""
    table = name.rsplit("/", 1)[-1]
    tables.begin(root / name, {"seed": 0})
    for shard, part in enumerate(rows):
        tables.write_part(root / name, table, shard, part, {})
    if finished:
        tables.write_manifest(root / name, table, {"seed": 0}, len(rows), 1.0)


def fill(root):
    write(root, "prompts", [[{"prompt_id": "p", "topic": "Ada"}]])
    for scope in SCOPES:
        ids = [f"{scope}-{i}" for i in range(3)]
        write(root, f"{scope}/responses", [[{"response_id": ids[0], "model": "m", "topic": "Ada"}]])
        facts = [{"fact_id": i, "topic": "Ada", "split": "test"} for i in ids]
        write(root, f"{scope}/facts", [facts[:2], facts[2:]])
        verdicts = [{"fact_id": i, "supported": i.endswith("0")} for i in ids]
        write(root, f"{scope}/verdicts", [verdicts], finished=scope != SCOPES[2])
        write(root, f"{scope}/second_opinion/verdicts", [verdicts[:1]])
    return root


@pytest.fixture
def folder(tmp_path):
    fill(Folder.of(str(tmp_path)))
    return tmp_path


def test_columns_tell_the_scopes_apart(folder):
    run = facttune_ray.load(str(folder))
    facts = run.facts.to_pandas()
    assert list(facts.columns[:3]) == ["scope", "model", "fact_id"] and len(facts) == 9
    assert facts.groupby("scope").size().to_dict() == dict.fromkeys(SCOPES, 3)
    models = facts.drop_duplicates("scope").set_index("scope")["model"].to_dict()
    assert models == dict(zip(SCOPES, ("base", "base", "facttune_fs/round_1"), strict=True))
    # the table's own column `model` stays, and no other one is added
    assert run.responses.to_table()["model"].to_pylist() == ["m"] * 3
    assert run.prompts.schema.names[0] == "scope" and "model" not in run.prompts.schema.names


def test_a_filter_opens_only_the_files_of_its_scope(folder):
    run = facttune_ray.load(str(folder))
    chosen = run.facts.filter(scope="base/test")
    (folder / "base/tune/facts/part-00000.parquet").write_bytes(b"damaged")
    assert chosen.to_table()["fact_id"].to_pylist() == [f"base/test-{i}" for i in range(3)]
    assert len(run.facts.filter(ds.field("fact_id") != "x", model="facttune_fs/round_1")) == 3
    with pytest.raises(pa.ArrowInvalid):
        run.facts.to_table()


def test_equal_values_nulls_and_unknown_columns(folder):
    run = facttune_ray.load(str(folder))
    assert run.verdicts.filter(supported=False, scope="base/test").count_rows() == 2
    assert len(run.facts.filter(error=None)) == 9
    with pytest.raises(UserError, match='no column "suported". Did you mean "supported"'):
        run.verdicts.filter(suported=True)
    with pytest.raises(UserError, match='no column "fct"'):
        run.facts.to_pandas(columns=["fct"])


def test_the_second_judge_has_a_table_of_its_own(folder):
    run = facttune_ray.load(str(folder))
    assert run.verdicts.count_rows() == 9 and run.second_opinion.count_rows() == 3
    assert set(run.second_opinion.to_table()["scope"].to_pylist()) == set(SCOPES)


def test_finished_parts_of_a_table_that_is_being_made(folder):
    run = facttune_ray.load(str(folder))
    assert run.unfinished == [f"{SCOPES[2]}/verdicts"]
    assert run.tables["verdicts"] == ["base/test", "base/tune"]
    (folder / "base/test/facts/part-00002.parquet.1a2b.tmp").write_bytes(b"half")
    assert facttune_ray.load(str(folder)).facts.count_rows() == 9
    assert "1 unfinished" in repr(run) and "facts" in dir(run)


def test_python_asks_for_a_table_that_is_not_there(folder):
    run = facttune_ray.load(folder)
    assert hasattr(run, "facts") and not hasattr(run, "mixes")
    assert getattr(run, "mixes", None) is None
    with pytest.raises(UserError, match="no part of a table mixes"):
        run.mixes  # noqa: B018
    with pytest.raises(UserError, match='give a list of columns, such as \\["topic"\\]'):
        run.facts.to_pandas(columns="topic")


def test_arrow_streams(folder):
    run = facttune_ray.load(str(folder))
    assert pa.table(run.facts.filter(scope="base/test")).num_rows == 3


def test_without_pandas_the_message_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas, or use to_table"):
        facttune_ray.load(str(folder)).facts.to_pandas()


def test_what_is_no_run_or_not_there_is_one_line(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no table: name the folder of a run"):
        facttune_ray.load(str(other))
    with pytest.raises(UserError, match="does not exist"):
        facttune_ray.load(str(other / "missing"))
    run = facttune_ray.load(str(folder))
    with pytest.raises(UserError, match="no part of a table p_true is finished: it has facts"):
        _ = run.p_true
    with pytest.raises(UserError, match="no summary.json"):
        _ = run.summary
    with pytest.raises(AttributeError, match='no "fact".* Did you mean "facts"'):
        _ = run.fact


def test_a_run_in_an_object_store(object_store):
    root = fill(Folder.of(object_store.uri("saved")))
    run = facttune_ray.load(object_store.uri("saved"))
    assert run.facts.filter(scope="base/test").to_pandas()["fact_id"].is_unique
    assert (root / "prompts").exists() and run.verdicts.count_rows() == 9


def test_a_store_that_does_not_answer_is_one_line(object_store, monkeypatch):
    uri = object_store.uri("saved")
    monkeypatch.setattr(
        Folder, "exists", lambda self: (_ for _ in ()).throw(OSError("AWS Error x"))
    )
    with pytest.raises(UserError, match="storage: the store does not answer: AWS Error x"):
        facttune_ray.load(uri)
