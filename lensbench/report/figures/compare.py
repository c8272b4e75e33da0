"""One run beside another: the same methods before and after something was changed."""

from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from lensbench.errors import LensbenchError, UsageError
from lensbench.report.figure import Choice, Figure, Results
from lensbench.report.frame import frame, name_panel
from lensbench.report.panels import band_note, draw_band, draw_methods, fit_layers, of_methods, panel_of_each
from lensbench.report.style import colours, drawable, figure_of, label, plot_style
from lensbench.report.view import View, methods_in, view_of

_BEFORE = "#4d4d4d"
_DASHES = (0, (3.5, 1.5))


def plot_comparison(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    names: tuple[str, str] = ("before", "after"),
    inspector: str | None = None,
    ax: Axes | None = None,
    **choice: Unpack[Choice],
) -> Drawing:
    """Draw a metric over layers in two runs, a panel a method: before as a dashed grey curve, after in its colour.

    Both have their own simultaneous bands, which are those of single scores: whether a difference holds is a question
    for paired differences (`lensbench compare`), which are narrower.

    Args:
        before: the summary of one run.
        after: the summary of another.
        names: what the two are called.
        inspector: one method alone.
        ax: where to draw one method; by default a new figure has a panel a method.
        choice: what is shown, and how wide; see `View`.

    Raises:
        UsageError: a choice that the runs leave open, or one axes for several methods.
        LensbenchError: the runs have no method in common there.
    """
    view = view_of(choice).resolved(after, "task", "relation", "site")
    tables = (view.resolved(before, "task", "relation", "site").chosen(before), view.chosen(after))
    methods = _methods(tables, view, inspector)
    if ax is not None and len(methods) > 1:
        raise UsageError(f"one axes has room for one method: give inspector, one of {', '.join(methods)}")
    with plot_style():
        if ax is not None:
            figure, axes = figure_of(ax), [ax]
        else:
            figure, axes = panel_of_each(view.inches, len(methods))
        palette = colours(_common(tables))
        for axis, method in zip(axes, methods, strict=True):
            _draw(axis, tables, view, (method, palette[method]))
            room = axis.bbox.width / figure.dpi
            name_panel(axis, label(method), room, fontsize=8, color=palette[method], fontweight="bold")
        axes[0].set_ylabel(view.y_label)
        handles = _handles(axes[0], names, "#111111" if len(methods) > 1 else palette[methods[0]])
        if ax is not None:
            ax.legend(handles=handles, loc="best")
            return figure
        counted = [view.counted(table) for table in (before, after)]
        told = [f"{drawable(name)}: {one}" for name, one in zip(names, counted, strict=True)]
        note = ". ".join([*(told if counted[0] != counted[1] else counted[:1]), band_note(methods[:1])])
        frame(figure, title=view.title_of(methods) if view.title else "", note=note, handles=handles)
    return figure


def _methods(tables: tuple[pd.DataFrame, pd.DataFrame], view: View, inspector: str | None) -> list[str]:
    """The methods that have a panel: those of both runs, or the one that is named."""
    methods = [name for name in _common(tables) if inspector in (None, name)]
    if not methods:
        raise LensbenchError(
            f"nothing to plot: before has {', '.join(methods_in(tables[0]))}, after {', '.join(methods_in(tables[1]))} "
            f"at task {view.task!r}, site {view.site!r}; give two runs with {inspector or 'a method in common'}"
        )
    return methods


def _common(tables: tuple[pd.DataFrame, pd.DataFrame]) -> list[str]:
    before, after = (set(methods_in(table)) for table in tables)
    return sorted(before & after)


def _draw(axis: Axes, tables: tuple[pd.DataFrame, pd.DataFrame], view: View, named: tuple[str, str]) -> None:
    method, colour = named
    earlier, later = (table[table["inspector"] == method] for table in tables)
    curve = of_methods(earlier, view.metric).dropna(subset=["layer"])
    layer, value = curve["layer"].to_numpy(dtype=float), curve["value"].to_numpy()
    # Above the other curve: where the two are the same, both are seen.
    axis.plot(layer, value, color=_BEFORE, lw=1.3, ls=_DASHES, marker="o" if len(layer) == 1 else "", ms=3, zorder=6)
    if view.metric != "accuracy":  # the bands of a summary belong to the corrected score
        draw_band(axis, layer, (curve["low"].to_numpy(dtype=float), curve["high"].to_numpy(dtype=float)), _BEFORE)
    draw_methods(axis, later, view.metric, {method: colour}, width=1.6)
    last = max(float(np.nanmax(table["layer"].to_numpy(dtype=float, na_value=np.nan))) for table in (earlier, later))
    fit_layers(axis, last)


def _handles(axis: Axes, names: tuple[str, str], colour: str) -> list[Line2D]:
    before, after = (drawable(name) for name in names)
    (dashed,) = axis.plot([], [], color=_BEFORE, lw=1.3, ls=_DASHES, label=f"{before} (dashed)")
    (solid,) = axis.plot([], [], color=colour, lw=1.6, label=f"{after} (in colour)")
    return [dashed, solid]


def _draw_runs(run: Results, *, before: Results, **options: Any) -> Drawing:
    return plot_comparison(before.summary, run.summary, **options)


FIGURE = Figure(
    title="Before and after",
    about="Each method in this run and in an earlier one.",
    draw=_draw_runs,
    options=frozenset({"inspector", "before", "names"}),
)
