"""What would stop a run after its LLM is paid is said before anything is made."""

import sqlite3

import pytest

from facttune_ray import cli


@pytest.fixture
def given(tmp_path) -> list[str]:
    """A run of one response against a database in FActScore's form, without our index."""
    (tmp_path / "m.jsonl").write_text('{"topic": "Ada", "output": "Ada sings in Lyon."}\n')
    with sqlite3.connect(tmp_path / "k.db") as database:
        database.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
        database.execute("INSERT INTO documents VALUES ('Ada', 'Ada sings.')")
    database.close()
    (tmp_path / "empty").mkdir()
    words = ["score", f"data.folder={tmp_path}", "data.files=[m.jsonl]", "data.knowledge=k.db"]
    return [*words, f"run.out={tmp_path / 'out'}", "llm.base_url=http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("verdicts.estimator=retrieval+ChatGTP", "verdicts.estimator: no "),
        ("verdicts.estimator=lexical verdicts.retrieval=none", "shows no passages"),
        ("verdicts.estimator=local_lm", "verdicts.local_lm is empty"),
        ("verdicts.retrieval=fts", "k.db has no full-text index: make one beside it"),
        ("verdicts.no_article=search", "k.db has no full-text index: make one beside it"),
        ("verdicts.estimator=retrieval+llama verdicts.local_lm=no/such/model", "no such folder"),
        ("verdicts.estimator=npm verdicts.npm={}/empty", "/empty: no model there"),
        ("verdicts.estimator=nli verdicts.nli={}/empty", "verdicts.nli="),
        ("verdicts.estimator=minicheck verdicts.minicheck=no/such/model", "no such folder"),
        ("model.path=file://{}/none", "/none: no model there"),
        ("llm.base_url=embedded llm.model=gpt-4o-mini", "name its endpoint in llm.base_url"),
        ("classes.method=nli classes.nli_model={}/empty", "classes.nli_model="),
        ("evaluation.estimator=npm verdicts.npm={}/empty", "/empty: no model there"),
        ("contenders.other.model.path={}/empty", "contenders.other.model.path="),
    ],
)
def test_nothing_is_made_before_it_is_said(given, tmp_path, capsys, words, says):
    assert cli.main(["run", *given, *words.format(tmp_path).split()]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
