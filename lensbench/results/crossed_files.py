"""Credit under other activations, as it is stored in a run folder: see `lensbench.results.crossed`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lensbench.errors import LensbenchError
from lensbench.results.records import NAME, read_tables

CROSSED = "crossed"
"""The folder of a run that holds these tables, one file a cell."""
CROSSED_SCHEMA = pa.schema(
    [
        *(pa.field(name, NAME, nullable=False) for name in ("model", "verbalizer", "task", "site")),
        *(pa.field(name, NAME, nullable=False) for name in ("inspector", "baseline", "relation")),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("attempt", NAME, nullable=False),
        pa.field("item", NAME, nullable=False),
        pa.field("answer", NAME, nullable=False),
        pa.field("credit", pa.float32(), nullable=False),
    ]
)
"""One row for each activation (`item`) and gold answer with any credit: what an item with this gold earns there."""


def crossed_table(
    credit: NDArray[np.float64], layers: Sequence[int], attempts: Sequence[str], items: Sequence[str],
    answers: Sequence[str], **same: str,
) -> pa.Table:  # fmt: skip
    """Make the table of a cell's relation; credit of 0 is left out.

    Args:
        credit: [layer, attempt, activation, gold answer].
        layers: of the first axis.
        attempts: of the second.
        items: whose activation, of the third.
        answers: of the fourth.
        same: the values of the other columns.
    """
    places = np.nonzero(credit)
    axes = zip(("layer", "attempt", "item", "answer"), (layers, attempts, items, answers), places, strict=True)
    columns: dict[str, pa.Array] = {}
    for name, values, place in axes:
        if name == "layer":
            columns[name] = pa.array(np.asarray(values, dtype=np.int16)[place])
        else:
            columns[name] = pa.DictionaryArray.from_arrays(place.astype(np.int32), pa.array(values, pa.string()))
    columns["credit"] = pa.array(credit[places].astype(np.float32))
    rows = len(places[0])
    for name, value in same.items():
        codes = pa.array(np.zeros(rows, np.int32))
        columns[name] = pa.DictionaryArray.from_arrays(codes, pa.array([value], pa.string()))
    return pa.Table.from_arrays([columns[field.name] for field in CROSSED_SCHEMA], schema=CROSSED_SCHEMA)


def read_crossed(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    """Read the named tables of a run folder.

    Raises:
        LensbenchError: a file that is missing, or holds no such table.
    """
    paths = [folder / CROSSED / name for name in names]
    for path in paths:
        if not path.exists():
            raise LensbenchError(f"{path} is missing: run `lensbench evaluate` again with the same --out")
    problem = "is damaged: delete it and run `lensbench evaluate` again with the same --out"
    return read_tables(paths, CROSSED_SCHEMA, problem)
