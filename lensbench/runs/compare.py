"""Two runs side by side: what was set otherwise, what came out otherwise, and what only one of them has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.results.compare import (
    BEST,
    CHANGED_COLUMNS,
    DIFFERENCE_COLUMNS,
    FIRST_HIGHER,
    LOOKED_AT_MANY,
    SECOND_HIGHER,
    Place,
    Shared,
    differences,
    holm,
    shared_items,
)
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import rows_of
from lensbench.runs.run import Run

SIGNIFICANT = 0.05
_SETTING_GROUPS = ("config", "setting", "versions")
_SINGLE_SETTINGS = ("python", "machine", "git_commit", "memory_budget", "patched_pass")
# What is told elsewhere, or says the same as another setting.
_NOT_SHOWN = {"tasks", "inspectors", "baselines", "out", "schema"}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; differences are second minus first.

    Attributes:
        first: the first run's folder.
        second: the second's.
        settings: what was set otherwise: setting, first, second.
        differences: a row a task, relation, site and pair of methods at the best layers of each (`at` = best), and
            one a layer that both were read at; `relation` is `all` for a task's total.
        changed: the items that are answered otherwise at the best layers.
        unpaired: what only one run has, or what was left out, and why: what, name, where, count, examples.
    """

    first: Path
    second: Path
    settings: pd.DataFrame
    differences: pd.DataFrame
    changed: pd.DataFrame
    unpaired: pd.DataFrame

    @property
    def best(self) -> pd.DataFrame:
        """The differences at the best layers."""
        return self.differences[self.differences["at"] == BEST].reset_index(drop=True)

    def __repr__(self) -> str:
        return f"Comparison({str(self.first)!r}, {str(self.second)!r}): {len(self.best)} differences"


def compare(first: Run | Path | str, second: Run | Path | str, pairs: Mapping[str, str] | None = None) -> Comparison:
    """Compare two runs by paired differences over the items that both answered.

    Methods of one name are compared. Where a task and site has one method in each run and their names differ, these two
    are. Each has its default attempt.

    Intervals are simultaneous over layers, at the best layers over all pairs of a layer of each; a difference is
    claimed only where it holds under the raw and the corrected score. At the best layers, p-values are corrected over
    all relations, sites and methods of the comparison (Holm 1979), those of totals among themselves.

    Args:
        first: a run, or its folder.
        second: another; or the same, to compare two of its methods.
        pairs: method of the first -> method of the second; then only these are compared.

    Raises:
        UsageError: a method in `pairs` that the run does not have.
        LensbenchError: a folder that is no run, or nothing that both runs answered.
    """
    runs = [one if isinstance(one, Run) else Run(one) for one in (first, second)]
    records = [_own_records(run) for run in runs]
    wanted = _checked(pairs, runs, records)
    places = list(_places(records, wanted))
    if not places:
        have = "; ".join(f"{run.path} has {_inventory(frame)}" for run, frame in zip(runs, records, strict=True))
        raise LensbenchError(
            f"the runs have no task and site with one method in common: {have}. Name methods that are to be "
            "compared: --pair FIRST=SECOND"
        )
    settings = _statistics(runs)
    shared = [shared_items(place, *records) for place in places]
    found = [differences(one, settings) for one in shared if len(one.first)]
    if not found:
        raise LensbenchError(
            f"no item of {runs[0].path} was answered in {runs[1].path}, too: they asked other relations, or drew "
            "others (--limit, --seed)"
        )
    table = _corrected(pd.concat([rows for rows, _ in found], ignore_index=True))
    changes = [items for _, items in found if len(items)]
    changed = pd.concat(changes, ignore_index=True) if changes else pd.DataFrame(columns=list(CHANGED_COLUMNS))
    unpaired = [*_missing_places(runs, records, places, wanted), *_missing_items(runs, shared)]
    columns = ["what", "name", "where", "count", "examples"]
    return Comparison(
        runs[0].path, runs[1].path, _settings(runs), table[list(DIFFERENCE_COLUMNS)], changed,
        pd.DataFrame(unpaired, columns=columns).drop_duplicates(ignore_index=True),
    )  # fmt: skip


def _own_records(run: Run) -> pd.DataFrame:
    if not run.done:
        raise LensbenchError(f"{run.path} has no finished cell: run `lensbench evaluate` again with --out {run.path}")
    records = run.records
    own = records[(records["baseline"] == NO_BASELINE).to_numpy()]
    if own.empty:
        raise LensbenchError(f"{run.path} has records of rivals alone, and of no method: there is nothing to compare")
    return own


def _checked(
    pairs: Mapping[str, str] | None, runs: Sequence[Run], records: Sequence[pd.DataFrame]
) -> Mapping[str, str] | None:
    for names, run, frame in zip(zip(*(pairs or {}).items(), strict=True), runs, records, strict=False):
        known = sorted(frame["inspector"].astype(str).unique())
        for name in names:
            if name not in known:
                raise unknown_name(f"method of {run.path}", name, known)
    if pairs is not None and not pairs:
        raise UsageError("pairs = {}: name at least one method of the first run and one of the second, or give None")
    if pairs is None and runs[0].path.resolve() == runs[1].path.resolve():
        raise UsageError(f"{runs[0].path} was given twice; name two of its methods: --pair FIRST=SECOND")
    return pairs


def _methods(records: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """The methods at each task and site."""
    found: dict[tuple[str, str], list[str]] = {}
    names = records[["task", "site", "inspector"]].drop_duplicates().astype(str)
    for task, site, inspector in sorted(names.itertuples(index=False, name=None)):
        found.setdefault((task, site), []).append(inspector)
    return found


def _places(records: Sequence[pd.DataFrame], pairs: Mapping[str, str] | None) -> Iterator[Place]:
    ours, theirs = (_methods(frame) for frame in records)
    for (task, site), names in ours.items():
        others = theirs.get((task, site), [])
        both = [name for name in names if name in others]
        wanted = pairs if pairs is not None else {name: name for name in both}
        if pairs is None and not both and len(names) == len(others) == 1:
            wanted = {names[0]: others[0]}
        for name, other in wanted.items():
            if name in names and other in others:
                yield Place(task, site, name, other)


def _inventory(records: pd.DataFrame) -> str:
    return ", ".join(f"{task} at {site} ({', '.join(names)})" for (task, site), names in _methods(records).items())


def _statistics(runs: Sequence[Run]) -> SummarySettings:
    """How the bands are made: as in the first run; what either leaves out of totals stays out."""
    ours, theirs = (run.settings for run in runs)
    return replace(ours, selected=ours.selected | theirs.selected, apart=ours.apart | theirs.apart)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Correct the p-values at the best layers for how many are looked at, and take back what does not last."""
    best = (table["at"] == BEST).to_numpy()
    total = (table["relation"] == ALL).to_numpy()
    for family in (best & total, best & ~total):
        if family.any():
            table.loc[family, "p_holm"] = holm(table.loc[family, "p"].to_numpy(dtype="float64"))
    claimed = table["verdict"].isin([FIRST_HIGHER, SECOND_HIGHER]).to_numpy()
    table.loc[best & claimed & (table["p_holm"] >= SIGNIFICANT).to_numpy(), "verdict"] = LOOKED_AT_MANY
    return table


def _settings(runs: Sequence[Run]) -> pd.DataFrame:
    """What was set otherwise."""
    flat = [_flat(run) for run in runs]
    rows = [
        {"setting": name, "first": flat[0].get(name), "second": flat[1].get(name)}
        for name in sorted({*flat[0], *flat[1]})
        if flat[0].get(name) != flat[1].get(name)
    ]
    return pd.DataFrame(rows, columns=["setting", "first", "second"])


def _flat(run: Run) -> dict[str, str]:
    """Every setting as text; what came of `auto` replaces it."""
    info = run.info
    asked: dict[str, Any] = reduce(lambda one, more: {**one, **more}, (info.get(key, {}) for key in _SETTING_GROUPS))
    for inspector, parameters in asked.pop("parameters", {}).items():
        asked.update({f"{inspector}.{name}": value for name, value in parameters.items()})
    asked |= {name: info.get(name) for name in _SINGLE_SETTINGS}
    kept = {name: value for name, value in asked.items() if name not in _NOT_SHOWN and value is not None}
    return {name: _as_text(value) for name, value in kept.items()}


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _missing_places(
    runs: Sequence[Run], records: Sequence[pd.DataFrame], places: Sequence[Place], pairs: Mapping[str, str] | None
) -> Iterator[tuple[str, str, str, int, str]]:
    """Methods and relations that have nothing to be compared with."""
    for side, (run, frame) in enumerate(zip(runs, records, strict=True)):
        paired = {(place.task, place.site, (place.inspector, place.other)[side]) for place in places}
        for (task, site), names in _methods(frame).items():
            for name in names:
                chosen = pairs is None or name in (pairs.keys() if side == 0 else pairs.values())
                if chosen and (task, site, name) not in paired:
                    yield "method", name, f"only in {run.path}", 1, f"{task} at {site}"
        for file in run.failed:
            yield "cell", file, f"failed in {run.path}", 1, run.failed[file].splitlines()[0]


def _missing_items(runs: Sequence[Run], shared: Sequence[Shared]) -> Iterator[tuple[str, str, str, int, str]]:
    """Relations, items and layers that one side alone has; items that do not ask the same."""
    for one in shared:
        place = one.place
        name = f"{place.task} at {place.site}"
        alone = ((runs[0], place.inspector, one.only_first), (runs[1], place.other, one.only_second))
        for run, method, items in alone:
            if items:
                yield "items", f"{name}, {method}", f"only in {run.path}", len(items), ", ".join(items[:3])
        if one.asked_otherwise:
            examples = ", ".join(one.asked_otherwise[:3])
            yield "items", name, "another answer, choice set or fold", len(one.asked_otherwise), examples
        layers = [frozenset(frame["layer"].dropna().astype(int)) for frame in (one.first, one.second)]
        for run, own, other in ((runs[0], layers[0], layers[1]), (runs[1], layers[1], layers[0])):
            if (extra := sorted(own - other)) and other:
                yield "layers", name, f"only in {run.path}", len(extra), ", ".join(map(str, extra))


def as_json(found: Comparison) -> dict[str, Any]:
    """A comparison as an object for JSON: missing values are null."""
    frames = {name: getattr(found, name) for name in ("settings", "differences", "changed", "unpaired")}
    return {
        "first": str(found.first), "second": str(found.second),
        **{name: rows_of(frame) for name, frame in frames.items()},
    }  # fmt: skip
