"""Claims as tests: rules that are written down before a run, and the verdicts that its records give them.

The design is docs/decisions/0016-study.md; the rules that ship are `lensbench/assets/claims.toml`.
"""

import ast
import operator
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.results.bands import Band, Floats, band_of_sum
from lensbench.utils.foreign import read_text, reading
from lensbench.utils.settings import settings_error

HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD = "holds here", "does not hold here", "cannot be told"
LEAST_SUBJECTS = 10
"""With fewer subjects nothing is told."""
ANY, SHARE, RELATIONS = "any", "share of largest", "relations above"


class NoValueError(LensbenchError):
    """A run does not have a value that a claim names."""


class Value(BaseModel):
    """What a method or a baseline got: a mean over items, relations weighing the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: str = ""
    """The method; for a value of a table nothing."""
    baseline: str = "none"
    """A baseline of the method, or none: the method itself."""
    run: str | None = None
    """The run that it is taken from; else that of the claim."""
    table: str | None = None
    """A CSV file of the run's folder with columns relation, subject and layer, in place of records."""
    of: str = "accuracy"
    """accuracy (corrected; chance is 0 and perfect 1); effect (of an intervention: log-odds after it less before); a
    column of the records, such as correct or gold_log_prob; or a measure, such as kl."""
    site: str | None = None
    """The read site; needed if the method was read at several."""
    relations: tuple[str, ...] | None = None
    """Only these."""
    layers: tuple[float, float] = (0.0, 1.0)
    """A window of layers, as shares of the depth, both ends included."""
    each: bool = False
    """Compare at each layer of the window, in place of their mean."""
    attempts: tuple[str, ...] | None = None
    """The mean of these attempts, names with *; else the rule decides."""
    rule: Literal["fixed", "selected", "oracle"] | None = None
    """Which of several attempts counts: the default one, the best on other folds, or the best of all."""
    reduce: str | None = None
    """any (the best of all attempts and layers), share of largest K (of K absolute values in their sum over attempts
    and layers), or relations above X (the share of relations whose mean is above X at their best attempt and layer)."""
    where: str | None = None
    """Only items for which this comparison of another value of the claim holds, such as "model < 0.5"."""
    missing: int | None = Field(None, ge=0)
    """Only names of which so many tokens are cut off."""

    @model_validator(mode="after")
    def _checked(self) -> "Value":
        low, high = self.layers
        if not 0 <= low <= high <= 1:
            raise ValueError(f"layers = [{low}, {high}]: expected two shares of the depth, 0 to 1, in order")
        if (self.table is None) == (self.method == ""):
            raise ValueError("a value is of a method, or of a table")
        if self.reduce is not None:
            kind, _ = self.reduced()
            if self.each or self.rule:
                raise ValueError("reduce takes all layers and attempts: leave out each and rule")
            if kind == ANY and self.of != "correct":
                raise ValueError(f'reduce = "{ANY}" is of answers that are right or wrong: of = "correct"')
            if kind == SHARE and self.of != "gold_log_prob":
                raise ValueError(f'reduce = "{SHARE} K" is of contributions: of = "gold_log_prob"')
        if self.rule in ("selected", "oracle") and self.of not in ("accuracy", "correct"):
            raise ValueError(f"rule = {self.rule!r} chooses what is higher: of = accuracy or correct")
        if self.where is not None and (self.table is not None or (self.reduce or "").startswith(RELATIONS)):
            raise ValueError("where chooses items: tables and relations have none")
        return self

    def reduced(self) -> tuple[str, float]:
        """Return what `reduce` says, and its number."""
        text = self.reduce or ""
        if text == ANY:
            return ANY, 0.0
        for name in (SHARE, RELATIONS):
            if text.startswith(name):
                return name, float(text.removeprefix(name))
        raise ValueError(f"reduce = {text!r}: expected {ANY}, {SHARE} K or {RELATIONS} X")


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of values, which is to lie above or below a threshold."""

    text: str
    weights: Mapping[str, float]
    above: bool
    threshold: float


class Claim(BaseModel):
    """A claim of the literature, and what decides it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: str
    source: str
    runs: tuple[str, ...] = Field(min_length=1)
    holds_if: tuple[str, ...] = Field(min_length=1)
    control: tuple[str, ...] = ()
    values: dict[str, Value]
    note: str = ""

    @model_validator(mode="after")
    def _known_names(self) -> "Claim":
        conditions = [one.where for one in self.values.values() if one.where]
        used = {name for text in (*self.holds_if, *self.control, *conditions) for name in parse(text).weights}
        if wrong := sorted(used - set(self.values)):
            raise ValueError(f"{', '.join(wrong)}: there is no such value; expected {', '.join(self.values)}")
        if wrong := sorted(set(self.values) - used):
            raise ValueError(f"{', '.join(wrong)}: nothing uses this value")
        for text in conditions:
            names = list(parse(text).weights)
            if len(names) > 1 or self.values[names[0]].where is not None:
                raise ValueError(f"where = {text!r}: expected a comparison of one value that has no where itself")
        return self


def read_claims(path: Path) -> dict[str, Claim]:
    """Read the rules of claims, by name.

    Raises:
        UsageError: the file cannot be read, or a rule is not one.
    """
    with reading(path, "expected rules in TOML, as docs/claims.md describes them", UsageError):
        content = tomllib.loads(read_text(path))
    claims = {}
    for name, rule in content.items():
        try:
            claims[name] = Claim.model_validate(rule)
        except ValidationError as error:
            raise UsageError(
                f"{path}, [{name}]: {settings_error(error, {*Claim.model_fields, *Value.model_fields}, 'key')}"
            ) from None
    return claims


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {ast.Add: operator.add, ast.Sub: operator.sub}


def parse(text: str) -> Comparison:
    """Read a comparison such as `patchscope - 0.5 * probe > 0.1`: a sum of values on the left, a number on the right.

    Raises:
        ValueError: another form.
    """
    refused = ValueError(f"{text!r}: expected a comparison such as 'a - 0.5 * b > 0.1'")
    try:
        found = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise refused from None
    if not isinstance(found, ast.Compare) or len(found.ops) != 1 or not isinstance(found.ops[0], ast.Gt | ast.Lt):
        raise refused
    left, right = _linear(found.left, refused), _linear(found.comparators[0], refused)
    if set(right) - {""} or not set(left) - {""} or "" in left:
        raise refused
    return Comparison(text, left, isinstance(found.ops[0], ast.Gt), right.get("", 0.0))


def _linear(node: ast.expr, refused: ValueError) -> dict[str, float]:
    """The weights of a sum of names; a plain number is that of the empty name."""
    match node:
        case ast.Name(id=name):
            return {name: 1.0}
        case ast.Constant(value=int() | float() as number):
            return {"": float(number)}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return {name: -weight for name, weight in _linear(operand, refused).items()}
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            one, other = sorted((_linear(left, refused), _linear(right, refused)), key=lambda side: set(side) != {""})
            if set(one) != {""}:
                raise refused
            return {name: one[""] * weight for name, weight in other.items()}
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as kind, right=right):
            sides = _linear(left, refused), _linear(right, refused)
            join = _OPERATORS[type(kind)]
            return {name: join(sides[0].get(name, 0.0), sides[1].get(name, 0.0)) for name in {**sides[0], **sides[1]}}
    raise refused


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
class Compared:
    """A comparison with its figures; of one that is made at each layer, those of the layer that says least for it.

    Attributes:
        verdict: whether it holds; None if its interval includes the threshold, or if too few subjects are left.
    """

    comparison: Comparison
    estimate: float
    low: float
    high: float
    subjects: int
    layers: int
    verdict: bool | None


def compare(comparison: Comparison, values: Mapping[str, Measured], seed: int = 0) -> Compared:
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
    return Compared(comparison, estimate, low_at, high_at, subjects, len(band.estimate), verdict)


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
    compared: tuple[Compared, ...] = ()
    controls: tuple[Compared, ...] = ()


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


def choose(claims: Mapping[str, Claim], names: tuple[str, ...]) -> dict[str, Claim]:
    """Return some of the claims.

    Raises:
        UsageError: there is no such claim.
    """
    for name in names:
        if name not in claims:
            raise unknown_name("claim", name, claims)
    return {name: claims[name] for name in names} if names else dict(claims)
