"""Accuracy over layers: every method with its band, and below it each method beside its own baselines."""

from collections.abc import Sequence
from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.report.figure import Choice, Figure
from lensbench.report.panels import GAP_NOTE, draw_baselines, draw_methods, ends, label_ends
from lensbench.report.style import colours, columns_for, figure_of, label, new_figure, plot_style
from lensbench.report.view import LAYER_LABEL, View, methods_in, view_of

# In figures of fewer columns than this there is no room for names beside the curves.
_NAMES_BESIDE = 3
# Of the smallest letters, an inch of a panel's share of the width.
_SMALL_LETTERS = 15


def plot_layers(summary: pd.DataFrame, *, ax: Axes | None = None, **choice: Unpack[Choice]) -> Drawing:
    """Draw a metric of every method over layers, and below it each method beside its own baselines.

    Whiskers are the simultaneous 95 % intervals of the summary. Of the baselines the strongest are drawn; those at
    chance are named. The shade in a lower panel shows where the strongest text baseline may lie, by the band of the
    gap: where it is below the curve, the method beats the text. Gap plots have one panel, with points at the layers
    where the gap holds.

    Args:
        summary: of one run.
        ax: where to draw the first panel alone; by default a new figure has all.
        choice: what is shown, and how wide; see `View`.

    Raises:
        UsageError: an unknown metric, or a choice that the summary leaves open.
        LensbenchError: nothing in the summary to draw.
    """
    view = view_of(choice).resolved(summary, "task", "relation", "site")
    chosen = view.chosen(summary)
    methods = methods_in(chosen)
    palette = colours(methods)
    with plot_style():
        if ax is not None:
            figure, top = figure_of(ax), ax
            panels: list[Axes] = []
        else:
            figure, top, panels = _canvas(view, 0 if view.is_gap else len(methods))
        _draw_top(top, chosen, view, methods, own=ax is None)
        for index, (panel, method) in enumerate(zip(panels, methods, strict=False)):
            letters = int(view.inches / columns_for(view.inches) * _SMALL_LETTERS)
            draw_baselines(panel, chosen, method, view.metric, palette[method], letters=letters)
            panel.set_title(label(method), color=palette[method], fontweight="bold", fontsize=8)
            panel.set_xlabel("Layer")
            if index % columns_for(view.inches) == 0:
                panel.set_ylabel("beside its baselines")
            else:
                panel.tick_params(labelleft=False)
    return figure


def _draw_top(axis: Axes, rows: pd.DataFrame, view: View, methods: Sequence[str], *, own: bool) -> None:
    """Draw all methods in one panel, their names at the ends of the curves; in a narrow figure of our own below it."""
    palette = colours(methods)
    draw_methods(axis, rows, view.metric, palette)
    narrow = own and columns_for(view.inches) < _NAMES_BESIDE
    if narrow:
        handles = [axis.plot([], [], color=palette[name], lw=1.8, label=label(name))[0] for name in methods]
        figure_of(axis).legend(handles=handles, loc="outside lower center", ncols=min(len(methods), 3))
    else:
        label_ends(axis, ends(rows, methods, view.metric), palette)
    if view.title and narrow:
        figure_of(axis).suptitle(view.title_of(methods, rows), x=0.01, ha="left", fontsize=9, fontweight="bold")
    elif view.title:
        axis.set_title(view.title_of(methods, rows), fontweight="bold", pad=9)
    axis.set_ylabel(view.y_label, fontsize=6.5 if narrow else None)
    axis.set_xlabel(LAYER_LABEL)
    if view.is_gap:
        axis.text(0.01, 0.99, view.wrapped(GAP_NOTE), transform=axis.transAxes, va="top", fontsize=6.5, color="#555555")


def _canvas(view: View, panels: int) -> tuple[Drawing, Axes, list[Axes]]:
    """A figure with one wide panel and, below, rows of small ones."""
    wide = columns_for(view.inches)
    rows = -(-panels // wide)
    first = min(3.1, 1.4 + 0.25 * view.inches)
    figure = new_figure((view.inches, first + 2.0 * rows))
    grid = figure.add_gridspec(1 + rows, min(max(panels, 1), wide), height_ratios=[first] + [2.0] * rows)
    top = figure.add_subplot(grid[0, :])
    places = [(1 + index // wide, index % wide) for index in range(panels)]
    return figure, top, [figure.add_subplot(grid[place]) for place in places]


FIGURE = Figure(
    title="Accuracy by layer",
    about="The accuracy of each method by layer, beside its baselines.",
    draw=lambda run, **options: plot_layers(run.summary, **options),
    anchor="accuracy",
    label="Accuracy",
    order=10,
)
