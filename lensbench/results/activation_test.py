"""Does a method use the activation? An exact permutation test over whose activation is read.

See docs/decisions/0011-verdicts.md for the design and `benchmarks/verdicts.py` for its power and false alarms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lensbench.results.arrays import FIXED, KEYS, CellScores, Items, best_on_other_folds
from lensbench.results.bands import Floats, Ints
from lensbench.results.crossed import Crossed, CrossedCells
from lensbench.results.records import NO_BASELINE

PERMUTATIONS = 999
"""Random permutations; the identity is one more."""
SHUFFLED = "shuffled"
"""The baseline that the test makes exact: another subject's activation."""
TOLERANCE = 1e-9


def step_down(reference: Floats, found: Floats) -> Floats:
    """Return the p-value of each layer, adjusted for having looked at all (Westfall & Young 1993, step-down max-T).

    Args:
        reference: the statistic under each permutation, the identity among them: [permutation, layer].
        found: the statistic that was observed: [layer].

    Returns:
        One-sided p-values, [layer]; the smallest of them is that of "at some layer".
    """
    centre, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-12
    studentised, observed = (reference - centre) / spread, (found - centre) / spread
    # What is alike under all permutations, such as a constant answer, has no spread and shows nothing.
    observed = np.where(reference.std(axis=0) < TOLERANCE, -np.inf, observed)
    order = np.argsort(-observed, kind="stable")
    # Each layer is compared with the largest of those that are not larger than it.
    largest = np.maximum.accumulate(studentised[:, order[::-1]], axis=1)[:, ::-1]
    reached = (largest >= observed[order] - TOLERANCE).mean(axis=0)
    adjusted = np.empty(len(found))
    adjusted[order] = np.maximum.accumulate(reached)
    return adjusted


def activation_orders(subject: Ints, group: Ints, keys: Floats) -> Ints:
    """Return which item's activation each item reads under each permutation of subjects: [permutation, item].

    The subjects of a group are put into the order of their keys, and the k-th of them by code reads the k-th in this
    order: relations about the same subjects get the same permutation. The m-th item of a subject reads the m-th of the
    other (or begins again where that one has fewer).

    Args:
        subject: code of each item's subject, [item].
        group: within which subjects are exchanged, such as folds, [item]. A subject is in one group.
        keys: of all subjects, by code: [permutation, subject]. Row 0 rising gives the identity.
    """
    names, number = np.unique(subject, return_inverse=True)
    group_of = np.zeros(len(names), np.int64)
    group_of[number] = group
    by_subject = np.argsort(number, kind="stable")
    count = np.bincount(number)
    start = np.cumsum(count) - count
    rank = np.empty(len(subject), np.int64)
    rank[by_subject] = np.arange(len(subject)) - start[number[by_subject]]
    place = np.argsort(group_of, kind="stable")  # subjects by group, then by code
    orders = np.empty((len(keys), len(subject)), np.int64)
    for i, key in enumerate(keys):
        partner = np.empty(len(names), np.int64)
        partner[place] = np.lexsort((key[names], group_of))
        other = partner[number]
        orders[i] = by_subject[start[other] + rank % count[other]]
    return orders


@dataclass(frozen=True)
class Exchange:
    """A method's credit in one relation under exchanged activations.

    Attributes:
        crossed: the credit under every activation.
        chance: of each item, [item].
        fold: of each item, [item].
        orders: whose activation is read, [permutation, item], the identity first.
        default: the place of the attempt that the rule `fixed` takes.
    """

    crossed: Crossed
    chance: Floats
    fold: Ints
    orders: Ints
    default: int

    def statistic(self, rule: str, orders: Ints) -> Floats:
        """Return the mean of (credit - chance) / (1 - chance) at each layer, under each permutation.

        Under `selected` the attempt is chosen again for each permutation, on the other folds.

        Args:
            rule: `fixed` or `selected`.
            orders: [permutation, item].
        """
        chance = self.chance[:, None]
        several = rule != FIXED and len(self.crossed.attempts) > 1
        tried = [self.default, *(i for i in range(len(self.crossed.attempts)) if several and i != self.default)]
        crossed = replace(self.crossed, credit=self.crossed.credit[:, :, tried])
        means = np.empty((len(orders), len(self.crossed.layers)))
        for i, order in enumerate(orders):
            earned = crossed.earned(order).transpose(1, 0, 2)  # [attempt, item, layer]
            chosen = (
                np.take_along_axis(earned, best_on_other_folds(earned, self.fold)[None], axis=0) if several else earned
            )
            means[i] = ((chosen[0] - chance) / (1.0 - chance)).mean(axis=0)
        return means


@dataclass(frozen=True)
class ActivationTest:
    """The permutation test of one method at one task and site.

    Attributes:
        relations: the method's relations by code.
        found_with: the same with other gold answers, for what is observed; None for the true ones. Permuted golds have
            the same reference: a permutation of golds followed by one of activations is again one of activations.
    """

    relations: Mapping[int, Exchange]
    found_with: Mapping[int, Exchange] | None = None
    _kept: dict[tuple[int, str], Floats] = field(default_factory=dict)

    def with_golds(self, names: Sequence[str]) -> "ActivationTest":
        """Return the test of other gold answers, by item code, exchanged among the items of each relation."""
        others = {
            code: replace(one, crossed=one.crossed.with_golds([names[i] for i in one.crossed.items]))
            for code, one in self.relations.items()
        }
        return replace(self, found_with=others)

    def p_values(self, relations: Sequence[int], rule: str) -> Floats:
        """Return the p-values by layer of one relation, or of the mean of several; see `step_down`."""
        reference = np.mean([self._reference(code, rule) for code in relations], axis=0)
        if self.found_with is None:
            return step_down(reference, reference[0])
        found = [self.found_with[code].statistic(rule, self.found_with[code].orders[:1])[0] for code in relations]
        return step_down(reference, np.mean(found, axis=0))

    def _reference(self, code: int, rule: str) -> Floats:
        if (code, rule) not in self._kept:
            one = self.relations[code]
            self._kept[code, rule] = one.statistic(rule, one.orders)
        return self._kept[code, rule]


def activation_tests(
    table: Items, cells: Iterable[CellScores], crossed: CrossedCells, *,
    learns_labels: Iterable[str] = (), defaults: Mapping[str, str] | None = None, permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[tuple[str, ...], ActivationTest]:  # fmt: skip
    """Prepare the test of every method that has credit under other activations, by the values of `KEYS`.

    Args:
        table: the items.
        cells: of a run.
        crossed: their credit.
        learns_labels: methods that have a fit for each fold, whose subjects are exchanged within folds.
        defaults: inspector -> its default attempt.
        permutations: how many, besides the identity.
        seed: of the permutations.
    """
    subjects = int(table.subject.max()) + 1 if len(table.subject) else 0
    keys = np.random.default_rng([seed, subjects]).random((permutations + 1, subjects))
    keys[0] = np.arange(subjects) / max(1, subjects)
    orders: dict[tuple[bytes, bool], Ints] = {}
    found = {}
    for cell in cells:
        place = tuple(cell.key[name] for name in KEYS)
        if cell.key["baseline"] != NO_BASELINE or place not in crossed:
            continue
        within = cell.key["inspector"] in set(learns_labels)
        exchanges = {}
        for relation, one in crossed[place].items():
            subject, fold = table.subject[one.items], table.fold[one.items]
            kept = (one.items.tobytes(), within)
            if kept not in orders:
                orders[kept] = activation_orders(subject, fold if within else np.zeros_like(fold), keys)
            name = (defaults or {}).get(cell.key["inspector"], one.attempts[0])
            default = one.attempts.index(name) if name in one.attempts else 0
            chance = cell.chance[np.searchsorted(cell.items, one.items)]
            exchanges[relation] = Exchange(one, chance, fold, orders[kept], default)
        found[place] = ActivationTest(exchanges)
    return found


def with_shuffled(
    table: Items, cells: Iterable[CellScores], crossed: CrossedCells, learns_labels: Iterable[str]
) -> list[CellScores]:
    """Return the cells with `shuffled` as the mean over all permutations of activations, where credit is known.

    Args:
        table: the items.
        cells: of a run.
        crossed: their credit.
        learns_labels: methods with a fit for each fold.
    """
    found = []
    for cell in cells:
        place, name = tuple(cell.key[key] for key in KEYS), cell.key["baseline"]
        if name == SHUFFLED and (*place[:-1], NO_BASELINE) in crossed:
            continue
        found.append(cell)
        if place in crossed:
            group = table.fold if cell.key["inspector"] in set(learns_labels) else np.zeros_like(table.fold)
            found.append(_shuffled(cell, crossed[place].values(), group))
    return found


def _shuffled(cell: CellScores, relations: Iterable[Crossed], group: Ints) -> CellScores:
    """The mean over permutations as a cell; under the score that does not decide it is unknown."""
    score = np.full(cell.corrected.shape, np.nan)
    for one in relations:
        found = one.averaged(group[one.items])
        rows = np.searchsorted(cell.items, one.items)
        for i, name in enumerate(one.attempts):
            score[cell.attempts.index(name), rows] = found[:, i]
    scored = ~np.isnan(score).all(axis=(0, 2))
    return replace(
        cell, key={**cell.key, "baseline": SHUFFLED}, items=cell.items[scored], corrected=score[:, scored],
        raw=np.full_like(score[:, scored], np.nan), chance=cell.chance[scored],
    )  # fmt: skip
