"""Per-layer curves of a summary, with bands, rivals and chance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lensbench.errors import LensbenchError, unknown_name
from lensbench.frames import ALL
from lensbench.report.panels import draw_methods, draw_rivals, draw_text_rival, ends, label_ends, of_methods
from lensbench.report.style import colours, plot_style, readable
from lensbench.statistics import MARGIN, VERDICTS

METRICS = ("accuracy_corrected", "accuracy", *(f"gap:{question}" for question in VERDICTS))
# As they stand in a text; the report knows no tasks.
ORDER_OF_SITES = ("subject", "t1", "t2", "answer")
FORMATS = (".png", ".svg", ".pdf")
LAYER_LABEL = "Layer (0 = embeddings)"
_COLUMNS = 4
_Y_LABELS = {
    "accuracy_corrected": "Accuracy (prior-corrected)",
    "accuracy": "Accuracy (raw)",
    "gap:uses_activation": "Gap: uses the activation",
    "gap:beats_text": "Gap: beats the text",
    "gap:target_specific": "Gap: target-specific",
}
_SCALES = {
    (False, False): "\ndotted: chance",
    (False, True): "\nrelation mean, chance = 0",
    (True, False): "",
    (True, True): "\nrelation mean of gap / (1 - chance)",
}
"""(gap, total) -> the second line of the y label."""
_GAP_NOTE = (
    "Points: the gap holds against every rival, raw and corrected. Band: to the strongest. "
    f"Dotted: margin {MARGIN:.2f}."
)


def plot_layers(
    summary: pd.DataFrame,
    *,
    task: str,
    relation: str,
    site: str,
    metric: str = "accuracy_corrected",
    rule: str = "fixed",
) -> Figure:
    """Draw a metric of every method over layers, and below it each method beside its own rivals.

    Bands are the simultaneous 95 % intervals of the summary. Of the rivals the strongest are drawn; those at chance are
    named. Gap plots have one panel: points are filled at the layers where the gap holds.

    Raises:
        LensbenchError: an unknown metric, or nothing in the summary to draw.
    """
    chosen = _chosen(summary, task, relation, site, rule, metric)
    methods = sorted(chosen.loc[chosen["baseline"] == "none", "inspector"].unique())
    palette = colours(methods)
    with plot_style():
        figure, top, panels = _canvas(0 if metric.startswith("gap:") else len(methods))
        draw_methods(top, chosen, metric, palette)
        label_ends(top, ends(chosen, methods, metric), palette)
        top.set_title(_title(task, relation, site, methods), fontweight="bold", pad=9)
        top.set_ylabel(_y_label(metric, relation))
        top.set_xlabel(LAYER_LABEL)
        if not panels:
            top.text(0.01, 0.99, _GAP_NOTE, transform=top.transAxes, va="top", fontsize=6.5, color="#555555")
        for index, (panel, method) in enumerate(zip(panels, methods, strict=False)):
            draw_rivals(panel, chosen, method, metric, palette[method])
            panel.set_title(readable(method), color=palette[method], fontweight="bold", fontsize=8)
            panel.set_xlabel("Layer")
            if index % _COLUMNS == 0:
                panel.set_ylabel("beside its rivals")
            else:
                panel.tick_params(labelleft=False)
    return figure


def plot_relations(
    summary: pd.DataFrame, *, task: str, metric: str = "accuracy_corrected", rule: str = "fixed"
) -> Figure:
    """Draw small multiples of one task: a row a relation (the total first), a column a site."""
    _check_metric(metric)
    here = summary[(summary["task"] == task) & (summary["rule"] == rule)]
    if here.empty:
        raise LensbenchError(f"nothing to plot: the summary has no rows of task {task!r} with rule {rule!r}")
    names = sorted(set(here["relation"]) - {ALL})
    relations = [ALL, *names] if ALL in set(here["relation"]) and len(names) != 1 else names
    sites = sorted(here["site"].unique(), key=ORDER_OF_SITES.index)
    methods = sorted(here.loc[here["baseline"] == "none", "inspector"].unique())
    palette = colours(methods)
    with plot_style():
        figure = Figure(figsize=(0.9 + 3.1 * len(sites), 0.8 + 1.75 * len(relations)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(relations), len(sites), squeeze=False, sharex=True, sharey=metric.startswith("gap:"))
        for row, relation in enumerate(relations):
            for column, site in enumerate(sites):
                _small(axes[row][column], here, (relation, site), metric, palette)
            axes[row][0].set_ylabel("all relations\n(chance = 0)" if relation == ALL else readable(relation))
        for axis, site in zip(axes[0], sites, strict=True):
            axis.set_title(f"read at {site}" + (": what readers can recover" if site == "subject" else ""))
        for axis in axes[-1]:
            axis.set_xlabel(LAYER_LABEL)
        handles = [axes[0][0].plot([], [], color=palette[name], lw=1.8, label=readable(name))[0] for name in methods]
        if not metric.startswith("gap:"):
            handles += axes[0][0].plot([], [], color="#555555", lw=0.9, ls="--", label="its strongest text rival")
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=7.5)
        title = f"{readable(task)}, {_Y_LABELS[metric][0].lower()}{_Y_LABELS[metric][1:]}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return figure


def plot_run(summary: pd.DataFrame, out: Path, metric: str = "accuracy_corrected") -> list[Path]:
    """Write the plots of a summary and return their paths.

    Args:
        summary: of one run.
        out: a folder, for PNG and SVG of each task: the totals at each site and the relations as small multiples; or a
            file .png, .svg or .pdf, for the small multiples alone (with several tasks or models their names are added).
        metric: one of METRICS.
    """
    _check_metric(metric)
    if out.suffix and out.suffix.lower() not in FORMATS:
        raise LensbenchError(f"cannot plot to {out}: the suffix must be one of {', '.join(FORMATS)}, or give a folder")
    groups = summary.groupby(["model", "task"], observed=True, sort=True)
    whole = [(str(rows["model"].iloc[0]), str(rows["task"].iloc[0]), rows) for _, rows in groups]
    written: list[Path] = []
    for model, task, rows in whole:
        prefix = task if summary["model"].nunique() == 1 else f"{model}-{task}".replace("/", "_")
        if not _has_values(rows, metric):
            continue
        figure = plot_relations(rows, task=task, metric=metric)
        if out.suffix:
            path = out if len(whole) == 1 else out.with_name(f"{out.stem}-{prefix}{out.suffix}")
            written += save_figure(figure, [path])
            continue
        kind = metric.replace(":", "-")
        written += save_figure(figure, [out / f"{prefix}-relations-{kind}{suffix}" for suffix in (".png", ".svg")])
        for site in sorted(rows["site"].unique()):
            if _has_values(rows[(rows["relation"] == ALL) & (rows["site"] == site)], metric):
                figure = plot_layers(rows, task=task, relation=ALL, site=site, metric=metric)
                written += save_figure(figure, [out / f"{prefix}-{site}-{kind}{suffix}" for suffix in (".png", ".svg")])
    if not written:
        raise LensbenchError(f"nothing to plot: the summary has no values of {metric}; was a rival of it run?")
    return written


def save_figure(figure: Figure, paths: Sequence[Path]) -> list[Path]:
    """Write a figure to files, each in the format of its suffix, and return their paths."""
    # Dates and versions would make two runs on the same records differ.
    metadata: dict[str, dict[str, str | None]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    with plot_style():
        for index, path in enumerate(paths):
            if index:
                figure.set_layout_engine("none")  # the layout is found already, and finding it takes most of the time
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format=path.suffix[1:].lower(), metadata=metadata[path.suffix.lower()])
    return list(paths)


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)


def _has_values(rows: pd.DataFrame, metric: str) -> bool:
    return bool(len(rows)) and not of_methods(rows[rows["rule"] == "fixed"], metric).empty


def _chosen(summary: pd.DataFrame, task: str, relation: str, site: str, rule: str, metric: str) -> pd.DataFrame:
    _check_metric(metric)
    keep = np.ones(len(summary), dtype=bool)
    for column, value in (("task", task), ("relation", relation), ("site", site), ("rule", rule)):
        keep &= (summary[column] == value).to_numpy()
    rows = summary[keep]
    where = f"task {task!r}, relation {relation!r}, site {site!r}, rule {rule!r}"
    if rows["model"].nunique() > 1:
        raise LensbenchError(f"the summary has several models at {where}: plot one at a time")
    if of_methods(rows, metric).empty:
        raise LensbenchError(f"nothing to plot: the summary has no {metric} of a method at {where}")
    return rows


def _canvas(panels: int) -> tuple[Figure, Axes, list[Axes]]:
    """A figure with one wide panel and, below, rows of small ones."""
    rows = -(-panels // _COLUMNS)
    figure = Figure(figsize=(7.2, 3.1 + 2.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    columns = min(max(panels, 1), _COLUMNS)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[3.1] + [2.0] * rows)
    top = figure.add_subplot(grid[0, :])
    places = [(1 + index // _COLUMNS, index % _COLUMNS) for index in range(panels)]
    return figure, top, [figure.add_subplot(grid[place]) for place in places]


def _small(axis: Axes, rows: pd.DataFrame, place: tuple[str, str], metric: str, palette: dict[str, str]) -> None:
    relation, site = place
    chosen = rows[(rows["relation"] == relation) & (rows["site"] == site)]
    if of_methods(chosen, metric).empty:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "not applicable", transform=axis.transAxes, ha="center", va="center", color="#777777")
        return
    draw_methods(axis, chosen, metric, palette, width=1.3)
    if not metric.startswith("gap:"):
        for method, colour in palette.items():
            draw_text_rival(axis, chosen, method, metric, colour)


def _title(task: str, relation: str, site: str, methods: Sequence[str]) -> str:
    what = readable(task) if relation == ALL else f"{readable(task)} \N{RIGHTWARDS ARROW} {readable(relation)}"
    if site != "subject":
        return f"{what}, read at {site}"
    # Nobody has asked the model at the subject: a score there is the reader's, not the place where a fact is kept.
    reader = "this reader" if len(methods) == 1 else "each reader"
    return f"{what}, read at subject: what {reader} can recover from layer l"


def _y_label(metric: str, relation: str) -> str:
    return _Y_LABELS[metric] + _SCALES[metric.startswith("gap:"), relation == ALL]
