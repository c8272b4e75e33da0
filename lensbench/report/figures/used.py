"""What the target says when one direction is put in from another item: does it use what a method reads?"""

from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from lensbench.errors import LensbenchError
from lensbench.report.figure import Choice, Figure
from lensbench.report.frame import frame, name_panel
from lensbench.report.panels import draw_band, fit_layers, of_methods, panel_of_each
from lensbench.report.style import BASELINE_GREYS, CHANCE_COLOUR, colours, label, plot_style
from lensbench.report.view import methods_in, view_of
from lensbench.results.bands import MARGIN
from lensbench.results.used import ALONG, INTERVENTION, MEAN_DIFFERENCE, RANDOM, SHARE
from lensbench.results.verdicts import USED, VERDICTS

_OTHERS = {MEAN_DIFFERENCE: (0, (3.5, 1.5)), RANDOM: (0, (1, 1.5))}
"""The interventions that have nothing to do with the method, and their dashes."""


def plot_used(summary: pd.DataFrame, metrics: pd.DataFrame, **choice: Unpack[Choice]) -> Drawing:
    """Draw each method's effect as a share of that of the whole residual, and its accuracy, a panel a method.

    Args:
        summary: of one run.
        metrics: of the same.
        choice: what is shown, and how wide; see `View`.

    Raises:
        UsageError: a choice that the run leaves open.
        LensbenchError: the baseline `intervention` was not run there, or nowhere was there a ceiling.
    """
    view = view_of(choice).resolved(summary, "task", "relation", "site")
    rows = view.chosen(summary)
    found = metrics[(metrics["baseline"] == INTERVENTION) & (metrics["metric"] == SHARE)]
    for column in ("task", "relation", "site"):
        found = found[found[column] == getattr(view, column)]
    methods = [name for name in methods_in(rows) if (found["inspector"] == name).any()]
    if not methods:
        raise LensbenchError(
            f"nothing to plot: no intervention is shown to move the answer at task {view.task!r}, relation "
            f"{view.relation!r}, site {view.site!r}; it takes a run with --baselines all,{INTERVENTION}, and items at "
            "which the whole residual of another one has an effect"
        )
    with plot_style():
        figure, axes = panel_of_each(view.inches, len(methods))
        palette = colours(methods_in(rows))
        for axis, method in zip(axes, methods, strict=True):
            _draw(axis, rows, found[found["inspector"] == method], method, palette[method])
            room = axis.bbox.width / figure.dpi
            name_panel(axis, label(method), room, fontsize=8, color=palette[method], fontweight="bold")
        drawn = found[["value", "ci_low", "ci_high"]]
        axes[0].set_ylim(min(-0.15, float(drawn.min().min()) - 0.05), max(1.08, float(drawn.max().max()) + 0.05))
        axes[0].set_ylabel("Share of the whole\nresidual's effect")
        note = (
            f"{view.counted(summary)}. Solid: the direction that the method reads along is put in from an item with "
            "another answer; filled where the target uses it. Thin: the method's accuracy. Dashed: the same along the "
            f"mean difference; dotted: along a random direction. Level: {MARGIN:.2f}, below which an effect counts as "
            "none. Layers at which the whole residual is not shown to have an effect are left out."
        )
        frame(figure, title=view.title_of(methods) if view.title else "", note=note)
    return figure


def _draw(axis: Axes, rows: pd.DataFrame, effects: pd.DataFrame, method: str, colour: str) -> None:
    own = rows[rows["inspector"] == method]
    accuracy = of_methods(own, "accuracy_corrected")
    axis.plot(accuracy["layer"].to_numpy(float), accuracy["value"].to_numpy(), color=colour, lw=0.7, alpha=0.7)
    for name, dashes in _OTHERS.items():
        other = effects[effects["rule"] == name].sort_values("layer")
        axis.plot(other["layer"].to_numpy(float), other["value"].to_numpy(), color=BASELINE_GREYS[0], lw=1.1, ls=dashes)
    along = effects[effects["rule"] == ALONG].sort_values("layer")
    layer, value = along["layer"].to_numpy(float), along["value"].to_numpy()
    draw_band(axis, layer, (along["ci_low"].to_numpy(), along["ci_high"].to_numpy()), colour)
    verdict = own[own["question"] == USED].set_index("layer")["verdict"]
    used = [verdict.get(int(one)) == VERDICTS[USED] for one in layer]
    axis.plot(layer, value, color=colour, lw=1.6, zorder=4)
    for holds, face in ((True, colour), (False, "white")):
        at = [place for place, one in enumerate(used) if one is holds]
        axis.plot(layer[at], value[at], lw=0, marker="o", ms=3.4, mec=colour, mfc=face, mew=0.8, zorder=5)
    axis.axhline(0.0, color="black", lw=0.8, zorder=1)
    axis.axhline(MARGIN, color=CHANCE_COLOUR, lw=0.8, ls=":", zorder=1)
    fit_layers(axis, float(accuracy["layer"].max()))


FIGURE = Figure(
    title="Used, or only readable?",
    about="What the target says when the direction that a method reads along is put in from another item.",
    draw=lambda run, **options: plot_used(run.summary, run.metrics, **options),
)
