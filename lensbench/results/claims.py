"""Verdicts on claims: comparisons of the values that were found, with their intervals.

The design is docs/decisions/0016-study.md; the rules are read in `lensbench.results.claim_rules`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from lensbench.errors import LensbenchError
from lensbench.results.bands import Band, Floats, band_of_sum
from lensbench.results.claim_rules import Claim, Inequality, parse

HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD = "holds here", "does not hold here", "cannot be told"
LEAST_SUBJECTS = 10
"""With fewer subjects nothing is told."""


class NoValueError(LensbenchError):
    """A run does not have a value that a claim names."""


@dataclass(frozen=True)
class Measured:
    """A value as it was found.

    Attributes:
        items: names that tell items of the study apart, [item].
        subjects: of each item.
        relations: of each item.
        values: [item, layer], one layer unless each is compared.
        ends: the smallest and the largest value that is possible, [layer] each.
        bounded: whether these ends are those of a score; what has no bounds of its own has those that were seen.
        exact: whether it is a figure over all items, which has no interval.
        layers: those that are compared, [layer], where each is; empty otherwise.
    """

    items: np.ndarray
    subjects: np.ndarray
    relations: np.ndarray
    values: Floats
    ends: tuple[Floats, Floats]
    bounded: bool = True
    exact: bool = False
    layers: tuple[int, ...] = ()

    def only(self, items: np.ndarray) -> "Measured":
        """The value on some of its items."""
        keep = np.isin(self.items, items)
        items, subjects, relations = (one[keep] for one in (self.items, self.subjects, self.relations))
        return replace(self, items=items, subjects=subjects, relations=relations, values=self.values[keep])


@dataclass(frozen=True)
class CheckedInequality:
    """A comparison with its figures; of one that is made at each layer, those of the layer that says least for it.

    Attributes:
        verdict: whether it holds; None if its interval includes the threshold, or if too few subjects are left.
    """

    comparison: Inequality
    estimate: float
    low: float
    high: float
    subjects: int
    layers: int
    verdict: bool | None


def compare(comparison: Inequality, values: Mapping[str, Measured], seed: int = 0) -> CheckedInequality:
    """Compare a sum of values with its threshold.

    Values are taken over the items that all of them have; where there are none, each over its own, subjects still being
    the same.

    Raises:
        NoValueError: values at each layer are of other layers.
    """
    chosen = {name: values[name] for name in comparison.weights}
    sampled = {name: one for name, one in chosen.items() if not one.exact}
    if len({one.layers for one in sampled.values() if one.layers}) > 1:
        raise NoValueError(f"{comparison.text}: its values were asked at other layers")
    weighted = [(comparison.weights[name], one) for name, one in sampled.items()]
    shared = reduce(np.intersect1d, [one.items for one in sampled.values()]) if sampled else np.array([])
    if len(shared) and len(weighted) > 1:
        weighted = [(1.0, _summed([(weight, one.only(shared)) for weight, one in weighted]))]
    constant = np.sum(
        [comparison.weights[name] * one.values.mean(axis=0) for name, one in chosen.items() if one.exact], axis=0
    )
    band, subjects = _band(weighted, seed) if weighted else (Band(*3 * (np.zeros(1),)), 0)
    band = Band(*(side + constant for side in (band.estimate, band.low, band.high)))
    # A tie of rounding is no difference.
    low, high = band.low - comparison.threshold, band.high - comparison.threshold
    right, wrong = (low > 1e-12, high < -1e-12) if comparison.above else (high < -1e-12, low > 1e-12)
    verdict: bool | None = None
    if subjects >= LEAST_SUBJECTS or not weighted:
        verdict = False if wrong.any() else True if right.all() else None
    worst = int((band.low if comparison.above else -band.high).argmin())
    if verdict is False:
        worst = int((band.high if comparison.above else -band.low).argmin())
    estimate, low_at, high_at = (float(side[worst]) for side in (band.estimate, band.low, band.high))
    return CheckedInequality(comparison, estimate, low_at, high_at, subjects, len(band.estimate), verdict)


def _summed(weighted: Sequence[tuple[float, Measured]]) -> Measured:
    """A weighted sum of values of the same items, item by item."""
    first = weighted[0][1]
    order = np.argsort(first.items)
    values = np.asarray(sum(weight * one.values[np.argsort(one.items)] for weight, one in weighted))
    subjects = first.subjects[order]
    if all(one.bounded for _, one in weighted):
        ends = _ends(weighted, values.shape[1])
    else:
        reach = largest_of_subjects(values, subjects)
        ends = -reach, reach
    return Measured(first.items[order], subjects, first.relations[order], values, ends, bounded=False)


def largest_of_subjects(values: Floats, subjects: np.ndarray) -> Floats:
    """The largest absolute mean of a subject at each layer: how far values reach that have no bounds of their own."""
    _, code, sizes = np.unique(subjects.astype(str), return_inverse=True, return_counts=True)
    means = np.zeros((len(sizes), values.shape[1]))
    np.add.at(means, code, values)
    largest: Floats = np.abs(means / sizes[:, None]).max(axis=0)
    return largest


def _ends(weighted: Sequence[tuple[float, Measured]], layers: int) -> tuple[Floats, Floats]:
    ends = [np.sort([weight * end * np.ones(layers) for end in one.ends], axis=0) for weight, one in weighted]
    low, high = np.sum(ends, axis=0)
    return low, high


def _band(weighted: Sequence[tuple[float, Measured]], seed: int) -> tuple[Band, int]:
    """The band of a sum of values, and how many subjects the smallest of them rests on."""
    layers = max(one.values.shape[1] for _, one in weighted)
    terms = [(weight, one.values, one.subjects, one.relations) for weight, one in weighted]
    score = len(weighted) == 1 and weighted[0][1].bounded
    return band_of_sum(terms, _ends(weighted, layers), score=score, seed=seed)


@dataclass(frozen=True)
class Told:
    """What a run tells of a claim.

    Attributes:
        reason: why it cannot be told; else empty.
    """

    name: str
    claim: Claim
    run: str
    model: str
    verdict: str
    reason: str
    compared: tuple[CheckedInequality, ...] = ()
    controls: tuple[CheckedInequality, ...] = ()


def tell(name: str, claim: Claim, run: str, model: str, values: Mapping[str, Measured], seed: int = 0) -> Told:
    """Give the verdict of a run on a claim, from the values that it names."""
    controls = tuple(compare(parse(text), values, seed) for text in claim.control)
    compared = tuple(compare(parse(text), values, seed) for text in claim.holds_if)
    failed = [one.comparison.text for one in controls if one.verdict is not True]
    verdict, reason = CANNOT_BE_TOLD, ""
    if few := [one for one in (*controls, *compared) if 0 < one.subjects < LEAST_SUBJECTS]:
        reason = f"only {min(one.subjects for one in few)} subjects are left"
    elif failed:
        reason = f"its control does not hold: {'; '.join(failed)}"
    elif any(one.verdict is False for one in compared):
        verdict = DOES_NOT_HOLD
    elif all(one.verdict for one in compared):
        verdict = HOLDS
    else:
        open_ones = [one.comparison.text for one in compared if one.verdict is None]
        reason = f"the interval includes the threshold: {'; '.join(open_ones)}"
    return Told(name, claim, run, model, verdict, reason, compared, controls)


def untold(name: str, claim: Claim, run: str, model: str, reason: str) -> Told:
    """What is said of a claim where a run or a value is missing."""
    return Told(name, claim, run, model, CANNOT_BE_TOLD, reason)
