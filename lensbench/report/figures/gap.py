"""The gaps to the baselines over layers: a panel for each question that was asked."""

from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.report.figure import Choice, Figure
from lensbench.report.frame import frame
from lensbench.report.labels import label_ends, settle
from lensbench.report.panels import GAP_NOTE, LAYER_LABEL, draw_methods, ends, method_handles, of_methods
from lensbench.report.style import NARROW, colours, figure_of, new_figure, plot_style
from lensbench.report.view import View, methods_in, view_of
from lensbench.results.verdicts import USED, VERDICTS

_TITLES = {
    "uses_activation": "Does it use the activation?",
    "beats_text": "Does it beat the text?",
    "target_specific": "Is it target-specific?",
    USED: "Does the target use it?",
}
_PANEL_INCHES = 2.2


def plot_gap(
    summary: pd.DataFrame, *, question: str | None = None, ax: Axes | None = None, **choice: Unpack[Choice]
) -> Drawing:
    """Draw the gap of every method to the strongest baseline over layers, a panel for each question that was asked.

    Points are drawn at the layers where the claim of the question holds.

    Args:
        summary: of one run.
        question: `uses_activation`, `beats_text`, `target_specific` or `used_by_model` alone; by default all that were
            asked.
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
    asked = _asked(rows, question)
    if ax is not None and len(asked) > 1:
        raise UsageError(f"one axes has room for one question: give question, one of {', '.join(asked)}")
    with plot_style():
        if ax is not None:
            figure, axes = figure_of(ax), [ax]
        else:
            figure, axes = _canvas(view, len(asked))
        palette = colours(methods_in(rows))
        for axis, name in zip(axes, asked, strict=True):
            draw_methods(axis, rows, f"gap:{name}", palette, width=1.5 if view.inches > NARROW else 1.2)
            axis.set_title(_TITLES[name], fontsize=8)
        # Panels under one another share the last one's label, those beside each other the first one's.
        axes[0].set_ylabel("Gap to the strongest baseline" + ("\nrelation mean / (1 - chance)" if view.total else ""))
        for axis in axes if len({one.get_position().y0 for one in axes}) == 1 else axes[-1:]:
            axis.set_xlabel(LAYER_LABEL)
        if ax is None:
            title = view.title_of(list(palette)) if view.title else ""
            handles = method_handles(axes[0], palette) if len(asked) > 1 else ()
            frame(figure, title=title, note=f"{view.counted(summary)}. {GAP_NOTE}", handles=handles)
        if len(asked) == 1:
            settle(axes[0])
            label_ends(axes[0], ends(rows, list(palette), f"gap:{asked[0]}"), palette)
    return figure


def _asked(rows: pd.DataFrame, question: str | None) -> list[str]:
    """The questions that have a panel."""
    asked = [name for name in VERDICTS if not of_methods(rows, f"gap:{name}").empty and question in (None, name)]
    if not asked:
        raise LensbenchError(f"nothing to plot: no baseline of {question or 'any question'} was run at this place")
    return asked


def _canvas(view: View, panels: int) -> tuple[Drawing, list[Axes]]:
    """Panels side by side where they fit, else under one another."""
    if view.inches >= _PANEL_INCHES * panels:
        figure = new_figure((view.inches, 3.0))
        return figure, list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])
    figure = new_figure((view.inches, 0.4 + 1.7 * panels))
    return figure, list(figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0])


FIGURE = Figure(
    title="The gaps by layer",
    about="What is left of each method's accuracy after its baselines.",
    draw=lambda run, **options: plot_gap(run.summary, **options),
    anchor="gaps",
    label="Gaps",
    order=20,
)
