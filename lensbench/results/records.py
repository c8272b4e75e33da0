"""The schemas of predictions and of other measures, and the atomic files that hold them.

One row is one prediction or one measure; one shard (Parquet file) is one cell of a run. The same table always gives the
same bytes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lensbench.errors import LensbenchError
from lensbench.utils.cache import atomic_file

SCHEMA_VERSION = 1
RECORDS = "records"
ALL = "all"
"""The `relation` of a task's totals."""
CORRECTED = "corrected"
"""The score that decides verdicts by default: prior-corrected; the other is `raw`."""
NO_BASELINE = "none"
"""The value of `baseline` in the rows of a method itself."""

_VERSION_KEY = b"lensbench_schema_version"
NAME = pa.dictionary(pa.int32(), pa.string())
"""The type of a column of names."""
_AGAIN = "delete it and run `lensbench evaluate` again with the same --out"


def _field(name: str, kind: pa.DataType, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null)


SCHEMA = pa.schema(
    [
        _field("model", NAME),
        _field("verbalizer", NAME),
        _field("task", NAME),
        _field("relation", NAME),
        _field("inspector", NAME),
        _field("baseline", NAME),
        _field("layer", pa.int16(), null=True),
        _field("attempt", NAME),
        _field("item", NAME),
        _field("subject", NAME),
        _field("site", NAME),
        _field("gold", NAME),
        _field("predicted", NAME),
        _field("predicted_corrected", NAME),
        _field("correct", pa.float32()),
        _field("correct_corrected", pa.float32()),
        _field("gold_log_prob", pa.float32(), null=True),
        _field("gold_rank", pa.int32(), null=True),
        _field("chance", pa.float32()),
        _field("template", NAME),
        _field("text", pa.string(), null=True),
        _field("open_correct", pa.bool_(), null=True),
        _field("known", pa.bool_(), null=True),
        _field("fold", pa.int8()),
        _field("seed", pa.int32()),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
"""One row per prediction. `layer` is null where a baseline reads no layer; `correct` is 1 over the number of ties."""

_PANDAS_TYPES: dict[pa.DataType, Any] = {
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def table_from_columns(columns: Mapping[str, Sequence[Any] | Any]) -> pa.Table:
    """Make a table of records from one sequence a column, and check names, types, lengths and nulls.

    A single string, number or None stands for the same value in every row; nullable columns may be left out.

    Raises:
        LensbenchError: a missing or unknown column, a wrong type or length, a null where none may be.
    """
    unknown = sorted(set(columns) - set(SCHEMA.names))
    missing = [field.name for field in SCHEMA if field.name not in columns and not field.nullable]
    if unknown or missing:
        problems = [f"unknown columns {', '.join(unknown)}"] * bool(unknown)
        problems += [f"missing columns {', '.join(missing)}"] * bool(missing)
        raise LensbenchError(f"records have {' and '.join(problems)}; the schema has {', '.join(SCHEMA.names)}")
    lengths = {name: len(value) for name, value in columns.items() if not _is_scalar(value)}
    if len(set(lengths.values())) != 1:
        raise LensbenchError(f"record columns must be equally long, got {lengths or 'single values only'}")
    rows = next(iter(lengths.values()))
    arrays = [_column(field, columns.get(field.name), rows) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _column(field: pa.Field, value: Any, rows: int) -> pa.Array:
    kind = _plain(field)
    try:
        if _is_scalar(value):
            array = pa.repeat(pa.scalar(value, type=kind), rows)
        else:
            # from_pandas would turn NaN into null: wanted for nullable numbers only.
            array = pa.array(value, from_pandas=field.nullable)
            array = array.cast(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise LensbenchError(f"record column {field.name!r} must be {kind}: {reason}") from error
    if array.null_count and not field.nullable:
        raise LensbenchError(f"record column {field.name!r} has {array.null_count} nulls and may have none")
    if pa.types.is_floating(kind) and not field.nullable and not pc.all(pc.is_finite(array)).as_py():
        wrong = pc.sum(pc.invert(pc.is_finite(array))).as_py()
        raise LensbenchError(f"record column {field.name!r} has {wrong} values that are not finite")
    return _encoded(field, array)


def _plain(field: pa.Field) -> pa.DataType:
    """The type of a column before its names are encoded as a dictionary."""
    return pa.string() if pa.types.is_dictionary(field.type) else field.type


def _encoded(field: pa.Field, array: pa.Array) -> pa.Array:
    return array.dictionary_encode().cast(NAME) if pa.types.is_dictionary(field.type) else array


def _write_parquet(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as file:
        pq.write_table(table.combine_chunks(), file, compression="zstd", use_dictionary=True)


def write_shard(path: Path, table: pa.Table) -> None:
    """Write a table of records as one Parquet file that exists whole or not at all."""
    if not table.schema.equals(SCHEMA, check_metadata=True):
        raise LensbenchError(f"cannot write {path}: the table has another schema; make it with table_from_columns")
    _write_parquet(path, table)


def read_shard(path: Path) -> pa.Table:
    """Read one shard.

    Raises:
        LensbenchError: it is not Parquet, is cut short, or has another schema version. The message names the file.
    """
    try:
        table = pq.read_table(path, memory_map=False, partitioning=None)
    except FileNotFoundError as error:
        raise LensbenchError(f"{path} is missing: run `lensbench evaluate` again with the same --out") from error
    except (pa.ArrowException, OSError) as error:
        raise LensbenchError(f"{path} is damaged or not a file of records: {_AGAIN}") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise LensbenchError(f"{path} has schema version {version}, this lensbench reads {SCHEMA_VERSION}: {_AGAIN}")
    if not table.schema.equals(SCHEMA):
        raise LensbenchError(f"{path} lacks columns of schema version {SCHEMA_VERSION} or has others: {_AGAIN}")
    return table


def read_records(folder: Path, names: Iterable[str] | None = None) -> pd.DataFrame:
    """Read the shards of a run folder (or of its `records` folder): the named ones, or all in the order of their names.

    Strings become categoricals; columns that may be null become pandas' nullable types.
    """
    shards = folder / RECORDS if (folder / RECORDS).is_dir() else folder
    if names is None:
        paths = sorted(path for path in shards.glob("*.parquet") if not path.name.startswith("."))
    else:
        paths = [shards / name for name in names]
    if not paths:
        raise LensbenchError(f"no records in {folder}: `lensbench evaluate` writes them to {RECORDS}/*.parquet")
    return frame_of([read_shard(path) for path in paths])


def frame_of(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Put tables of records, or of measures, into one frame."""
    table = pa.concat_tables(tables).unify_dictionaries()
    frame: pd.DataFrame = table.to_pandas(types_mapper=_PANDAS_TYPES.get)
    return frame


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write an object as JSON (sorted keys) to a file that exists whole or not at all."""
    text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())


def without_folder(message: str, folder: Path) -> str:
    """Return a message about a run folder without its path: a page that is shared names no local folders."""
    return message.replace(f"{folder}/", "").replace(str(folder), "the folder")


def without_nan(found: Any) -> Any:
    """Return what was found with null for each NaN and infinity, which JSON has not."""
    if isinstance(found, Mapping):
        return {str(name): without_nan(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [without_nan(value) for value in found]
    return None if isinstance(found, float) and not isfinite(found) else found


MEASURES = "measures"
"""The folder of a run that holds them."""
JUDGED = "judged-"
"""How the names of shards begin that were made after the run."""
FACET_RECALL, ROUGE_L = "facet_recall", "rouge_l"
WHOLE_ANSWERS = "accuracy_whole_answers"
"""Corrected accuracy where answers are scored to their last token, in place of those that tell them apart."""
CONFIDENCE = "confidence"
"""How sure a method is of its answer, 0 to 1, where it says so: the share of its samples that say it."""

MEASURE_SCHEMA = pa.schema(
    [
        *(pa.field(name, NAME, nullable=False) for name in ("model", "verbalizer", "task", "relation")),
        *(pa.field(name, NAME, nullable=False) for name in ("inspector", "baseline", "site")),
        pa.field("layer", pa.int16()),
        pa.field("attempt", NAME, nullable=False),
        pa.field("item", NAME),
        pa.field("subject", NAME),
        pa.field("metric", NAME, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)


def measure_table(rows: Mapping[str, Sequence[Any]], **same: str) -> pa.Table:
    """Make a table of measures from columns, and from values that are the same in all rows."""
    length = len(rows["value"])
    columns = {**rows, **{name: [value] * length for name, value in same.items()}}
    arrays = [_encoded(field, pa.array(columns[field.name], type=_plain(field))) for field in MEASURE_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=MEASURE_SCHEMA)


Columns = dict[str, Any]
"""Columns of records or measures, by name."""


def add_totals(
    columns: Columns, totals: Mapping[str, np.ndarray], layers: Sequence[int | None], attempts: Sequence[str]
) -> Columns:
    """Add measures of all items at once, [layer, attempt] each, to columns of measures; what is no number stays out."""
    for metric, values in totals.items():
        for (layer, attempt), value in np.ndenumerate(values):
            if isfinite(value):
                row = (layers[layer], attempts[attempt], None, None, metric, float(value))
                for name, cell in zip(("layer", "attempt", "item", "subject", "metric", "value"), row, strict=True):
                    columns[name].append(cell)
    return columns


def per_item(
    values: Mapping[str, np.ndarray], layers: Sequence[int | None], attempts: Sequence[str], items: Sequence[Any]
) -> Columns:
    """Return columns of measures from arrays [layer, attempt, item], one for each measure; what is no number stays out.

    Args:
        values: by the measure's name.
        layers: of the first axis; None for what reads no layer.
        attempts: of the second.
        items: of the third, with `id` and `subject`.
    """
    shape = (len(layers), len(attempts), len(items))
    layer, attempt, item = (axis.ravel() for axis in np.indices(shape))
    columns: dict[str, list[Any]] = {name: [] for name in ("layer", "attempt", "item", "subject", "metric", "value")}
    for metric, array in values.items():
        numbers = array.astype(np.float64).ravel()
        kept = np.flatnonzero(~np.isnan(numbers))
        columns["layer"] += [layers[i] for i in layer[kept]]
        columns["attempt"] += [attempts[i] for i in attempt[kept]]
        columns["item"] += [items[i].id for i in item[kept]]
        columns["subject"] += [items[i].subject for i in item[kept]]
        columns["metric"] += [metric] * len(kept)
        columns["value"] += numbers[kept].tolist()
    return columns


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table that stands beside a shard of records, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_parquet(path, table)


def read_tables(paths: Iterable[Path], schema: pa.Schema, problem: str) -> pd.DataFrame:
    """Read the tables that stand beside records, those that are there.

    Args:
        paths: of the files.
        schema: that each must have.
        problem: what is said after the name of a file that has not.

    Raises:
        LensbenchError: a file that cannot be read, or of another schema.
    """
    tables = [schema.empty_table()]
    for path in paths:
        if not path.exists():
            continue
        try:
            table = pq.read_table(path, memory_map=False, partitioning=None)
        except (pa.ArrowException, OSError):
            table = None
        if table is None or not table.schema.equals(schema):
            raise LensbenchError(f"{path} {problem}")
        tables.append(table)
    return frame_of(tables)


def read_measures(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    """Read the named shards of a run folder, those that are there, and what was judged afterwards.

    Raises:
        LensbenchError: a file that holds no measures.
    """
    judged = sorted((folder / MEASURES).glob(f"{JUDGED}*.parquet"))
    paths = [*(folder / MEASURES / name for name in names), *judged]
    return read_tables(paths, MEASURE_SCHEMA, "holds no measures: delete it and run `lensbench evaluate` again")


def with_attempts(records: pd.DataFrame, run: Mapping[str, Any]) -> pd.DataFrame:
    """Note beside records what `run.json` says of their attempts: name -> (variant, target layer), in `attrs`."""
    cells = run.get("cells", {}).values()
    records.attrs["attempts"] = {
        name: (str(declared["variant"]), str(declared["target_layer"]))
        for cell in cells
        for name, declared in cell.get("attempts", {}).items()
    }
    return records
