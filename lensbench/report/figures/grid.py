"""The grid of source and target layers: where a state is read, and where it is written into the other prompt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.report.coding import SCALE, encode_table, numbers, words
from lensbench.report.content import PageRun
from lensbench.report.figure import Choice, Figure
from lensbench.report.frame import frame
from lensbench.report.style import MAP, columns_for, figure_of, label, new_figure, plot_style
from lensbench.report.view import View, view_of
from lensbench.results.records import ALL, NO_BASELINE

SAME = "same"
"""The target layer that is the source layer."""

# How methods named the attempts of several target layers before they declared them: `target_layer=4`, `mlp x6 -> 4`,
# `hop->hop@4`. Only for runs that were written then, and records without a run.
_NAMED = re.compile(r"(?P<before>.*?)(?:\btarget_layer=| -> |@)(?P<layer>\d+|same)(?P<after>( .*)?)")
_COLUMNS = {"accuracy_corrected": "correct_corrected", "accuracy": "correct"}
_MOST_TICKS = 12
_MOST_PANELS = 12
CELL_COLUMNS = ("task", "site", "relation", "inspector", "attempt", "variant", "target", "layer", "value", "n")


@dataclass(frozen=True)
class Grid:
    """Accuracy of one method, or one kind of its attempts, by source and target layer.

    Attributes:
        name: of the method, and of the kind of attempt where it makes several.
        source: layers, in order.
        target: layers in order, `same` last.
        accuracy: NaN where nothing was tried.
    """

    name: str
    source: tuple[int, ...]
    target: tuple[str, ...]
    accuracy: Float[np.ndarray, "target source"]


def target_of(attempt: str, declared: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """Return what an attempt varies besides its target layer, and that layer; None where it has none.

    Args:
        attempt: its name.
        declared: what the run says of its attempts; see `with_attempts`.
    """
    if attempt in declared:
        return declared[attempt]
    found = _NAMED.fullmatch(attempt)
    return (" ".join(f"{found['before']} {found['after']}".split()), found["layer"]) if found else None


def grids_of(records: pd.DataFrame, view: View) -> list[Grid]:
    """Return the grids of the methods whose attempts differ in their target layer.

    The accuracy of `all` is the mean over relations of (accuracy - chance) / (1 - chance).

    Args:
        records: of one run, at one task and site.
        view: which relation and metric.
    """
    own = records[(records["baseline"] == NO_BASELINE) & records["layer"].notna()]
    own = own if view.total else own[own["relation"] == view.relation]
    declared = records.attrs.get("attempts", {})
    places = {name: found for name in own["attempt"].astype(str).unique() if (found := target_of(name, declared))}
    own = own[own["attempt"].isin(list(places))]
    if own.empty:
        return []
    attempt = own["attempt"].astype(str)
    own = own.assign(
        target=attempt.map(lambda name: places[name][1]), kind=attempt.map(lambda name: places[name][0]),
        layer=own["layer"].astype(int), inspector=own["inspector"].astype(str), relation=own["relation"].astype(str),
        score=own[_COLUMNS[view.metric]],
    )  # fmt: skip
    several = {str(name): kinds for name, kinds in own.groupby("inspector")["kind"].nunique().items()}
    groups = {(str(name), str(kind)): rows for (name, kind), rows in own.groupby(["inspector", "kind"], sort=True)}
    return [
        _grid(name if several[name] == 1 else f"{name}, {kind}", rows, view)
        for (name, kind), rows in groups.items()
        if rows["target"].nunique() > 1
    ]


def _grid(name: str, rows: pd.DataFrame, view: View) -> Grid:
    keys = ["target", "layer"]
    cells = rows.groupby([*keys, "relation"])[["score", "chance"]].mean()
    values = (cells["score"] - cells["chance"]) / (1 - cells["chance"]) if view.total else cells["score"]
    table = values.groupby(keys).mean().unstack("layer").sort_index(axis=1)
    order = sorted(table.index, key=lambda target: (target == SAME, int(target) if target != SAME else 0))
    accuracy = table.loc[order].to_numpy(dtype=float)
    return Grid(name, tuple(int(layer) for layer in table.columns), tuple(str(one) for one in order), accuracy)


def plot_grid(
    records: pd.DataFrame, *, inspector: str | None = None, ax: Axes | None = None, **choice: Unpack[Choice]
) -> Drawing:
    """Draw accuracy by source layer and target layer, a panel for each method that was given several target layers.

    The best cell is framed: it is the best of many, and says less than an accuracy at a layer that was fixed before.

    Args:
        records: of one run.
        inspector: one method alone.
        ax: where to draw one grid; by default a new figure has a panel a method.
        choice: what is shown, and how wide; see `View`. `rule` says nothing here: all attempts are shown.

    Raises:
        UsageError: a choice that the records leave open, or one axes for several grids.
        LensbenchError: no method was given several target layers.
    """
    view, rows = _chosen(records, view_of(choice), inspector)
    grids = grids_of(rows, view)
    if not grids:
        raise LensbenchError(
            "nothing to plot: no method of the run has several target layers; run one, as with "
            "--set patchscope.target_layers=stride:4"
        )
    if len(grids) > (1 if ax is not None else _MOST_PANELS):
        raise UsageError(f"there are {len(grids)} grids: give inspector, one of {', '.join(_methods(rows))}")
    with plot_style():
        if ax is not None:
            figure, axes = figure_of(ax), [ax]
        else:
            figure, axes = _canvas(view, grids)
        low = min(0.0, *(float(np.nanmin(grid.accuracy)) for grid in grids))
        images = [_draw(axis, grid, low) for axis, grid in zip(axes, grids, strict=True)]
        bar = figure.colorbar(images[0], ax=axes, label=view.y_label.replace("\ndotted: chance", ""), pad=0.02)
        if not view.total:
            bar.ax.axhline(float(rows["chance"].mean()), color="white", lw=1.2, ls=":")
            bar.ax.set_xlabel("dotted:\nchance", fontsize=6)
        if ax is None:
            names = sorted({grid.name.partition(",")[0] for grid in grids})
            frame(figure, title=view.title_of(names) if view.title else "", note=f"{_counted(rows, view)}.")
    return figure


def _counted(rows: pd.DataFrame, view: View) -> str:
    """The model, and how many subjects, items and relations are shown."""
    own = rows if view.total else rows[rows["relation"] == view.relation]
    parts = [" and ".join(map(label, sorted(own["model"].astype(str).unique())))]
    parts += [f"{own['subject'].nunique()} subjects", f"{own['item'].nunique()} items"]
    return ", ".join(parts + [f"{own['relation'].nunique()} relations"] * view.total)


def _chosen(records: pd.DataFrame, view: View, inspector: str | None) -> tuple[View, pd.DataFrame]:
    if view.metric not in _COLUMNS:
        raise unknown_name("metric of a grid", view.metric, _COLUMNS)
    table = records[["task", "relation", "site"]].astype(str)
    relation = view.relation
    if relation == ALL or (relation is None and table["relation"].nunique() > 1):
        view, relation = view.resolved(table, "task", "site"), ALL
        view = View(**{**view.__dict__, "relation": relation})
    else:
        view = view.resolved(table, "task", "relation", "site")
    rows = records[(records["task"] == view.task) & (records["site"] == view.site)]
    if inspector is not None:
        if inspector not in _methods(rows):
            raise unknown_name("inspector of this run", inspector, _methods(rows))
        rows = rows[rows["inspector"] == inspector]
    return view, rows


def _methods(rows: pd.DataFrame) -> list[str]:
    return sorted({str(name) for name in rows["inspector"].unique()})


def _canvas(view: View, grids: Sequence[Grid]) -> tuple[Drawing, list[Axes]]:
    wide = min(len(grids), columns_for(view.inches, 2))
    deep = -(-len(grids) // wide)
    figure = new_figure((view.inches, 0.6 + min(3.4, 0.35 + view.inches / wide * 0.75) * deep))
    axes = figure.subplots(deep, wide, squeeze=False)
    for axis in list(axes.flat)[len(grids) :]:
        axis.set_axis_off()
    return figure, list(axes.flat)[: len(grids)]


def _draw(axis: Axes, grid: Grid, low: float) -> Any:
    rows, columns = grid.accuracy.shape
    x, y = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    image = axis.pcolormesh(x, y, np.ma.masked_invalid(grid.accuracy), cmap=MAP, vmin=low, vmax=1.0, rasterized=True)
    axis.set_facecolor("#d9d9d9")  # nothing was tried there
    best = np.unravel_index(int(np.nanargmax(grid.accuracy)), grid.accuracy.shape)
    corner = (best[1] - 0.5, best[0] - 0.5)
    for colour, width in (("black", 2.4), ("white", 1.1)):
        axis.add_patch(_frame(corner, colour, width))
    axis.grid(visible=False)
    _ticks(axis.xaxis, [str(layer) for layer in grid.source])
    _ticks(axis.yaxis, list(grid.target))
    axis.set_xlabel("Source layer (read)")
    axis.set_ylabel("Target layer (written)")
    target, source = grid.target[best[0]], grid.source[best[1]]
    axis.set_title(
        f"{label(grid.name)}\nframed: {grid.accuracy[best]:.2f} at {source} \N{RIGHTWARDS ARROW} {target}",
        fontsize=8,
    )
    return image


def _frame(corner: tuple[float, float], colour: str, width: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width, zorder=5, clip_on=False)


def _ticks(axis: Any, names: list[str]) -> None:
    """Name about a dozen of the layers, evenly."""
    step = -(-len(names) // _MOST_TICKS)
    places = list(range(0, len(names), step))
    axis.set_ticks(places, [names[place] for place in places])


def attempt_cells(records: pd.DataFrame, outside: frozenset[tuple[str, str]] = frozenset()) -> pd.DataFrame:
    """Return the accuracy of every attempt of the methods that make several, by source layer.

    Args:
        records: of one run.
        outside: (task, relation) pairs that have no part in totals.

    Returns:
        Columns task, site, relation, inspector, attempt, variant, target, layer, value, n. `target` is the target
        layer, or the attempt's name where it has none. Rows of relation `all` are means of
        (accuracy - chance) / (1 - chance) over the relations.
    """
    own = records[(records["baseline"] == NO_BASELINE) & records["layer"].notna()]
    attempts = own.groupby("inspector", observed=True)["attempt"].nunique()
    own = own[own["inspector"].isin(attempts.index[attempts > 1])]
    if own.empty:
        return pd.DataFrame(columns=list(CELL_COLUMNS))
    keys = ["task", "site", "relation", "inspector", "attempt", "layer"]
    grouped = own.groupby(keys, observed=True, sort=True)
    cells = grouped.agg(value=("correct_corrected", "mean"), chance=("chance", "mean"), n=("item", "size"))
    cells = cells.reset_index().astype(dict.fromkeys(keys[:-1], object))
    whole = pd.concat([cells, _totals(cells, outside)], ignore_index=True)
    declared = records.attrs.get("attempts", {})
    places = [target_of(str(attempt), declared) or ("", str(attempt)) for attempt in whole["attempt"]]
    return whole.assign(variant=[place[0] for place in places], target=[place[1] for place in places])[[*CELL_COLUMNS]]


def _totals(cells: pd.DataFrame, outside: frozenset[tuple[str, str]]) -> pd.DataFrame:
    counted = [pair not in outside for pair in zip(cells["task"], cells["relation"], strict=True)]
    part = cells[counted]
    part = part.assign(value=(part["value"] - part["chance"]) / (1 - part["chance"]).clip(lower=1e-9))
    keys = ["task", "site", "inspector", "attempt", "layer"]
    found = part.groupby(keys, observed=True, sort=True)
    totals = found.agg(value=("value", "mean"), n=("n", "sum"), relations=("relation", "nunique")).reset_index()
    return totals[totals["relations"] > 1].drop(columns="relations").assign(relation=ALL, chance=0.0)


def coded_cells(cells: pd.DataFrame) -> str:
    """Code the grids."""
    names = ("task", "site", "relation", "inspector", "attempt", "variant", "target")
    columns = {name: words(cells[name]) for name in names}
    columns |= {"layer": numbers(cells["layer"]), "n": numbers(cells["n"]), "value": numbers(cells["value"], SCALE)}
    return encode_table(columns)


def _page_table(run: PageRun) -> str:
    cells = attempt_cells(run.records, run.outside_totals)
    return coded_cells(cells) if len(cells) else ""


FIGURE = Figure(
    title="Source × target layer",
    about="Accuracy by source and target layer, for methods with several target layers.",
    draw=lambda run, **options: plot_grid(run.records, **options),
    options=frozenset({"inspector"}),
    anchor="grid",
    label="Grid",
    order=40,
    table=_page_table,
)
