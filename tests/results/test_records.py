import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensbench.errors import LensbenchError
from lensbench.results.records import (
    SCHEMA,
    read_records,
    read_shard,
    table_from_columns,
    write_json_atomic,
    write_shard,
)


def columns(rows=3, **changes):
    base = {
        "model": "m", "verbalizer": "m", "task": "t", "relation": "r", "inspector": "probe", "baseline": "none",
        "layer": list(range(rows)), "attempt": "only", "item": [f"i{row}" for row in range(rows)], "subject": "Zürich",
        "site": "answer", "gold": "a", "predicted": ["a", "b", "a"][:rows], "predicted_corrected": "a",
        "correct": [1.0, 0.5, 1 / 3][:rows], "correct_corrected": 1.0, "chance": 0.125, "template": "{subject} is",
        "fold": 4, "seed": 0,
    }  # fmt: skip
    return {**base, **changes}


def test_a_shard_comes_back_as_it_was(tmp_path):
    table = table_from_columns(
        columns(text=["x", None, "line\nbreak"], known=[True, None, False], gold_rank=[1, None, 9])
    )
    path = tmp_path / "records" / "cell.parquet"
    write_shard(path, table)
    assert read_shard(path).equals(table)
    assert [file.name for file in path.parent.iterdir()] == ["cell.parquet"]


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = table_from_columns(columns())
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    for name, written in (("a", table), ("b", table_from_columns(columns())), ("c", chunked)):
        write_shard(tmp_path / name, written)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_records_are_read_as_categoricals_and_nullable_numbers(tmp_path):
    write_shard(tmp_path / "records" / "b.parquet", table_from_columns(columns(layer=None, inspector="patchscope")))
    write_shard(tmp_path / "records" / "a.parquet", table_from_columns(columns()))
    (tmp_path / "records" / ".c.parquet.12.tmp").write_bytes(b"half a file")
    for folder in (tmp_path, tmp_path / "records"):
        frame = read_records(folder)
        assert list(frame.columns) == SCHEMA.names
        assert frame["inspector"].tolist() == ["probe"] * 3 + ["patchscope"] * 3
        assert frame["inspector"].dtype == "category"
        assert frame["layer"].isna().tolist() == [False] * 3 + [True] * 3
        assert frame["layer"].tolist()[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lair": 3}, "unknown columns lair"),
        ({"correct": ["yes", "no", "no"]}, "'correct' must be float"),
        ({"layer": [1.5, 2.0, 3.0]}, "'layer' must be int16"),
        ({"fold": [0, None, 1]}, "'fold' has 1 nulls"),
        ({"fold": 300}, "'fold' must be int8"),
        ({"item": ["a", "b"]}, "equally long"),
        ({"gold": [1, 2, object()]}, "'gold' must be string"),
        ({"correct": [1.0, math.nan, 0.0]}, "'correct' has 1 values that are not finite"),
    ],
)
def test_wrong_columns_are_named(changes, complaint):
    with pytest.raises(LensbenchError, match=complaint):
        table_from_columns(columns(**changes))


def test_a_missing_column_is_named():
    incomplete = columns()
    del incomplete["gold"]
    with pytest.raises(LensbenchError, match="missing columns gold"):
        table_from_columns(incomplete)


def test_nan_in_a_nullable_column_is_null():
    table = table_from_columns(columns(gold_log_prob=[-1.0, math.nan, -2.0]))
    assert table["gold_log_prob"].null_count == 1


def test_another_schema_is_not_written(tmp_path):
    with pytest.raises(LensbenchError, match="another schema"):
        write_shard(tmp_path / "x.parquet", pa.table({"model": ["m"]}))


@pytest.mark.parametrize("content", [b"", b"PAR1 no", None])
def test_a_damaged_shard_is_named_with_the_next_step(tmp_path, content):
    path = tmp_path / "cell.parquet"
    write_shard(path, table_from_columns(columns()))
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(LensbenchError, match=r"cell\.parquet is damaged.*delete it.*same --out"):
        read_records(tmp_path)


def test_an_older_shard_is_refused_by_name(tmp_path):
    path = tmp_path / "cell.parquet"
    table = table_from_columns(columns())
    pq.write_table(table.replace_schema_metadata({"lensbench_schema_version": "0"}), path)
    with pytest.raises(LensbenchError, match=r"cell\.parquet has schema version 0, this lensbench reads 1.*delete it"):
        read_shard(path)
    pq.write_table(table.drop_columns(["gold"]), path)
    with pytest.raises(LensbenchError, match="lacks columns"):
        read_shard(path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(LensbenchError, match="no records"):
        read_records(tmp_path)


def test_json_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "run" / "run.json"
    write_json_atomic(path, {"b": 1, "a": ["é", None]})
    write_json_atomic(path, {"b": 2, "a": ["é", None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": ["é", None], "b": 2}
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_json_that_fails_leaves_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "run.json", {"cells": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "run.json", {"cells": math.nan})
    assert json.loads((tmp_path / "run.json").read_text()) == {"cells": 1}
