"""Accuracy over layers: every method with its band, and below it each method beside its own baselines."""

from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.report.figure import Choice, Figure
from lensbench.report.frame import frame, name_panel
from lensbench.report.labels import MOST_AT_ENDS, label_ends, label_lines, settle
from lensbench.report.panels import (
    GAP_NOTE,
    LAYER_LABEL,
    SHADE_NOTE,
    Drawn,
    band_note,
    draw_baselines,
    draw_methods,
    ends,
    method_handles,
    not_drawn,
)
from lensbench.report.style import NARROW, colours, columns_for, figure_of, label, new_figure, plot_style
from lensbench.report.view import View, methods_in, view_of

_PANEL_INCHES, _BESIDE_INCHES = 1.55, 1.25
"""The height of a small panel; what numbers at the left and names at the right take of the width."""


def plot_layers(summary: pd.DataFrame, *, ax: Axes | None = None, **choice: Unpack[Choice]) -> Drawing:
    """Draw a metric of every method over layers, and below it each method beside its own baselines.

    Whiskers are the simultaneous 95 % intervals of the summary. Of the baselines the three strongest are drawn, with
    their names; the others are named below. The shade in a lower panel shows where the strongest text baseline may
    lie, by the band of the gap: where it is below the curve, the method beats the text. Gap plots have one panel, with
    points at the layers where the gap holds.

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
    palette = {name: colours(methods)[name] for name in methods}
    last = ends(chosen, methods, view.metric)
    with plot_style():
        if ax is not None:
            _draw_top(ax, chosen, view, palette)
            if view.title:
                title = view.title_of(methods, view.counted(summary))
                name_panel(ax, title, ax.bbox.width / figure_of(ax).dpi, fontsize=7)
            settle(ax)
            label_ends(ax, last, palette)
            return figure_of(ax)
        figure, top, panels = _canvas(view, 0 if view.is_gap else len(methods))
        _draw_top(top, chosen, view, palette)
        drawn = _draw_beside(panels, chosen, view, palette)
        notes = [view.counted(summary) + ".", GAP_NOTE if view.is_gap else band_note(methods), not_drawn(drawn)]
        notes += [SHADE_NOTE] * any(panel.collections for panel in panels)
        named = len(methods) <= MOST_AT_ENDS
        frame(figure, title=view.title_of(methods) if view.title else "", note=" ".join(filter(None, notes)),
              handles=[] if named else method_handles(top, palette))  # fmt: skip
        settle(top)
        label_ends(top, last if named else [], palette, 8.0 if view.inches > NARROW else 7.0)
        settle(top)
        for panel, one in zip(panels, drawn, strict=True):
            label_lines(panel, one.named)
    return figure


def _draw_top(axis: Axes, rows: pd.DataFrame, view: View, palette: dict[str, str]) -> None:
    """Draw all methods in one panel; their names stand at the ends of the curves."""
    draw_methods(axis, rows, view.metric, palette, 1.8 if view.inches > NARROW else 1.3)
    axis.set_ylabel(view.y_label, fontsize=None if view.inches > NARROW else 7)
    axis.set_xlabel(LAYER_LABEL)


def _draw_beside(panels: list[Axes], rows: pd.DataFrame, view: View, palette: dict[str, str]) -> list[Drawn]:
    """Draw each method beside its baselines; panels share the numbers and names of their axes."""
    wide, drawn = columns_for(view.inches), []
    for place, (panel, (method, colour)) in enumerate(zip(panels, palette.items(), strict=False)):
        drawn.append(draw_baselines(panel, rows, method, view.metric, colour))
        room = (view.inches - _BESIDE_INCHES) / wide
        name_panel(panel, label(method), room, color=colour, fontweight="bold", fontsize=8)
        panel.tick_params(labelleft=place % wide == 0, labelbottom=place + wide >= len(panels))
        if place % wide == 0:
            panel.set_ylabel("beside baselines", fontsize=7)
        if place + wide >= len(panels):
            panel.set_xlabel("Layer")
    return drawn


def _canvas(view: View, panels: int) -> tuple[Drawing, Axes, list[Axes]]:
    """A figure with one wide panel and, below, rows of small ones."""
    wide = columns_for(view.inches)
    rows = -(-panels // wide)
    first = min(3.1, 1.4 + 0.25 * view.inches)
    figure = new_figure((view.inches, first + _PANEL_INCHES * rows))
    grid = figure.add_gridspec(1 + rows, min(max(panels, 1), wide), height_ratios=[first] + [_PANEL_INCHES] * rows)
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
