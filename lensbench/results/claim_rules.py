"""Rules of claims: what is compared with what, written down before a run.

The design is docs/decisions/0016-study.md; the rules that ship are `lensbench/assets/claims.toml`.
"""

import ast
import operator
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lensbench.errors import UsageError, unknown_name
from lensbench.utils.foreign import read_text, reading
from lensbench.utils.settings import settings_error

ANY, SHARE, RELATIONS = "any", "share of largest", "relations above"


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
class Inequality:
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


def parse(text: str) -> Inequality:
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
    return Inequality(text, left, isinstance(found.ops[0], ast.Gt), right.get("", 0.0))


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


def choose(claims: Mapping[str, Claim], names: tuple[str, ...]) -> dict[str, Claim]:
    """Return some of the claims.

    Raises:
        UsageError: there is no such claim.
    """
    for name in names:
        if name not in claims:
            raise unknown_name("claim", name, claims)
    return {name: claims[name] for name in names} if names else dict(claims)
