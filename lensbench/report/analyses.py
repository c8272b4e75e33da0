"""Figures of `lensbench analyze`: drift, stimulus-response alignment, updates beside the gradient."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lensbench.report.frame import frame
from lensbench.report.labels import label_ends, settle
from lensbench.report.panels import LAYER_LABEL
from lensbench.report.style import CHANCE_COLOUR, MAP, OKABE_ITO, SOFT, colours, drawable, new_figure, plot_style

_VARIANTS = {"all": (OKABE_ITO[0], "-"), "without outliers": (OKABE_ITO[1], (0, (4.0, 1.6)))}
_CURVES = {
    "norm": "Mean norm of h",
    "participation_ratio": "Dimensions used\n(participation ratio)",
    "top1": "Share of variance along\nthe first component",
    "distance": "Distance of the covariance\nto that of the last layer (traces = 1)",
}
_LABELS = {"all": "all coordinates"}
_PAIRS = {
    "cosine": "cosine",
    "cosine_centred": "cosine, centred",
    "cka": "linear CKA",
    "covariance": "covariance",
}


def plot_drift_layers(table: pd.DataFrame, model: str) -> Figure:
    """Draw norm, dimension and distance of the residual stream over layers, with and without outlier coordinates."""
    with plot_style():
        figure = new_figure((7.2, 4.3))
        axes = figure.subplots(2, 2, sharex=True)
        for axis, (column, label) in zip(axes.flat, _CURVES.items(), strict=True):
            for name, rows in table.groupby("coordinates", sort=False):
                colour, dashes = _VARIANTS[str(name)]
                axis.plot(rows["layer"], rows[column], color=colour, ls=dashes, lw=1.6, label=str(name))
            _layers(axis, table)
            axis.set_title(label, fontsize=8)
            if column in ("norm", "participation_ratio"):
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0.0)
        for axis in axes[1]:
            axis.set_xlabel(LAYER_LABEL)
        if table["coordinates"].nunique() > 1:
            axes[0][1].legend(frameon=False, fontsize=7, title="coordinates", title_fontsize=7, alignment="left")
        _title(figure, "Drift of the residual stream, layer by layer", model)
    return figure


def plot_drift_pairs(table: pd.DataFrame, model: str) -> Figure:
    """Draw a heat map for each measure of similarity between layers; a row with, a row without outlier coordinates."""
    variants = list(dict.fromkeys(table["coordinates"]))
    with plot_style():
        figure = new_figure((7.2, 0.55 + 1.65 * len(variants)), "compressed")
        axes = figure.subplots(len(variants), len(_PAIRS), squeeze=False, sharex=True, sharey=True)
        lowest = min(0.0, float(table[list(_PAIRS)].min().min()))
        for row, variant in zip(axes, variants, strict=True):
            rows = table[table["coordinates"] == variant]
            for axis, (column, label) in zip(row, _PAIRS.items(), strict=True):
                grid = rows.pivot_table(index="layer", columns="other", values=column)
                edges = _edges(grid.columns.to_numpy(dtype=float))
                image = axis.pcolormesh(edges, edges, grid.to_numpy(), cmap=MAP, vmin=lowest, vmax=1.0, rasterized=True)
                axis.set_aspect("equal")
                axis.grid(visible=False)
                for direction in (axis.xaxis, axis.yaxis):
                    direction.set_major_locator(MaxNLocator(integer=True, nbins=5))
                if variant == variants[0]:
                    axis.set_title(label, fontsize=8)
            row[0].set_ylabel("Layer" if len(variants) == 1 else f"{_LABELS.get(variant, variant)}\nLayer")
        for axis in axes[-1]:
            axis.set_xlabel("Layer")
        figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, label="similarity", fraction=0.03)
        _title(figure, "Similarity of the residual stream between layers", model)
    return figure


def plot_alignment(table: pd.DataFrame, model: str) -> Figure:
    """Draw stimulus-response alignment over layers, a panel a kind of direction, a curve with its band a lens."""
    lenses = list(dict.fromkeys(table["lens"]))
    kinds = list(dict.fromkeys(table["directions"]))
    titles = {"principal": "along principal components", "random": "along random directions"}
    with plot_style():
        figure = new_figure((7.2, 2.9))
        axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        for axis, kind in zip(axes, kinds, strict=True):
            last = list(_bands(axis, table[table["directions"] == kind], "lens", "alignment", colours(lenses)))
            _layers(axis, table)
            axis.axhline(0.0, color=CHANCE_COLOUR, lw=0.8, ls=":", zorder=1)
            axis.set_title(titles.get(kind, kind), fontsize=8)
            axis.set_xlabel(LAYER_LABEL)
        low = min(-0.05, float(table["low"].min()) - 0.02)
        axes[0].set_ylim(low, 1.03)
        axes[0].set_ylabel("Aitchison similarity of the lens's\nand the model's response")
        _title(figure, "Does a lens respond as the model does?", model)
        settle(axes[-1])
        label_ends(axes[-1], last, colours(lenses))
    return figure


def plot_updates(table: pd.DataFrame, model: str) -> Figure:
    """Draw the cosine of updates and descents over layers, a curve a loss, its control dotted."""
    losses = list(dict.fromkeys(table["loss"]))
    palette = dict(zip(losses, OKABE_ITO, strict=False))
    with plot_style():
        figure = new_figure((7.2, 3.1))
        axis = figure.subplots()
        last = list(_bands(axis, table, "loss", "cosine", palette))
        for loss in losses:
            rows = table[table["loss"] == loss]
            axis.plot(rows["layer"], rows["control"], color=palette[loss], lw=1.0, ls=(0, (1.4, 1.4)), zorder=3)
        dotted = "the same updates, gradients of other texts"
        axis.plot([], [], color=SOFT, lw=1.0, ls=(0, (1.4, 1.4)), label=dotted)
        _layers(axis, table)
        axis.axhline(0.0, color=CHANCE_COLOUR, lw=0.8, ls="-", zorder=1)
        axis.legend(loc="upper left", frameon=False, fontsize=7)
        axis.margins(y=0.18)
        axis.set_xlabel("Layer l before the block (0 = embeddings)")
        axis.set_ylabel("cos(update, $-$gradient)")
        _title(figure, "Do the blocks descend the loss?", model)
        settle(axis)
        label_ends(axis, last, palette)
    return figure


FIGURES: Mapping[str, Callable[[pd.DataFrame, str], Figure]] = {
    "drift-layers": plot_drift_layers,
    "drift-pairs": plot_drift_pairs,
    "alignment": plot_alignment,
    "updates": plot_updates,
}
"""By the name of the table that is drawn."""


def _title(figure: Figure, text: str, model: str) -> None:
    frame(figure, title=f"{text} ({drawable(model)})")


def _layers(axis: Axes, table: pd.DataFrame) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    first, last = float(table["layer"].min()), float(table["layer"].max())
    axis.set_xlim(first - 0.02 * (last - first), max(last, first + 1.0))


def _bands(
    axis: Axes, table: pd.DataFrame, key: str, column: str, palette: Mapping[str, str]
) -> Iterator[tuple[str, float]]:
    """Draw a curve with its band for each group, and yield its name and its last value."""
    for name, rows in table.groupby(key, sort=False):
        colour = palette[str(name)]
        layer = rows["layer"].to_numpy(dtype=float)
        axis.plot(layer, rows[column], color=colour, lw=1.7, zorder=4)
        axis.fill_between(layer, rows["low"], rows["high"], color=colour, alpha=0.16, lw=0, zorder=2)
        yield str(name), float(rows[column].iloc[-1])


def _edges(inner: np.ndarray) -> np.ndarray:
    """Return cell borders half way between layers, which need not be evenly apart."""
    if len(inner) == 1:
        return np.array([inner[0] - 0.5, inner[0] + 0.5])
    middle = (inner[1:] + inner[:-1]) / 2
    return np.concatenate([[2 * inner[0] - middle[0]], middle, [2 * inner[-1] - middle[-1]]])
