"""Rows by number of the table that training reads."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.training import rows


def row(i: int) -> dict:
    return {
        "prompt_id": str(i),
        "rewards": [0.0, 1.0],
        "prompt_tokens": [i],
        "response_tokens": [[i, 2], [3]],
        "logps": [[-0.5, -1.0], [-0.25]],
        "pairs": i,
    }


def test_rows_of_all_parts_by_number(tmp_path):
    folder = tables.Folder.of(str(tmp_path / "table"))
    tables.write_part(folder, "reference", 0, [row(0), row(1)], {})
    tables.write_part(folder, "reference", 1, [], {})
    tables.write_part(folder, "reference", 2, [row(2)], {})
    parts = sorted(str(p) for p in (tmp_path / "table").glob("*.parquet"))
    assert rows.survey(parts, 99).pairs == 3
    rows.write(parts, tmp_path / "rows.arrow")
    found = rows.Rows(tmp_path / "rows.arrow")
    assert len(found) == 3 and found.pairs_G.tolist() == [0, 1, 2]
    last, first = found.at([2, 0])
    assert (last["prompt_tokens"], first["prompt_tokens"]) == ([2], [0])
    assert last["logps"] == [[-0.5, -1.0], [-0.25]] and last["topic"] is None


def test_truncations_are_totalled(tmp_path):
    folder = tables.Folder.of(str(tmp_path / "table"))
    cut = [row(0) | {"cut_prompt": True, "cut_responses": 2}, row(1) | {"cut_responses": 1}, row(2)]
    for shard, some in enumerate((cut[:1], [], cut[1:])):
        tables.write_part(folder, "reference", shard, some, {})
    parts = sorted(map(str, (tmp_path / "table").glob("*.parquet")))
    assert rows.survey(parts, 99) == rows.Survey(3, 1, 3)


def test_a_missing_column_is_one_clear_line(tmp_path):
    part = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"prompt_id": ["a"], "pairs": [1]}), part)
    for read in (
        lambda: rows.write([part], tmp_path / "rows.arrow"),
        lambda: rows.survey([part], 99),
    ):
        with pytest.raises(UserError, match="part.parquet: no column cut_prompt"):
            read()


def test_a_response_longer_than_a_pass_is_one_clear_line(tmp_path):
    folder = tables.Folder.of(str(tmp_path / "table"))
    tables.write_part(folder, "reference", 0, [row(1), row(2)], {})
    part = str(tmp_path / "table" / "part-00000.parquet")
    rows.survey([part], 3)
    with pytest.raises(UserError, match="pass_tokens=2: prompt 1 has 1 tokens and a response 2"):
        rows.survey([part], 2)
