"""Credit under other activations: what an item would have earned if another item's activation had been read.

A method that reads the activation and the question alone scores every answer of a relation for every activation. What
item i would earn under the activation of item j is therefore known for all pairs, without another pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lensbench.errors import LensbenchError
from lensbench.results.arrays import KEYS, CellScores, Items
from lensbench.results.bands import Floats, Ints
from lensbench.results.crossed_files import CROSSED


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
            here = {table.relations[code] for code in np.unique(table.relation[cell.items])}
            found[tuple(map(str, key))] = {
                table.relations.index(str(name)): _dense(table, cell, str(name), part)
                for name, part in rows.groupby("relation", observed=True, sort=False)
                if str(name) in here
            }
    return found


def _dense(table: Items, cell: CellScores, relation: str, rows: pd.DataFrame) -> Crossed:
    items = table.of_relation(cell.items, table.relations.index(relation))
    golds, gold = np.unique(table.gold[items].astype(str), return_inverse=True)
    tried = set(rows["attempt"].unique())
    attempts = tuple(name for name in cell.attempts if name in tried)
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
