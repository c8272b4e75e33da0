"""Paired differences between two sets of records: the same items, answered twice. Needs no model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lensbench.results.arrays import FIXED, NO_LAYER, CellScores, Items, Scored, cells_of
from lensbench.results.bands import MARGIN, Band, Floats, Ints
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.samples import Sample, SummarySettings

BEST = "best"
"""In the column `at`: each side at the layer that is best for it; else `layer`, both at the same one."""
DIFFERENCE_COLUMNS = (
    "task", "relation", "site", "inspector", "other_inspector", "at", "layer", "other_layer", "n", "subjects",
    "accuracy", "other_accuracy", "difference", "low", "high", "p", "p_holm", "gained", "lost", "verdict",
)  # fmt: skip
CHANGED_COLUMNS = (
    "task", "relation", "site", "inspector", "other_inspector", "item", "subject", "layer", "other_layer", "gold",
    "predicted", "other_predicted", "correct", "other_correct", "change",
)  # fmt: skip
FIRST_HIGHER, SECOND_HIGHER, INCONCLUSIVE, IDENTICAL = "first higher", "second higher", "inconclusive", "identical"
SAME = f"same within {MARGIN:.2f}".replace("0.", ".")
LOOKED_AT_MANY = "inconclusive (many looked at)"
_DRAWN = 20_000_000
_NEEDED = (
    "item", "subject", "relation", "fold", "chance", "attempt", "layer", "correct", "correct_corrected",
    "gold", "predicted_corrected",
)  # fmt: skip
_OTHER = "other"


@dataclass(frozen=True)
class Place:
    """Where two methods are compared: a task and site, the method of the first run and that of the second."""

    task: str
    site: str
    inspector: str
    other: str

    @property
    def columns(self) -> dict[str, str]:
        """The place as columns of a table."""
        return {"task": self.task, "site": self.site, "inspector": self.inspector, "other_inspector": self.other}


@dataclass(frozen=True)
class Shared:
    """Two methods' predictions of the items that both answered and that ask the same of both.

    Attributes:
        first: the records of the first method on these items.
        second: those of the second.
        only_first: items that the first alone answered.
        only_second: items that the second alone answered.
        asked_otherwise: items of one name whose gold answer or number of choices differs; they are left out.
    """

    place: Place
    first: pd.DataFrame
    second: pd.DataFrame
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    asked_otherwise: tuple[str, ...]


def shared_items(place: Place, first: pd.DataFrame, second: pd.DataFrame) -> Shared:
    """Find the items that two runs' records share at a place."""
    sides = [
        _method_rows(records, place.task, place.site, name)
        for records, name in ((first, place.inspector), (second, place.other))
    ]
    asked, asked_other = (one.drop_duplicates("item").set_index("item")[["gold", "chance", "fold"]] for one in sides)
    both = asked.index.intersection(asked_other.index)
    ours, theirs = asked.loc[both], asked_other.loc[both]
    chance, other = (one["chance"].to_numpy(np.float64) for one in (ours, theirs))
    alike = (ours["gold"] == theirs["gold"]).to_numpy() & np.isclose(chance, other, atol=1e-6)
    kept = both[alike & (ours["fold"] == theirs["fold"]).to_numpy()]
    parts = [one[one["item"].isin(kept)] for one in sides]
    alone = [tuple(sorted(one.index.difference(both))) for one in (asked, asked_other)]
    return Shared(place, parts[0], parts[1], alone[0], alone[1], tuple(sorted(both.difference(kept))))


def _method_rows(records: pd.DataFrame, task: str, site: str, inspector: str) -> pd.DataFrame:
    keys = {"task": task, "site": site, "inspector": inspector, "baseline": NO_BASELINE}
    keep = np.logical_and.reduce([(records[name] == value).to_numpy() for name, value in keys.items()])
    rows = records.loc[keep, list(_NEEDED)]
    names = ("item", "subject", "relation", "attempt", "gold", "predicted_corrected")
    return rows.astype(dict.fromkeys(names, object))


@dataclass(frozen=True)
class _Pair:
    """Both sides on the items of one relation, or of all: raw and corrected scores [item, layer]."""

    items: Ints
    sides: tuple[Scored, Scored]
    layers: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def common(self) -> tuple[int, ...]:
        """The layers that both were read at; all of the other's for a method that reads none."""
        ours, theirs = self.layers
        if (NO_LAYER,) in (ours, theirs):
            return theirs if ours == (NO_LAYER,) else ours
        return tuple(layer for layer in ours if layer in theirs)

    def at(self, side: int, kind: str, layers: tuple[int, ...]) -> Floats:
        """Return one side's scores at these layers: [item, layer]."""
        scores: Floats = getattr(self.sides[side], kind)
        own = self.layers[side]
        return scores[:, [0 if own == (NO_LAYER,) else own.index(layer) for layer in layers]]


def differences(shared: Shared, settings: SummarySettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The differences, second minus first, at each layer and at each side's best; and the items whose answer changed.

    Intervals hold for all layers of a relation at once; at the best layers, for each layer of the first beside each of
    the second, so that choosing is allowed for. (Layers chosen on other folds and scored on the rest look fairer, but
    the folds' choices depend on each other: 11 to 16 % of such intervals excluded 0 where there was nothing.)
    `p_holm` is left empty: it is for who puts all places together.

    Returns:
        rows with `DIFFERENCE_COLUMNS`, and rows with `CHANGED_COLUMNS`, at each side's best layer.
    """
    table, cells = _cells(shared)
    names = np.array(sorted(set(shared.first["item"])), dtype=object)
    answers = [_answers(frame) for frame in (shared.first, shared.second)]
    rows: list[dict[str, Any]] = []
    changed: list[pd.DataFrame] = []
    for sample, pair in _samples(table, cells, shared.place.task, settings):
        identical = _identical(answers, pair, names)
        rows += [{**shared.place.columns, **row} for row in _rows(sample, pair, identical=identical)]
        if not sample.is_total:
            changed.append(_changes(sample, pair, (names, answers[0], answers[1])).assign(**shared.place.columns))
    whole = pd.concat(changed) if changed else pd.DataFrame(columns=list(CHANGED_COLUMNS))
    frame = pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))
    for name in ("layer", "other_layer"):
        frame[name] = frame[name].astype("Int16")
    return frame, whole[list(CHANGED_COLUMNS)].reset_index(drop=True)


def holm(p: Floats) -> Floats:
    """Adjust p-values for how many there are (Holm 1979): the smallest times n, the next times n - 1, never falling."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def between_methods(records: pd.DataFrame, settings: SummarySettings) -> pd.DataFrame:
    """Compare the methods of one run with each other, each at its best layer: rows with `DIFFERENCE_COLUMNS`.

    Paired over the items that both were asked alike: over the relations that both answered (`all`), or the only one.
    The difference is the second method minus the first, and `p_holm` is adjusted for the number of pairs.
    """
    own = records[records["baseline"] == NO_BASELINE]
    rows = []
    for (task, site), here in own.groupby(["task", "site"], observed=True, sort=True):
        for one, other in combinations(sorted(here["inspector"].astype(str).unique()), 2):
            shared = shared_items(Place(str(task), str(site), one, other), here, here)
            if shared.first.empty:
                continue
            # The last sample is the total, if there is one.
            *_, (sample, pair) = _samples(*_cells(shared), str(task), settings)
            rows.append({**shared.place.columns, **next(_rows(sample, pair, identical=False))})
    frame = pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))
    if len(frame):
        frame["p_holm"] = holm(frame["p"].to_numpy(dtype=np.float64))
        claimed = frame["verdict"].isin([FIRST_HIGHER, SECOND_HIGHER])
        frame.loc[claimed & (frame["p_holm"] >= 1.0 - settings.level), "verdict"] = LOOKED_AT_MANY
    for name in ("layer", "other_layer"):
        frame[name] = frame[name].astype("Int16")
    return frame


def _cells(shared: Shared) -> tuple[Items, tuple[CellScores, CellScores]]:
    """Both sides as cells of one table, the second in the place of a baseline."""
    same = {"model": "", "verbalizer": "", "task": shared.place.task, "site": shared.place.site, "inspector": ""}
    frames = [
        frame.assign(**same, baseline=name) for frame, name in ((shared.first, NO_BASELINE), (shared.second, _OTHER))
    ]
    table, cells = cells_of(pd.concat(frames, ignore_index=True))
    by_name = {cell.key["baseline"]: cell for cell in cells}
    return table, (by_name[NO_BASELINE], by_name[_OTHER])


def _samples(
    table: Items, cells: tuple[CellScores, CellScores], task: str, settings: SummarySettings
) -> Iterator[tuple[Sample, _Pair]]:
    """Each relation, then the total where it is over several."""
    layers = (cells[0].layers, cells[1].layers)
    counted: list[tuple[Scored, Scored]] = []
    for code, name in enumerate(table.relations):
        parts = [cell.part(table.of_relation(cell.items, code)) for cell in cells]
        if parts[0] is None or parts[1] is None:
            continue
        sides = (parts[0].scored(FIXED, None, table.fold), parts[1].scored(FIXED, None, table.fold))
        yield Sample(name, table, settings), _Pair(sides[0].items, sides, layers)
        if (task, name) not in settings.selected | settings.apart:
            counted.append(sides)
    if len(counted) > 1:
        joined = [
            Scored(*(np.concatenate([getattr(sides[i], kind) for sides in counted]) for kind in _PARTS)) for i in (0, 1)
        ]
        yield Sample(ALL, table, settings), _Pair(joined[0].items, (joined[0], joined[1]), layers)


_PARTS = ("items", "raw", "corrected")


def _rows(sample: Sample, pair: _Pair, *, identical: bool) -> Iterator[dict[str, Any]]:
    """The row at each side's best layer, then one a layer."""
    items, common = pair.items, pair.common
    fixed = {"relation": sample.label, "n": len(items), "subjects": len(np.unique(sample.table.subject[items]))}
    best = _best(sample, pair)
    ours, theirs = (len(layers) for layers in pair.layers)
    # Each layer of the first beside each of the second: the interval holds for all, whichever two are chosen.
    every = (np.repeat(np.arange(ours), theirs), np.tile(np.arange(theirs), ours))
    scores = {kind: [getattr(pair.sides[i], kind)[:, every[i]] for i in (0, 1)] for kind in ("raw", "corrected")}
    thrifty = replace(sample, settings=_fewer_draws(sample.settings, ours * theirs))
    (row,) = _compared(thrifty, items, scores, [best[0] * theirs + best[1]], identical=identical)
    layers = [None if pair.layers[i][best[i]] == NO_LAYER else pair.layers[i][best[i]] for i in (0, 1)]
    yield {**fixed, **row, "at": BEST, "layer": layers[0], "other_layer": layers[1]}
    if common:
        scores = {kind: [pair.at(i, kind, common) for i in (0, 1)] for kind in ("raw", "corrected")}
        compared = _compared(sample, items, scores, range(len(common)), identical=identical)
        for layer, row in zip(common, compared, strict=True):
            number = None if layer == NO_LAYER else layer
            yield {**fixed, **row, "at": "layer", "layer": number, "other_layer": number}


def _best(sample: Sample, pair: _Pair) -> tuple[int, int]:
    """Each side's best layer, by index: the first of the highest."""
    ours, theirs = (int(np.round(sample.mean(pair.items, side.corrected), 6).argmax()) for side in pair.sides)
    return ours, theirs


def _fewer_draws(settings: SummarySettings, columns: int) -> SummarySettings:
    """Not more than fit into memory: 200 by 200 layers are 40,000 differences."""
    return replace(settings, draws=min(settings.draws, max(500, _DRAWN // columns)))


def _compared(
    sample: Sample, items: Ints, scores: Mapping[str, list[Floats]], wanted: Iterable[int], *, identical: bool
) -> Iterator[dict[str, Any]]:
    """A row for each wanted column of scores: accuracies, difference, interval, what can be said under both scores."""
    change = {kind: sides[1] - sides[0] for kind, sides in scores.items()}
    bands = {kind: sample.difference_band(items, values) for kind, values in change.items()}
    # Something is claimed only where it holds under the raw score, too.
    p_values = np.maximum(*(sample.p_values(items, values) for values in change.values()))
    accuracy = [sample.mean(items, side) for side in scores["corrected"]]
    for i in wanted:
        step = change["corrected"][:, i]
        yield {
            "accuracy": accuracy[0][i], "other_accuracy": accuracy[1][i], "difference": bands["corrected"].estimate[i],
            "low": bands["corrected"].low[i], "high": bands["corrected"].high[i], "p": p_values[i], "p_holm": np.nan,
            "gained": int((step > 1e-6).sum()), "lost": int((step < -1e-6).sum()),
            "verdict": IDENTICAL if identical else _verdict(bands, i),
        }  # fmt: skip


def _verdict(bands: Mapping[str, Band], i: int) -> str:
    low, high = min(band.low[i] for band in bands.values()), max(band.high[i] for band in bands.values())
    if low > 0 or high < 0:
        return SECOND_HIGHER if low > 0 else FIRST_HIGHER
    return SAME if low > -MARGIN and high < MARGIN else INCONCLUSIVE


def _answers(frame: pd.DataFrame) -> pd.DataFrame:
    """What the default attempt said, by item and layer; relations may have attempts of their own."""
    first = frame[frame["attempt"] == frame.groupby("item", sort=False)["attempt"].transform("first")]
    numbers = first["layer"].astype("Int64").fillna(NO_LAYER).astype(np.int64)
    columns = ["gold", "subject", "predicted_corrected", "correct_corrected"]
    return first.assign(layer=numbers).set_index(["item", "layer"])[columns]


def _identical(answers: list[pd.DataFrame], pair: _Pair, names: Any) -> bool:
    """Whether both sides were read at the same layers and always said the same, with the same credit."""
    if pair.layers[0] != pair.layers[1] or any(
        not np.array_equal(getattr(pair.sides[0], kind), getattr(pair.sides[1], kind)) for kind in ("raw", "corrected")
    ):
        return False
    wanted = set(names[pair.items])
    said = [one.loc[one.index.get_level_values(0).isin(wanted), "predicted_corrected"].sort_index() for one in answers]
    return said[0].equals(said[1])


def _changes(sample: Sample, pair: _Pair, known: tuple[Any, pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    """The items that are answered otherwise at the best layers."""
    names, *answers = known
    best = _best(sample, pair)
    at = [np.full(len(pair.items), pair.layers[side][best[side]]) for side in (0, 1)]
    first, second = (
        one.reindex(pd.MultiIndex.from_arrays([names[pair.items], layers]))
        for one, layers in zip(answers, at, strict=True)
    )
    credits = [one["correct_corrected"].to_numpy(np.float64) for one in (first, second)]
    step = credits[1] - credits[0]
    said = [one["predicted_corrected"].to_numpy(object) for one in (first, second)]
    frame = pd.DataFrame(
        {
            "relation": sample.label, "item": names[pair.items], "subject": first["subject"].to_numpy(object),
            "layer": at[0], "other_layer": at[1], "gold": first["gold"].to_numpy(object),
            "predicted": said[0], "other_predicted": said[1], "correct": credits[0], "other_correct": credits[1],
            "change": np.where(step > 1e-6, "gained", np.where(step < -1e-6, "lost", "another answer")),
        }
    )  # fmt: skip
    frame[["layer", "other_layer"]] = frame[["layer", "other_layer"]].astype("Int16").where(lambda layer: layer >= 0)
    changed: pd.DataFrame = frame[(np.abs(step) > 1e-6) | (said[0] != said[1])]
    return changed
