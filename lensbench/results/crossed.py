"""Credit under other activations: what an item would have earned if another item's activation had been read.

A method that reads the activation and the question alone scores every answer of a relation for every activation. What
item i would earn under the activation of item j is therefore known for all pairs, without another pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lensbench.errors import LensbenchError
from lensbench.results.arrays import KEYS, CellScores, Items
from lensbench.results.bands import Floats, Ints
from lensbench.results.records import frame_of
from lensbench.utils.cache import atomic_file

CROSSED = "crossed"
"""The folder of a run that holds these tables, one file a cell."""
_NAME = pa.dictionary(pa.int32(), pa.string())
CROSSED_SCHEMA = pa.schema(
    [
        *(pa.field(name, _NAME, nullable=False) for name in (*KEYS, "relation")),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("attempt", _NAME, nullable=False),
        pa.field("item", _NAME, nullable=False),
        pa.field("answer", _NAME, nullable=False),
        pa.field("credit", pa.float32(), nullable=False),
    ]
)
"""One row for each activation (`item`) and gold answer with any credit: what an item with this gold earns there."""


def crossed_table(
    credit: Floats, layers: Sequence[int], attempts: Sequence[str], items: Sequence[str], answers: Sequence[str],
    **same: str,
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


def write_crossed(path: Path, table: pa.Table) -> None:
    """Write the table of a cell, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        pq.write_table(table.combine_chunks(), file, compression="zstd", use_dictionary=True)


def read_crossed(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    """Read the named tables of a run folder, as far as there are any.

    Raises:
        LensbenchError: a file that holds no such table.
    """
    tables = [CROSSED_SCHEMA.empty_table()]
    for path in (folder / CROSSED / name for name in names):
        if not path.exists():
            continue
        try:
            table = pq.read_table(path, memory_map=False, partitioning=None)
        except (pa.ArrowException, OSError):
            table = None
        if table is None or not table.schema.equals(CROSSED_SCHEMA):
            raise LensbenchError(f"{path} is damaged: delete it and run `lensbench evaluate` again with the same --out")
        tables.append(table)
    return frame_of(tables)


@dataclass(frozen=True)
class Crossed:
    """A cell's credit in one relation.

    Attributes:
        attempts: the method's attempts.
        layers: the layers read.
        items: codes of the items, [item].
        credit: [activation, gold answer, attempt, layer]; activations in the order of the items.
        gold: the gold answer of each item, a place in `answers`, [item].
        answers: the gold answers, in alphabetical order.
    """

    attempts: tuple[str, ...]
    layers: tuple[int, ...]
    items: Ints
    credit: Floats
    gold: Ints
    answers: tuple[str, ...]

    def with_golds(self, names: Sequence[str]) -> "Crossed":
        """Return the same predictions with other gold answers, [item], which all are gold answers of the relation."""
        place = {name: i for i, name in enumerate(self.answers)}
        return replace(self, gold=np.array([place[name] for name in names]))

    def earned(self, activations: Ints) -> Floats:
        """Return what each item earns when these activations are read, one for each item: [item, attempt, layer]."""
        found: Floats = self.credit[activations, self.gold]
        return found

    def averaged(self, group: Ints) -> Floats:
        """Return each item's mean credit over all activations of its group, with their share of the noise.

        That is what the item earns on average over all permutations. Its own activation is among them: without it, the
        others of a small group have other answers than the item more often than chance. The mean over pairs is a
        V-statistic: an item counts as the one that asks and as the one whose activation is read. What is returned for
        item i is r_i + k_i - m, where r_i is its mean over activations, k_i the mean of its activation over items and m
        the mean of all (Hoeffding's projection): its mean is m, and its spread gives the right variance.

        Args:
            group: within which activations are exchanged, [item].

        Returns:
            [item, attempt, layer].
        """
        found = np.empty((len(self.items), len(self.attempts), len(self.layers)))
        for name in np.unique(group):
            among = np.flatnonzero(group == name)
            pairs = self.credit[among][:, self.gold[among]]  # [activation, item, attempt, layer]
            found[among] = pairs.mean(0) + pairs.mean(1) - pairs.mean((0, 1))
        return found


CrossedCells = Mapping[tuple[str, ...], Mapping[int, Crossed]]
"""By the values of `KEYS`, then by relation code."""


def crossed_of(table: Items, cells: Iterable[CellScores], frame: pd.DataFrame) -> CrossedCells:
    """Find the credit of these cells under other activations.

    Args:
        table: the items.
        cells: of a run.
        frame: as `read_crossed` gives it.

    Raises:
        LensbenchError: the tables are not about the cells' items.
    """
    if frame.empty:
        return {}
    found: dict[tuple[str, ...], dict[int, Crossed]] = {}
    wanted = {tuple(cell.key[name] for name in KEYS): cell for cell in cells}
    for key, rows in frame.groupby(list(KEYS), observed=True, sort=False):
        cell = wanted.get(tuple(map(str, key)))
        if cell is not None:
            found[tuple(map(str, key))] = {
                table.relations.index(str(name)): _dense(table, cell, str(name), part)
                for name, part in rows.groupby("relation", observed=True, sort=False)
            }
    return found


def _dense(table: Items, cell: CellScores, relation: str, rows: pd.DataFrame) -> Crossed:
    items = table.of_relation(cell.items, table.relations.index(relation))
    golds, gold = np.unique(table.gold[items].astype(str), return_inverse=True)
    attempts = tuple(name for name in cell.attempts if name in set(rows["attempt"].astype(str)))
    axes: dict[str, Sequence[Any]] = {
        "item": [table.names[i] for i in items], "answer": list(golds), "attempt": attempts, "layer": cell.layers,
    }  # fmt: skip
    codes = []
    for name, values in axes.items():
        column = rows[name] if name == "layer" else rows[name].astype(str)
        code = column.map({value: i for i, value in enumerate(values)})
        if code.isna().any():
            raise LensbenchError(
                f"{cell.key['inspector']} ({relation}): {CROSSED}/ has other values of {name} than the records; run "
                "`lensbench evaluate` again in a new folder"
            )
        codes.append(code.to_numpy(np.int64))
    credit = np.zeros(tuple(map(len, axes.values())))
    credit[tuple(codes)] = rows["credit"].to_numpy(np.float64)
    return Crossed(attempts, cell.layers, items, credit, gold, tuple(map(str, golds)))
