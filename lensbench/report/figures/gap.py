"""The gaps to the baselines over layers: a panel for each question that was asked."""

import textwrap
from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.report.figure import Choice, Figure
from lensbench.report.panels import GAP_NOTE, draw_methods, ends, label_ends, of_methods
from lensbench.report.style import colours, figure_of, label, new_figure, plot_style
from lensbench.report.view import LAYER_LABEL, View, methods_in, view_of
from lensbench.results.verdicts import VERDICTS

_ASKED = {
    "uses_activation": "Does it use the activation?",
    "beats_text": "Does it beat the text?",
    "target_specific": "Is it target-specific?",
}
_PANEL_INCHES = 2.2


def plot_gap(
    summary: pd.DataFrame, *, question: str | None = None, ax: Axes | None = None, **choice: Unpack[Choice]
) -> Drawing:
    """Draw the gap of every method to the strongest baseline over layers, a panel for each question that was asked.

    Points are drawn at the layers where the claim of the question holds.

    Args:
        summary: of one run.
        question: `uses_activation`, `beats_text` or `target_specific` alone; by default all that were asked.
        ax: where to draw one question; by default a new figure has a panel a question.
        choice: what is shown, and how wide; see `View`. A metric `gap:QUESTION` names the question, too.

    Raises:
        UsageError: an unknown question, or one axes for several.
        LensbenchError: no baseline of the question was run.
    """
    view = view_of(choice)
    if question is None and view.is_gap:
        question = view.metric.removeprefix("gap:")
    if question is not None and question not in VERDICTS:
        raise unknown_name("question", question, VERDICTS)
    view = view.resolved(summary, "task", "relation", "site")
    rows = view.chosen(summary)
    asked = [name for name in VERDICTS if not of_methods(rows, f"gap:{name}").empty and question in (None, name)]
    if not asked:
        raise LensbenchError(f"nothing to plot: no baseline of {question or 'any question'} was run at this place")
    if ax is not None and len(asked) > 1:
        raise UsageError(f"one axes has room for one question: give question, one of {', '.join(asked)}")
    with plot_style():
        if ax is not None:
            figure, axes = figure_of(ax), [ax]
        else:
            figure, axes = _canvas(view, len(asked))
        for axis, name in zip(axes, asked, strict=True):
            draw_methods(axis, rows, f"gap:{name}", colours(methods_in(rows)), width=1.5)
            axis.set_title(_ASKED[name], fontsize=8)
        # Panels under one another share the last one's label, those beside each other the first one's.
        axes[0].set_ylabel("Gap to the strongest baseline" + ("\nrelation mean / (1 - chance)" if view.total else ""))
        for axis in axes if len({one.get_position().y0 for one in axes}) == 1 else axes[-1:]:
            axis.set_xlabel(LAYER_LABEL)
        if len(asked) == 1:
            palette = colours(methods_in(rows))
            label_ends(axes[0], ends(rows, methods_in(rows), f"gap:{asked[0]}"), palette)
        if ax is None:
            _explain(figure, rows, view)
    return figure


def _canvas(view: View, panels: int) -> tuple[Drawing, list[Axes]]:
    """Panels side by side where they fit, else under one another."""
    if view.inches >= _PANEL_INCHES * panels:
        figure = new_figure((view.inches, 3.0))
        return figure, list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])
    figure = new_figure((view.inches, 0.8 + 1.8 * panels))
    return figure, list(figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0])


def _explain(figure: Drawing, rows: pd.DataFrame, view: View) -> None:
    """Add the title, the legend, and what points and bands are."""
    methods = methods_in(rows)
    note = textwrap.fill(GAP_NOTE, int(view.inches * 17))
    if len(figure.axes) > 1:
        palette = colours(methods)
        handles = [figure.axes[0].plot([], [], color=palette[name], lw=1.6, label=label(name))[0] for name in methods]
        wide = max(1, min(len(handles), int(view.inches / 1.2)))
        figure.legend(handles=handles, loc="outside lower left", ncols=wide, title=note, alignment="left",
                      title_fontproperties={"size": 6.5})  # fmt: skip
    else:
        figure.supxlabel(note, fontsize=6.5, color="#555555", x=0.01, ha="left")
    if view.title:
        figure.suptitle(view.title_of(methods, rows), x=0.01, ha="left", fontsize=9, fontweight="bold")


FIGURE = Figure(
    title="The three gaps by layer",
    about="What is left of each method's accuracy after its baselines.",
    draw=lambda run, **options: plot_gap(run.summary, **options),
    anchor="gaps",
    label="Gaps",
    order=20,
)
