"""The values that claims compare, from the records of runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from lensbench.errors import LensbenchError
from lensbench.results.arrays import FIXED, KEYS, NO_LAYER, SELECTED, CellScores, Items, cells_of
from lensbench.results.bands import Floats, Ints
from lensbench.results.claim_rules import ANY, RELATIONS, SHARE, Claim, Value, parse
from lensbench.results.claims import Measured, NoValueError, largest_of_subjects
from lensbench.results.metrics import CUT
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import PairedMethod, SummarySettings, by_relation
from lensbench.results.used import CLEAN

ACCURACY, EFFECT = "accuracy", "effect"


@dataclass(frozen=True)
class _ValueCell:
    """The scores of a method or a baseline in one task, with what its items are."""

    table: Items
    scores: CellScores
    subjects: Mapping[str, str]
    own_attempts: frozenset[str]
    """Those of the method itself."""

    def measured(self, items: Ints, values: Floats, ends: tuple[Floats, Floats] | None, layers: Ints) -> Measured:
        """Return values of some of the items; without ends, they have no bounds of their own."""
        names = np.array([self.table.names[item] for item in items], dtype=object)
        relations = np.array([self.table.relations[code] for code in self.table.relation[items]], dtype=object)
        subjects = np.array([self.subjects[name] for name in names], dtype=object)
        compared = tuple(map(int, layers))
        if ends is not None:
            return Measured(names, subjects, relations, values, ends, layers=compared)
        reach = largest_of_subjects(values, subjects)
        return Measured(names, subjects, relations, values, (-reach, reach), bounded=False, layers=compared)


@dataclass(frozen=True)
class StudyRun:
    """What a run of a study holds.

    Attributes:
        name: of the run's folder.
        model: the name of the target.
        n_layers: the number of the target's last layer.
        records: one row a prediction.
        measures: one row an item, layer, attempt and measure.
        settings: those that its verdicts are made with.
        table: reads a CSV file of its folder.
    """

    name: str
    model: str
    n_layers: int
    records: pd.DataFrame
    measures: pd.DataFrame
    settings: SummarySettings
    table: Callable[[str], pd.DataFrame]


def values_of(claim: Claim, run: str, studies: Callable[[str], StudyRun]) -> dict[str, Measured]:
    """Find the values of a claim in a run, and in others that it names.

    Raises:
        NoValueError: one of them is missing.
    """
    found: dict[str, Measured] = {}
    # Conditions are values themselves: those without one come first.
    for name, value in sorted(claim.values.items(), key=lambda one: one[1].where is not None):
        study = studies(value.run or run)
        try:
            found[name] = _found(value, study, found)
        except LensbenchError as error:  # also of records that lack an item at one of the layers
            raise NoValueError(f"{name}: {error}") from None
    return found


def _found(value: Value, study: StudyRun, others: Mapping[str, Measured]) -> Measured:
    if value.table is not None:
        return _of_table(value, study)
    if study.records.empty:
        raise NoValueError(f"{study.name} is a folder of analyses, and has no records of {value.method}")
    if value.of not in study.records and value.of not in (ACCURACY, EFFECT):
        total = _total(value, study)
        if total is not None:
            return total
    cell = _cell(value, study)
    measured = _reduced(value, study, cell) if value.reduce else _windowed(value, study, cell)
    if value.where is None:
        return measured
    condition = parse(value.where)
    ((name, weight),) = condition.weights.items()
    other = others[name]
    side = weight * other.values.mean(axis=1)
    chosen = side > condition.threshold if condition.above else side < condition.threshold
    if not np.isin(measured.items, other.items[chosen]).any():
        raise NoValueError(f"there is no item left where {value.where}")
    return measured.only(other.items[chosen])


def _rows(value: Value, frame: pd.DataFrame, study: StudyRun) -> pd.DataFrame:
    """The rows of a method or baseline, at its one site, of the relations that are asked for."""
    rows = frame[(frame["inspector"] == value.method) & (frame["baseline"] == value.baseline)]
    if value.site is not None:
        rows = rows[rows["site"] == value.site]
    if value.relations is not None:
        rows = rows[rows["relation"].isin(value.relations)]
    if value.missing is not None and "template" in rows:
        cut = rows["template"].astype(str).str.extract(CUT.pattern).astype(float)
        rows = rows[(cut[1] - cut[0]).fillna(0) == value.missing]
    if rows.empty:
        said = value.method + (f" / {value.baseline}" if value.baseline != NO_BASELINE else "")
        raise NoValueError(f"{study.name} has no records of {said}" + (f" at {value.site}" if value.site else ""))
    if len(sites := sorted(map(str, rows["site"].unique()))) > 1:
        raise NoValueError(f"{study.name} read {value.method} at {', '.join(sites)}; the rule names no site")
    return rows


def _cell(value: Value, study: StudyRun) -> _ValueCell:
    """The scores of a method or baseline, whatever they are of, in the place of the corrected ones."""
    rows = _rows(value, study.records, study)
    if value.of == ACCURACY:
        rows = rows.assign(correct=rows["correct_corrected"])
    elif value.of == EFFECT:
        rows = rows.assign(correct_corrected=rows["gold_log_prob"])
    elif value.of in rows:
        if not pd.api.types.is_numeric_dtype(rows[value.of]):
            raise NoValueError(f"{value.of} is a column of names, not of numbers")
        rows = rows.assign(correct_corrected=rows[value.of].astype("float64"))
    else:
        rows = _with_measure(value, rows, _rows(value, study.measures, study))
    table, cells = cells_of(rows)
    if len(cells) > 1:
        tasks = ", ".join(cell.key["task"] for cell in cells)
        raise NoValueError(f"{study.name} asks {value.method} about {tasks}; name the relations of one of them")
    first = rows.drop_duplicates("item")
    subjects = dict(zip(first["item"].astype(str), first["subject"].astype(str), strict=True))
    own = study.records[(study.records["inspector"] == value.method) & (study.records["baseline"] == NO_BASELINE)]
    if value.site is not None:
        own = own[own["site"] == value.site]
    asked = tuple(sorted(int(layer) for layer in own["layer"].dropna().unique()))
    # Between two layers at which a costly baseline was asked, it has the better of their scores, as in the verdicts.
    scores = cells[0].between(asked, table.relation) if asked and value.of in (ACCURACY, "correct") else cells[0]
    return _ValueCell(table, scores, subjects, frozenset(map(str, own["attempt"].unique())))


def _with_measure(value: Value, rows: pd.DataFrame, measures: pd.DataFrame) -> pd.DataFrame:
    keys = [*KEYS, "item", "attempt", "layer"]
    own = measures[measures["metric"] == value.of]
    if own.empty:
        raise NoValueError(f"{value.method} has no measure {value.of}")
    plain = rows.astype({key: "object" for key in keys if key != "layer"})
    joined = plain.merge(own.astype({key: "object" for key in keys if key != "layer"})[[*keys, "value"]], on=keys)
    return joined.assign(correct_corrected=joined["value"])


def _total(value: Value, study: StudyRun) -> Measured | None:
    """A measure over all items at once, if it is one: the mean over relations at the layers of the window."""
    if study.measures.empty:
        return None
    own = study.measures[study.measures["item"].isna() & (study.measures["metric"] == value.of)]
    if own.empty:
        return None
    rows = _rows(value, own, study)
    layers = rows["layer"].to_numpy(dtype=np.int64)
    inside = rows[_inside(value, study, layers)]
    wide = inside.groupby("relation", observed=True)["value"].mean().to_numpy()[:, None]
    names = np.array(["all"] * len(wide), dtype=object)
    return Measured(names, names, names, wide, (np.zeros(1), np.zeros(1)), exact=True)


def _inside(value: Value, study: StudyRun, layers: Ints) -> np.ndarray:
    low, high = value.layers
    depth = layers / study.n_layers
    inside: np.ndarray = (depth >= low - 1e-9) & (depth <= high + 1e-9) | (layers == NO_LAYER)
    if not inside.any():
        raise NoValueError(f"{study.name} has no layer between {low:g} and {high:g} of the depth")
    return inside


def _windowed(value: Value, study: StudyRun, found: _ValueCell) -> Measured:
    """The scores at the layers of the window, one attempt standing for all."""
    cell = _effects(found.scores) if value.of == EFFECT else found.scores
    inside = _inside(value, study, np.array(cell.layers))
    method = PairedMethod(found.table, {cell.key["baseline"]: cell})
    # A baseline with question forms of its own has no default among them: the best on other folds, as in the verdicts.
    rule = value.rule or (FIXED if set(cell.attempts) <= found.own_attempts or value.attempts else SELECTED)
    scores = []
    for attempts in _attempts(value, cell):
        parts = list(by_relation(method, cell, rule, study.settings, attempts).values())
        items = np.concatenate([part.items for part in parts])
        scores.append(np.concatenate([part.corrected for part in parts]))
    mean = np.mean(scores, axis=0)[:, inside]
    layers = np.array(cell.layers)[inside] if value.each else np.array([], np.int64)
    mean = mean if value.each else mean.mean(axis=1, keepdims=True)
    ends = np.zeros(mean.shape[1]), np.ones(mean.shape[1])
    if value.of == ACCURACY:
        chance = found.table.chance[items][:, None]
        mean, ends = (mean - chance) / (1 - chance), (ends[0] - chance.max() / (1 - chance.max()), ends[1])
    return found.measured(items, mean, ends if value.of in (ACCURACY, "correct") else None, layers)


def _attempts(value: Value, cell: CellScores) -> list[tuple[str, ...] | None]:
    """The attempts that are averaged, one by one; a single None where a rule chooses."""
    if value.attempts is None:
        return [None]
    named = [one for one in cell.attempts if any(fnmatchcase(one, pattern) for pattern in value.attempts)]
    if not named:
        raise NoValueError(f"there is no attempt {', '.join(value.attempts)}; there are {', '.join(cell.attempts)}")
    return [(one,) for one in named]


def _effects(cell: CellScores) -> CellScores:
    if CLEAN not in cell.attempts:
        raise NoValueError(f"{cell.key['baseline']} changes nothing: effects are of the baseline `intervention`")
    return replace(cell, corrected=cell.corrected - cell.corrected[cell.attempts.index(CLEAN)])


def _reduced(value: Value, study: StudyRun, found: _ValueCell) -> Measured:
    """One figure of each item, or of each relation, from all attempts and layers."""
    kind, number = value.reduced()
    cell, ends, whole = found.scores, (np.zeros(1), np.ones(1)), np.array([], np.int64)
    named = [attempt[0] for attempt in _attempts(value, cell) if attempt] or list(cell.attempts)
    inside = _inside(value, study, np.array(cell.layers))
    scores = cell.corrected[[cell.attempts.index(attempt) for attempt in named]][:, :, inside]
    if kind == ANY:
        return found.measured(cell.items, np.nanmax(scores, axis=(0, 2))[:, None], ends, whole)
    if kind == SHARE:
        sizes = -np.sort(-np.abs(scores).transpose(1, 0, 2).reshape(len(cell.items), -1), axis=1)
        total = np.nansum(sizes, axis=1)
        if not total.all():
            raise NoValueError("the contributions to some item's answer are all 0")
        share = np.nansum(sizes[:, : int(number)], axis=1) / total
        return found.measured(cell.items, share[:, None], ends, whole)
    relation = found.table.relation[cell.items]
    codes = np.unique(relation)
    best = np.array([np.nanmax(np.nanmean(scores[:, relation == code], axis=1)) for code in codes])
    above = (best > number)[:, None].astype(np.float64)
    names = np.array([found.table.relations[code] for code in codes], dtype=object)
    return Measured(names, names, np.full(len(names), RELATIONS, object), above, ends)


def _of_table(value: Value, study: StudyRun) -> Measured:
    """A column of a CSV file with one row for each relation, subject and layer."""
    frame = study.table(value.table or "")
    if missing := {"relation", "subject", "layer", value.of} - set(frame):
        raise NoValueError(f"{study.name}/{value.table} has no column {', '.join(sorted(missing))}")
    if value.relations is not None:
        frame = frame[frame["relation"].isin(value.relations)]
    inside = frame[_inside(value, study, frame["layer"].to_numpy(dtype=np.int64))]
    wide = inside.pivot_table(index=["relation", "subject"], columns="layer", values=value.of)
    scores = wide.to_numpy(dtype=np.float64)
    relations, subjects = (wide.index.get_level_values(name).astype(str).to_numpy() for name in ("relation", "subject"))
    layers = tuple(map(int, wide.columns)) if value.each else ()
    scores = scores if value.each else scores.mean(axis=1, keepdims=True)
    items = np.array([f"{one}/{other}" for one, other in zip(relations, subjects, strict=True)], dtype=object)
    reach = largest_of_subjects(scores, subjects)
    return Measured(items, subjects, relations, scores, (-reach, reach), bounded=False, layers=layers)
