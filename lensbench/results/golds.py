"""The gold answers of records: which others an item could have had, and what a prediction would then have earned."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lensbench.errors import LensbenchError, UsageError
from lensbench.results.arrays import CellScores, cells_of
from lensbench.results.bands import Floats, Ints

_UNIT = ["task", "relation", "subject"]


DEALT_BACK = 0.25
"""With too few subjects in a choice set and fold most golds stay where they are, and what is found may well be true."""


def credit(answer: Ints, predicted: Ints, gold: Ints, earned: Floats, choices: Ints) -> Floats:
    """Return what predictions would have earned with another gold of the choice set. Arrays are broadcast.

    Records keep the answer picked (the first of those tied) and what it earned: 1 over the number of ties where the
    gold is among them, else 0. So:

    - a prediction that earned 1, or tied with all its choices, or with just one other, is known exactly;
    - of a tie between more answers two are known, the one picked and the gold: the others share the rest alike;
    - where nothing was earned, a tie cannot be seen: the answer picked has all the credit.

    Over the answers of a choice set the credit of a prediction is 1 in every case, so its mean over shuffled golds is
    chance, as it should be.

    Args:
        answer: the gold instead, a code.
        predicted: the code of the answer picked.
        gold: the code of the true gold.
        earned: what the prediction earned with it.
        choices: the size of the choice set.
    """
    tied = _ties(earned)
    named = np.where((tied > 1) & (predicted != gold), 2, 1)
    rest = np.where(tied > named, (tied - named) / (tied * np.maximum(choices - named, 1)), 0.0)
    found: Floats = np.where((answer == predicted) | ((tied > 1) & (answer == gold)), 1.0 / tied, rest)
    return found


def unresolved(predicted: Ints, gold: Ints, earned: Floats, choices: Ints) -> NDArray[np.bool_]:
    """Return which predictions are ties whose answers the records do not all name."""
    tied = _ties(earned)
    return (tied > np.where(predicted != gold, 2, 1)) & (tied < choices)


def _ties(earned: Floats) -> Ints:
    ties: Ints = np.rint(1.0 / np.where(earned > 0, earned, 1.0)).astype(np.int64)
    return ties


@dataclass(frozen=True)
class Predictions:
    """The answers of one cell, raw and corrected: codes [attempt, item, layer], -1 where nothing was tried."""

    cell: CellScores
    raw: Ints
    corrected: Ints

    def part(self, among: NDArray[np.bool_]) -> "Predictions":
        """Return the predictions on some of the cell's items: [item]. Attempts not made on them are dropped."""
        tried = np.flatnonzero((self.corrected[:, among] >= 0).any(axis=(1, 2)))
        names = tuple(self.cell.attempts[index] for index in tried)
        kept = np.ix_(tried, among)
        cell = replace(
            self.cell, attempts=names, items=self.cell.items[among], raw=self.cell.raw[kept],
            corrected=self.cell.corrected[kept],
        )  # fmt: skip
        return Predictions(cell, self.raw[kept], self.corrected[kept])

    def layers_as_attempts(self) -> "Predictions":
        """Return the default attempt's predictions at all layers as so many attempts at one."""

        def turned(values: np.ndarray) -> np.ndarray:
            return values[:1].transpose(2, 1, 0)

        names = tuple(map(str, self.cell.layers))
        cell = replace(
            self.cell, attempts=names, layers=self.cell.layers[:1], raw=turned(self.cell.raw),
            corrected=turned(self.cell.corrected),
        )  # fmt: skip
        return Predictions(cell, turned(self.raw), turned(self.corrected))


@dataclass(frozen=True)
class Golds:
    """The gold of every item, in the order of the items' codes (`scored.cells_of`), and what it may be exchanged with.

    Attributes:
        answers: names of the answers, by code.
        gold: [item].
        choices: how many answers the item's choice set has: [item].
        choice_set: [item].
        unit: the (task, relation, subject) of each item: they have one gold: [item].
        units: the task, relation and subject of each unit.
        within: what golds are exchanged within, a choice set or a choice set in a fold: [unit].
    """

    answers: tuple[str, ...]
    gold: Ints
    choices: Ints
    choice_set: Ints
    unit: Ints
    units: tuple[tuple[str, str, str], ...]
    within: Ints

    def permuted(self, rng: np.random.Generator) -> Ints:
        """Golds shuffled over the subjects of each choice set and fold: [item]."""
        _, first = np.unique(self.unit, return_index=True)
        own = self.gold[first]
        dealt = np.empty_like(own)
        dealt[np.argsort(self.within, kind="stable")] = own[np.lexsort((rng.random(len(own)), self.within))]
        return dealt[self.unit]

    def labels(self, gold: Ints) -> dict[tuple[str, str, str], str]:
        """Golds [item] as (task, relation, subject) -> answer."""
        _, first = np.unique(self.unit, return_index=True)
        return {unit: self.answers[code] for unit, code in zip(self.units, gold[first], strict=True)}

    def expected_best(self, one: Predictions) -> Floats:
        """The expected share of items that the best attempt answers, golds shuffled within choice sets: [layer].

        Over all permutations each item gets each gold of its choice set equally often. So the expectation is the mean
        over items of the share of golds that are among the item's distinct answers: exact, without sampling. Ties have
        their credit, as under the rule `oracle`.
        """
        cell = one.cell
        total = np.zeros(one.corrected.shape[2])
        for choice_set in np.unique(self.choice_set[cell.items]):
            among = self.choice_set[cell.items] == choice_set
            items = cell.items[among]
            said, earned = one.corrected[:, among], cell.corrected[:, among]
            gold, choices = (of[items][None, :, None] for of in (self.gold, self.choices))
            for answer, count in zip(*np.unique(self.gold[items], return_counts=True), strict=True):
                best = credit(np.array(answer), said, gold, earned, choices).max(axis=0)
                total += best.sum(axis=0) * count / len(items)
        return total / len(cell.items)


def golds_of(
    records: pd.DataFrame, choice_sets: Mapping[str, str] | None = None, *, over_folds: bool = False
) -> tuple[Golds, list[Predictions]]:
    """Read golds and predictions out of records.

    Args:
        records: of one run, without baselines that ask for other answers than the items'.
        choice_sets: item -> a name of its choice set. Records do not hold choice sets; left out, a relation with no
            more answers than an item has choices has one, and otherwise answers belong together that were ever said in
            place of each other, by any method or baseline, directly or through others.
        over_folds: whether golds are exchanged between folds, too.

    Raises:
        UsageError: an item is not in `choice_sets`.
    """
    plain = records.astype(dict.fromkeys(("gold", "predicted", "predicted_corrected"), str))
    answers = sorted(set().union(*(plain[name].unique() for name in ("gold", "predicted", "predicted_corrected"))))
    code = {name: index for index, name in enumerate(answers)}
    plain = plain.assign(**{name: plain[name].map(code) for name in ("gold", "predicted", "predicted_corrected")})
    items = plain.drop_duplicates(["task", "item"]).astype(dict.fromkeys((*_UNIT, "item"), str))
    items = items.sort_values(["task", "item"], kind="stable", ignore_index=True)
    unit = _numbered(items, _UNIT)
    groups = _components(plain, items) if choice_sets is None else _named(items, choice_sets)
    by_unit = items.assign(group=groups, unit=unit).drop_duplicates("unit").sort_values("unit")
    golds = Golds(
        tuple(answers), items["gold"].to_numpy(), np.rint(1.0 / items["chance"].to_numpy(np.float64)).astype(np.int64),
        groups, unit, tuple(by_unit[_UNIT].itertuples(index=False, name=None)),
        _numbered(by_unit, ["group"] if over_folds else ["group", "fold"]),
    )  # fmt: skip
    _, earned = cells_of(plain)
    _, said = cells_of(plain.assign(correct=plain["predicted"], correct_corrected=plain["predicted_corrected"]))
    codes = [tuple(np.where(np.isnan(a), -1, a).astype(np.int64) for a in (one.raw, one.corrected)) for one in said]
    return golds, [Predictions(cell, *pair) for cell, pair in zip(earned, codes, strict=True)]


def check_exchangeable(records: pd.DataFrame, golds: Golds) -> None:
    """Check that golds can be permuted.

    Raises:
        LensbenchError: an item has two golds in the records, or a subject has two golds or folds in a relation.
        UsageError: no permutation changes a gold, or most subjects would get their own back.
    """
    rows = records.drop_duplicates([*_UNIT, "item", "gold", "fold"])
    for name, keys in (("gold", ["task", "item"]), ("gold", _UNIT), ("fold", _UNIT)):
        counts = rows.groupby(keys, observed=True)[name].nunique()
        if (counts > 1).any():
            where = "/".join(map(str, counts.index[counts > 1][0]))
            raise LensbenchError(
                f"{where} has more than one {name} in the records: golds can be permuted only where a subject has one "
                f"in a relation (leave out baselines that ask for other answers)"
            )
    pairs = pd.DataFrame({"within": golds.within[golds.unit], "gold": golds.gold})
    if (pairs.groupby("within")["gold"].nunique() < 2).all():
        raise UsageError(
            "no two subjects of a choice set and fold have different golds, so there is nothing to permute: "
            "give more items, or choice_sets"
        )
    places = pd.Series([f"{task}/{relation}" for task, relation, _ in golds.units])
    back = (1.0 / pd.Series(golds.within).groupby(golds.within).transform("size")).groupby(places).mean()
    if back.max() > DEALT_BACK:
        raise UsageError(
            f"a subject of {back.idxmax()} would be dealt its own gold back in {back.max():.2f} of the permutations, "
            f"as few share its choice set and fold (at most {DEALT_BACK:g}): give more subjects, leave the relation "
            f"out, or permute with over_folds=True"
        )


def _named(items: pd.DataFrame, choice_sets: Mapping[str, str]) -> Ints:
    missing = [name for name in items["item"] if name not in choice_sets]
    if missing:
        raise UsageError(
            f"choice_sets lacks {len(missing)} items of the records, such as {missing[0]!r}: name them all"
        )
    named = items["item"].map(dict(choice_sets))
    return _numbered(items.assign(named=named), ["task", "relation", "named"])


def _numbered(frame: pd.DataFrame, columns: list[str]) -> Ints:
    numbers: Ints = frame.groupby(columns, sort=True).ngroup().to_numpy().astype(np.int64)
    return numbers


def _components(records: pd.DataFrame, items: pd.DataFrame) -> Ints:
    """The choice set of each item, read off what was said."""
    place_of = {name: index for index, name in enumerate(items.groupby(["task", "relation"]).groups)}
    answers = int(records[["gold", "predicted", "predicted_corrected"]].to_numpy().max()) + 1

    def nodes(frame: pd.DataFrame, column: str) -> Ints:
        place = [place_of[pair] for pair in zip(frame["task"].astype(str), frame["relation"].astype(str), strict=True)]
        found: Ints = np.array(place, dtype=np.int64) * answers + frame[column].to_numpy(np.int64)
        return found

    distinct = records[["task", "relation", "gold", "predicted", "predicted_corrected"]].drop_duplicates()
    gold = nodes(distinct, "gold")
    ends = np.concatenate([nodes(distinct, "predicted"), nodes(distinct, "predicted_corrected")])
    size = len(place_of) * answers
    graph = coo_array((np.ones(2 * len(gold)), (np.tile(gold, 2), ends)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    used = np.bincount(np.unique([*gold, *ends]) // answers, minlength=len(place_of))
    own = nodes(items, "gold")
    whole = used[own // answers] <= np.rint(1.0 / items["chance"].to_numpy(np.float64))
    groups: Ints = np.where(whole, size + own // answers, component[own])
    return groups
