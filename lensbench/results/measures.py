"""Measures of single predictions other than right and wrong: how good a text is, how far a lens is from the model.

A cell that has some keeps them in a shard of their own, beside its records: one row an item (or none, for what is
measured over all items), layer, attempt and measure.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lensbench.errors import LensbenchError
from lensbench.utils.cache import atomic_file

MEASURES = "measures"
"""The folder of a run that holds them."""
JUDGED = "judged-"
"""How the names of shards begin that were made after the run."""
FACET_RECALL, ROUGE_L = "facet_recall", "rouge_l"

Columns = dict[str, Any]
"""Columns of records or measures, by name."""

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        *(pa.field(name, _NAME, nullable=False) for name in ("model", "verbalizer", "task", "relation")),
        *(pa.field(name, _NAME, nullable=False) for name in ("inspector", "baseline", "site")),
        pa.field("layer", pa.int16()),
        pa.field("attempt", _NAME, nullable=False),
        pa.field("item", _NAME),
        pa.field("subject", _NAME),
        pa.field("metric", _NAME, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)


def measure_table(rows: Mapping[str, Sequence[Any]], **same: str) -> pa.Table:
    """Make a table of measures from columns, and from values that are the same in all rows."""
    length = len(rows["value"])
    arrays = []
    for field in SCHEMA:
        kind = pa.string() if pa.types.is_dictionary(field.type) else field.type
        values = [same[field.name]] * length if field.name in same else rows[field.name]
        array = pa.array(values, type=kind)
        arrays.append(array.dictionary_encode().cast(_NAME) if pa.types.is_dictionary(field.type) else array)
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def per_item(
    values: Mapping[str, np.ndarray], layers: Sequence[int | None], attempts: Sequence[str], items: Sequence[Any]
) -> Columns:
    """Return columns of measures from arrays [layer, attempt, item], one for each measure.

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
        columns["layer"] += [layers[i] for i in layer]
        columns["attempt"] += [attempts[i] for i in attempt]
        columns["item"] += [items[i].id for i in item]
        columns["subject"] += [items[i].subject for i in item]
        columns["metric"] += [metric] * array.size
        columns["value"] += array.astype(np.float64).ravel().tolist()
    return columns


def write_measures(path: Path, table: pa.Table) -> None:
    """Write a shard of measures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        pq.write_table(table.combine_chunks(), file, compression="zstd", use_dictionary=True)


def read_measures(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    """Read the named shards of a run folder, those that are there, and what was judged afterwards.

    Raises:
        LensbenchError: a file that holds no measures.
    """
    tables = [SCHEMA.empty_table()]
    judged = sorted((folder / MEASURES).glob(f"{JUDGED}*.parquet"))
    for path in [*(folder / MEASURES / name for name in names), *judged]:
        if not path.exists():
            continue
        try:
            table = pq.read_table(path, memory_map=False, partitioning=None)
        except (pa.ArrowException, OSError):
            table = None
        if table is None or not table.schema.equals(SCHEMA):
            raise LensbenchError(f"{path} holds no measures: delete it and run `lensbench evaluate` again")
        tables.append(table)
    whole = pa.concat_tables(tables).unify_dictionaries()
    frame: pd.DataFrame = whole.to_pandas(types_mapper={pa.int16(): pd.Int16Dtype()}.get)
    return frame
