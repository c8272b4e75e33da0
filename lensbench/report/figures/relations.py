"""Small multiples: a panel for each relation of a task."""

import textwrap
from collections.abc import Sequence
from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.errors import LensbenchError
from lensbench.report.figure import Choice, Figure
from lensbench.report.frame import frame, name_panel
from lensbench.report.panels import (
    GAP_NOTE,
    LAYER_LABEL,
    band_note,
    draw_methods,
    draw_text_baseline,
    method_handles,
    of_methods,
)
from lensbench.report.style import SOFT, colours, columns_for, label, new_figure, plot_style
from lensbench.report.view import Y_LABELS, View, in_order, methods_in, view_of
from lensbench.results.records import ALL

# With more relations than this, panels of several sites are lower.
_MANY = 12


def plot_relations(summary: pd.DataFrame, **choice: Unpack[Choice]) -> Drawing:
    """Draw small multiples of one task, the total first: a row a relation and a column a site, or one site alone.

    Args:
        summary: of one run.
        choice: what is shown, and how wide; see `View`. Of several sites all are drawn, unless one is named.

    Raises:
        UsageError: an unknown metric, task or site.
        LensbenchError: nothing in the summary to draw.
    """
    view = view_of(choice).resolved(summary, "task")
    rows = summary[(summary["task"] == view.task) & (summary["rule"] == view.rule)]
    if rows.empty:
        raise LensbenchError(f"nothing to plot: the summary has no rows of task {view.task!r} with rule {view.rule!r}")
    if view.site is not None:
        view = view.resolved(rows, "task", "site")
        rows = rows[rows["site"] == view.site]
    if not of_methods(rows, view.metric)["layer"].notna().any():
        raise LensbenchError(f"nothing to plot: the summary has no {view.metric} of a method of task {view.task!r}")
    sites = in_order(list(rows["site"].unique()))
    palette = colours(methods_in(rows))
    with plot_style():
        figure = _one_site(rows, sites[0], view, palette) if len(sites) == 1 else _sites(rows, sites, view, palette)
        _explain(figure, summary, view, palette)
    return figure


def _relations(rows: pd.DataFrame) -> list[str]:
    names = sorted(set(rows["relation"]) - {ALL})
    return [ALL, *names] if ALL in set(rows["relation"]) and len(names) != 1 else names


def _sites(rows: pd.DataFrame, sites: Sequence[str], view: View, palette: dict[str, str]) -> Drawing:
    """A row a relation, a column a site."""
    relations = _relations(rows)
    height = 1.75 if len(relations) <= _MANY else 1.1
    figure = new_figure((max(view.inches, 1.5 + 2.0 * len(sites)), 0.3 + height * len(relations)))
    axes = figure.subplots(len(relations), len(sites), squeeze=False, sharex=True, sharey=view.is_gap)
    for row, relation in enumerate(relations):
        for column, site in enumerate(sites):
            _small(axes[row][column], rows, (relation, site), view.metric, palette)
        name = "all relations\n(chance = 0)" if relation == ALL else textwrap.fill(label(relation), 22)
        axes[row][0].set_ylabel(name)
    for axis, site in zip(axes[0], sites, strict=True):
        axis.set_title(f"read at {label(site)}" + (": what readers can recover" if site == "subject" else ""))
    for axis in axes[-1]:
        axis.set_xlabel(LAYER_LABEL)
    return figure


def _one_site(rows: pd.DataFrame, site: str, view: View, palette: dict[str, str]) -> Drawing:
    """Panels in the order of the relations' names, as many side by side as fit the width."""
    relations = _relations(rows)
    wide = min(columns_for(view.inches), len(relations))
    deep = -(-len(relations) // wide)
    figure = new_figure((view.inches, 0.4 + 1.35 * deep))
    axes = figure.subplots(deep, wide, squeeze=False, sharex=True, sharey=True)
    limits = []
    for place, axis in enumerate(axes.flat):
        if place >= len(relations):
            axis.set_axis_off()
            continue
        relation = relations[place]
        _small(axis, rows, (relation, site), view.metric, palette)
        name = "all relations (chance = 0)" if relation == ALL else label(relation)
        name_panel(axis, name, (view.inches - 0.3) / wide - 0.15, fontsize=7)
        limits.append(axis.get_ylim())
        axis.tick_params(labelbottom=place + wide >= len(relations))
        if place + wide >= len(relations):
            axis.set_xlabel("Layer")
    # Each panel has set the one scale that all share: it has to hold them all.
    axes[0][0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _explain(figure: Drawing, summary: pd.DataFrame, view: View, palette: dict[str, str]) -> None:
    """Add the title, and the legend and the note below."""
    handles = method_handles(figure.axes[0], palette)
    if not view.is_gap:
        handles += figure.axes[0].plot([], [], color=SOFT, lw=0.9, ls="--", label="its strongest text baseline")
    site = "" if view.site is None else f", read at {label(view.site)}"
    title = f"{label(view.task or '')}{site}, {Y_LABELS[view.metric][0].lower()}{Y_LABELS[view.metric][1:]}"
    note = f"{view.counted(summary)}. {GAP_NOTE if view.is_gap else band_note(list(palette))}"
    frame(figure, title=title if view.title else "", note=note, handles=handles)


def _small(axis: Axes, rows: pd.DataFrame, place: tuple[str, str], metric: str, palette: dict[str, str]) -> None:
    relation, site = place
    chosen = rows[(rows["relation"] == relation) & (rows["site"] == site)]
    if not of_methods(chosen, metric)["layer"].notna().any():
        # The axis itself stays: panels that share a scale with it keep theirs.
        for side in axis.spines.values():
            side.set_visible(False)
        axis.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        axis.grid(visible=False)
        axis.text(0.5, 0.5, "not applicable", transform=axis.transAxes, ha="center", va="center", color="#777777")
        return
    draw_methods(axis, chosen, metric, palette, width=1.3)
    if not metric.startswith("gap:"):
        for method, colour in palette.items():
            draw_text_baseline(axis, chosen, method, metric, colour)


FIGURE = Figure(
    title="Accuracy by relation",
    about="A panel for each relation of a task.",
    draw=lambda run, **options: plot_relations(run.summary, **options),
)
