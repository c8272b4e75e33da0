"""Records as dense arrays, and the three rules that make one score of several attempts.

A cell (task x site x inspector x baseline) is pivoted once to [attempt, item, layer]; everything after that is numpy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lensbench.errors import LensbenchError
from lensbench.results.bands import Floats, Ints
from lensbench.results.records import NO_BASELINE

FIXED, SELECTED, ORACLE = "fixed", "selected", "oracle"
CONTROL_TASK = "control_task"
KEYS = ("model", "verbalizer", "task", "site", "inspector", "baseline")
NO_LAYER = -1
"""How a missing layer is written in `CellScores.layers`: a baseline that reads none."""


@dataclass(frozen=True)
class Items:
    """Relation, subject, fold, chance, name and gold answer of every item, by its code.

    Codes follow names, not the order of rows.
    """

    relation: Ints
    subject: Ints
    fold: Ints
    chance: Floats
    relations: tuple[str, ...]
    names: tuple[str, ...]
    gold: NDArray[np.object_]

    def of_relation(self, items: Ints, relation: int) -> Ints:
        """Return those of the items that belong to a relation."""
        chosen: Ints = items[self.relation[items] == relation]
        return chosen


@dataclass(frozen=True)
class Scored:
    """Scores after a rule was applied: items [item] and raw and corrected scores [item, layer]."""

    items: Ints
    raw: Floats
    corrected: Floats

    def only(self, items: Ints) -> "Scored":
        """The scores of those items that are among the given ones."""
        keep = np.isin(self.items, items, assume_unique=True)
        return self if keep.all() else Scored(self.items[keep], self.raw[keep], self.corrected[keep])


@dataclass(frozen=True)
class CellScores:
    """The predictions of one inspector or baseline: scores [attempt, item, layer], NaN where nothing was tried.

    `corrected` is the score that decides; a run may have declared that the raw one does (`SummarySettings.score`), and
    the two then change places.
    """

    key: Mapping[str, str]
    attempts: tuple[str, ...]
    layers: tuple[int, ...]
    items: Ints
    raw: Floats
    corrected: Floats
    chance: Floats
    """Of each item, [item]: a method may have been asked with fewer choices than another (`class_subjects`)."""

    def part(self, items: Ints, attempts: tuple[str, ...] | None = None) -> "CellScores | None":
        """The cell on some items and attempts; None if it scored none of them.

        Relations may have attempts of their own (question forms): those not made on any of these items are dropped.

        Raises:
            LensbenchError: an attempt was made on only some of the items or layers.
        """
        among = np.isin(self.items, items, assume_unique=True)
        tried = ~np.isnan(self.corrected[:, among]).all(axis=(1, 2))
        if attempts is not None:
            tried &= np.isin(self.attempts, attempts)
        if not tried.any():
            return None
        chosen = np.flatnonzero(tried)
        if attempts is not None:
            among &= ~np.isnan(self.corrected[chosen]).all(axis=(0, 2))
        raw, corrected = (scores[np.ix_(chosen, among)] for scores in (self.raw, self.corrected))
        if np.isnan(corrected).any():
            where = ", ".join(f"{name} {value}" for name, value in self.key.items())
            raise LensbenchError(
                f"incomplete records ({where}): every item needs a score at each attempt and layer; "
                "run `lensbench evaluate` again with the same --out"
            )
        names = tuple(self.attempts[index] for index in chosen)
        return replace(
            self, attempts=names, items=self.items[among], raw=raw, corrected=corrected, chance=self.chance[among]
        )

    def between(self, layers: tuple[int, ...], relation: Ints) -> "CellScores":
        """The cell at all of these layers, where it was asked at all of them, or at their first, last and some between.

        Between two layers at which it was asked it has the scores of the one that did better in the relation: a rival
        that was asked at fewer layers than a method must not look weaker for it.

        Args:
            layers: those of the method.
            relation: of each item, by item code.
        """
        if set(layers) < set(self.layers):
            places = [self.layers.index(layer) for layer in layers]
            return replace(self, layers=layers, raw=self.raw[..., places], corrected=self.corrected[..., places])
        if self.layers == layers or not set(layers[:1]) | set(layers[-1:]) <= set(self.layers) <= set(layers):
            return self
        after = np.searchsorted(self.layers, layers)
        before = np.where(np.array(self.layers)[after] == layers, after, after - 1)
        raw, corrected = (np.empty((*one.shape[:2], len(layers))) for one in (self.raw, self.corrected))
        for number in np.unique(relation[self.items]):
            rows = relation[self.items] == number
            tried = ~np.isnan(self.corrected[:, rows]).all(axis=(1, 2))
            mean = self.corrected[:, rows][tried].mean(axis=1).max(axis=0)
            chosen = np.where(mean[after] > mean[before], after, before)
            raw[:, rows], corrected[:, rows] = self.raw[:, rows][..., chosen], self.corrected[:, rows][..., chosen]
        return replace(self, layers=layers, raw=raw, corrected=corrected)

    def scored(self, rule: str, default: str | None, folds: Ints) -> Scored:
        """Apply a rule to the cell of one relation.

        Args:
            rule: `fixed` (the default attempt), `selected` (at each layer the attempt with the best mean corrected
                score on the other folds; ties go to the default) or `oracle` (right if any attempt is).
            default: the default attempt; where it was not made, the first one.
            folds: fold of each item, by item code.
        """
        if rule == ORACLE:
            return Scored(self.items, self.raw.max(axis=0), self.corrected.max(axis=0))
        first = self.attempts.index(default) if default in self.attempts else 0
        if rule == FIXED or len(self.attempts) == 1:
            return Scored(self.items, self.raw[first], self.corrected[first])
        order = [first, *(index for index in range(len(self.attempts)) if index != first)]
        choice = best_on_other_folds(self.corrected[order], folds[self.items])
        raw, corrected = (
            np.take_along_axis(scores[order], choice[None], axis=0)[0] for scores in (self.raw, self.corrected)
        )
        return Scored(self.items, raw, corrected)


def best_on_other_folds(scores: Floats, folds: Ints) -> Ints:
    """Return the chosen attempt, [item, layer]: the first best by mean over the items of the other folds.

    Args:
        scores: [attempt, item, layer]; at ties the earlier attempt is taken.
        folds: [item].
    """
    totals = scores.sum(axis=1)
    choice = np.zeros(scores.shape[1:], np.int64)
    for fold in np.unique(folds):
        test = folds == fold
        rest = totals - scores[:, test].sum(axis=1)
        # Sums of credits such as 1/3 differ in the last bits where they are equal: rounding keeps ties ties.
        choice[test] = np.round(rest, 6).argmax(axis=0)
    return choice


def cells_of(records: pd.DataFrame) -> tuple[Items, list[CellScores]]:
    """Pivot records into cells.

    Raises:
        LensbenchError: a prediction occurs twice, or an item has two relations, subjects or folds.
    """
    if records.empty:
        raise LensbenchError("there are no records to summarise")
    task, _ = _codes(records["task"])
    name, names = _codes(records["item"])
    _, item = np.unique(task * len(names) + name, return_inverse=True)
    items = _item_table(records, item)
    columns = {key: _codes(records[key]) for key in KEYS}
    attempt, attempts = _codes(records["attempt"])
    layer = records["layer"].to_numpy(dtype=np.float64, na_value=np.nan)
    layer = np.where(np.isnan(layer), NO_LAYER, layer).astype(np.int64)
    raw, corrected = (
        records[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("correct", "correct_corrected")
    )
    chance = records["chance"].to_numpy(dtype=np.float64)
    cells = []
    for rows in _groups([codes for codes, _ in columns.values()]):
        key = {name: str(values[codes[rows[0]]]) for name, (codes, values) in columns.items()}
        scores = (raw[rows], corrected[rows], chance[rows])
        cells.append(_pivot(key, (attempt[rows], item[rows], layer[rows]), scores, attempts))
    return items, cells


def _codes(column: "pd.Series[str]") -> tuple[Ints, list[str]]:
    """Integer codes of a column of names, in the order of the names."""
    categories = column.astype("category").cat
    names = categories.categories.astype(str)
    order = np.argsort(names.to_numpy(dtype=object))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    codes = categories.codes.to_numpy().astype(np.int64)
    if (codes < 0).any():
        raise LensbenchError(f"the records have rows without a {column.name}")
    return rank[codes], [str(names[index]) for index in order]


def _groups(columns: list[Ints]) -> Iterator[Ints]:
    """The row numbers of each combination of codes, rows in their order."""
    combined = np.zeros(len(columns[0]), np.int64)
    for codes in columns:
        combined = combined * (codes.max() + 1) + codes
    order = np.argsort(combined, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(combined[order])) + 1)


def _item_table(records: pd.DataFrame, item: Ints) -> Items:
    relation, relations = _codes(records["relation"])
    subject, _ = _codes(records["subject"])
    fold = records["fold"].to_numpy(dtype=np.int64)
    _, first = np.unique(item, return_index=True)
    for name, column in (("relation", relation), ("subject", subject), ("fold", fold)):
        wrong = np.flatnonzero(column != column[first][item])
        if len(wrong):
            raise LensbenchError(f"item {records['item'].iloc[wrong[0]]} has more than one {name} in the records")
    chance = records["chance"].to_numpy(dtype=np.float64)[first]
    names, golds = (records[name].iloc[first].astype(str) for name in ("item", "gold"))
    gold = golds.to_numpy(object)
    # Baselines may ask for other answers: where the method itself was asked, its gold answer counts.
    own = np.flatnonzero((records["baseline"] == NO_BASELINE).to_numpy())
    asked, place = np.unique(item[own], return_index=True)
    gold[asked] = records["gold"].iloc[own[place]].astype(str).to_numpy(object)
    return Items(relation[first], subject[first], fold[first], chance, tuple(relations), tuple(names), gold)


def _pivot(
    key: Mapping[str, str], where: tuple[Ints, Ints, Ints], scores: tuple[Floats, Floats, Floats], names: list[str]
) -> CellScores:
    attempt, item, layer = where
    seen, first = np.unique(attempt, return_index=True)
    tried = seen[np.argsort(first)]  # in the order of the records: the first is the default
    place = np.empty(len(names), np.int64)
    place[tried] = np.arange(len(tried))
    items, row = np.unique(item, return_inverse=True)
    layers, column = np.unique(layer, return_inverse=True)
    described = ", ".join(f"{name} {value}" for name, value in key.items())
    if NO_LAYER in layers and len(layers) > 1:
        raise LensbenchError(f"the records mix rows with and without a layer ({described})")
    shape = (len(tried), len(items), len(layers))
    flat = np.ravel_multi_index((place[attempt], row, column), shape)
    if len(np.unique(flat)) < len(flat):
        raise LensbenchError(f"a prediction occurs twice ({described}): summarise one run (one seed) at a time")
    raw, corrected = np.full(shape, np.nan), np.full(shape, np.nan)
    for array, values in zip((raw, corrected), scores[:2], strict=True):
        array.ravel()[flat] = values
    chance = np.empty(len(items))
    chance[row] = scores[2]
    attempts = tuple(names[index] for index in tried)
    return CellScores(dict(key), attempts, tuple(int(number) for number in layers), items, raw, corrected, chance)
