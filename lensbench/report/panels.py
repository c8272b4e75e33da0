"""What is drawn inside one panel: methods with bands, a method beside its rivals, chance."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensbench.report.style import BASELINE_DASHES, BASELINE_GREYS, CHANCE_COLOUR, label
from lensbench.results.bands import MARGIN
from lensbench.results.verdicts import VERDICTS

SHOWN_BASELINES = 4
FEW_LAYERS = 12
NEAR_CHANCE = 0.06
"""A rival whose mean over layers is not above chance by this much is named in its panel, not drawn."""


GAP_NOTE = (
    "Points: the claim of the question holds. Band: the gap to the strongest baseline. "
    f"Dotted: differences of {MARGIN:.2f} on both sides, within which a baseline does as well."
)


def of_methods(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row a method and layer, with the columns value, low and high; no layer means all layers."""
    own = _levelled(rows[rows["baseline"] == "none"])
    if metric.startswith("gap:"):
        own = own[(own["question"] == metric.removeprefix("gap:")) & own["gap"].notna()]
        names = ("gap", "gap_low", "gap_high")
    else:
        own = own.drop_duplicates(["inspector", "layer"])
        names = (metric, "ci_low", "ci_high")
    result = own.assign(value=own[names[0]], low=own[names[1]], high=own[names[2]])
    return result.sort_values(["inspector", "layer"], kind="stable")


def _levelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Repeat the rows without a layer at each layer of the others."""
    without = rows["layer"].isna()
    if not without.any():
        return rows
    layers = rows.loc[~without, "layer"].drop_duplicates()
    return pd.concat([rows[~without], rows[without].drop(columns="layer").merge(layers, how="cross")])


def draw_methods(axis: Axes, rows: pd.DataFrame, metric: str, palette: dict[str, str], width: float = 1.8) -> None:
    """Draw the curve and band of every method, and chance; on gap plots fill the points where the gap holds."""
    curves = list(of_methods(rows, metric).groupby("inspector", observed=True, sort=True))
    for place, (method, curve) in enumerate(curves):
        layer = curve["layer"].to_numpy(dtype=float)
        colour = palette[str(method)]
        # Few layers are points that were measured, with nothing known between.
        marker = "o" if len(layer) <= FEW_LAYERS and not metric.startswith("gap:") else ""
        axis.plot(layer, curve["value"].to_numpy(), color=colour, lw=width, marker=marker, ms=width * 2, zorder=4)
        if metric != "accuracy":  # the bands of a summary belong to the corrected score
            limits = curve["low"].to_numpy(), curve["high"].to_numpy()
            if len(curves) == 1 or metric.startswith("gap:"):
                draw_band(axis, layer, limits, colour)
            else:  # bands of several methods would drown each other
                beside = 0.14 * (place - (len(curves) - 1) / 2)
                axis.vlines(layer + beside, *limits, color=colour, alpha=0.45, lw=0.6, zorder=2)
        if metric.startswith("gap:"):
            holds = (curve["verdict"] == VERDICTS[metric.removeprefix("gap:")]).to_numpy()
            axis.plot(layer[holds], curve["value"].to_numpy()[holds], "o", color=colour, ms=width * 2, mew=0, zorder=5)
    _finish(axis, rows, metric)


def draw_band(axis: Axes, layer: np.ndarray, limits: tuple[np.ndarray, np.ndarray], colour: str) -> None:
    """Draw a band; of one layer alone an interval, as a band of no width cannot be seen."""
    if len(layer) == 1:
        axis.vlines(layer, *limits, color=colour, alpha=0.5, lw=2.4, zorder=2)
    else:
        axis.fill_between(layer, *limits, color=colour, alpha=0.11, lw=0, zorder=2)


def draw_curve(axis: Axes, layer: np.ndarray, value: np.ndarray, **look: Any) -> None:
    """Draw a rival; at one layer alone as a level line, as a curve of one point cannot be seen."""
    if len(layer) == 1:
        axis.axhline(float(value[0]), **look)
    else:
        axis.plot(layer, value, **look)


def fit_layers(axis: Axes, last: float) -> None:
    """Let an axis go from the embeddings to the last layer that was read, with as many numbers as it has room for."""
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 4, 5, 10]))
    axis.set_xlim(-0.02 * max(last, 1.0), 1.015 * max(last, 1.0))


def _finish(axis: Axes, rows: pd.DataFrame, metric: str) -> None:
    fit_layers(axis, float(rows["layer"].max()))
    if metric.startswith("gap:"):
        axis.margins(y=0.12)
        axis.axhline(0.0, color="black", lw=0.8, zorder=1)
        for side in (-MARGIN, MARGIN):
            axis.axhline(side, color=CHANCE_COLOUR, lw=0.8, ls=":", zorder=1)
        return
    chance = float(rows["chance"].mean())
    axis.axhline(chance, color=CHANCE_COLOUR, lw=0.9, ls=":", zorder=1)
    axis.set_ylim(min(-0.03, chance - 0.16), 1.03)


def ends(rows: pd.DataFrame, methods: Sequence[str], metric: str) -> list[tuple[str, float]]:
    """Return each method with the value at its last layer."""
    own = of_methods(rows, metric)
    last = own.drop_duplicates("inspector", keep="last").set_index("inspector")["value"]
    return [(method, float(last[method])) for method in methods if method in last.index]


def label_ends(axis: Axes, last: list[tuple[str, float]], palette: dict[str, str]) -> None:
    """Write each method's name beside the end of its curve, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    places = spread([value for _, value in last], 0.062 * (high - low), low, high)
    for (method, value), place in zip(last, places, strict=True):
        axis.annotate(
            label(method), (axis.get_xlim()[1], value), xytext=(1.02, (place - low) / (high - low)),
            textcoords="axes fraction", color=palette[method], fontsize=8, fontweight="bold", va="center",
            arrowprops={"arrowstyle": "-", "color": palette[method], "lw": 0.6, "shrinkA": 1, "shrinkB": 1},
            annotation_clip=False,
        )  # fmt: skip


def spread(values: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Move values apart to at least a distance, keeping their order and as near as can be to where they were."""
    order = np.argsort(values, kind="stable")
    places = np.clip(np.asarray(values, dtype=float)[order], low, high)
    for _ in range(100):
        overlap = distance - np.diff(places)
        if not len(overlap) or overlap.max() <= 1e-9:
            break
        push = np.maximum(overlap, 0) / 2
        places[1:] += push
        places[:-1] -= push
        places = places + max(0.0, low - places.min()) - max(0.0, places.max() - high)
    result = np.empty(len(places))
    result[order] = places
    return [float(place) for place in result]


def draw_baselines(axis: Axes, rows: pd.DataFrame, method: str, metric: str, colour: str, *, letters: int = 34) -> None:
    """Draw one method with its strongest rivals as dashed grey curves, and name those that are at chance.

    `letters` is how many of them a line below the panel has room for.
    """
    own = of_methods(rows[rows["inspector"] == method], metric)
    layer, value = own["layer"].to_numpy(dtype=float), own["value"].to_numpy()
    baselines = rows[
        (rows["inspector"] == method) & (rows["baseline"] != "none") & rows["question"].isin(list(VERDICTS))
    ]
    means = baselines.groupby("baseline", observed=True)[metric].mean().sort_values(ascending=False, kind="stable")
    near = means <= float(rows["chance"].mean()) + NEAR_CHANCE
    shown = [str(name) for name in means.index[~near]][:SHOWN_BASELINES]
    for index, name in enumerate(shown):
        curve = baselines[baselines["baseline"] == name].sort_values("layer")
        style = (0, BASELINE_DASHES[index])
        x, y = curve["layer"].to_numpy(dtype=float), curve[metric].to_numpy()
        draw_curve(axis, x, y, color=BASELINE_GREYS[index], lw=1.0, ls=style, label=label(name), zorder=3)
    axis.plot(layer, value, color=colour, lw=1.6, marker="o" if len(layer) == 1 else "", ms=3, zorder=4)
    _draw_gap(axis, rows[rows["inspector"] == method], metric, colour)
    _finish(axis, rows, metric)
    axis.set_ylim(top=1.55)  # room for the legend above the curves
    axis.set_yticks(np.linspace(0.0, 1.0, 5))
    if shown:
        axis.legend(loc="upper left", frameon=False, fontsize=5.5, handlelength=2.6, labelspacing=0.25, borderpad=0.1)
    weaker = [f"{len(means) - len(shown) - int(near.sum())} weaker not drawn"]
    at_chance = ", ".join(label(str(name)) for name in means.index[near])
    parts = weaker * (len(means) > len(shown) + int(near.sum())) + [f"at chance: {at_chance}"] * bool(at_chance)
    _note(axis, [line for part in parts for line in textwrap.wrap(part, letters)])


def _draw_gap(axis: Axes, rows: pd.DataFrame, metric: str, colour: str) -> None:
    """Shade where the strongest baseline may lie: the method's accuracy minus the band of the gap.

    Where the shade lies below the curve the gap holds. It is the gap to text baselines, if the text was asked.
    """
    asked = [question for question in ("beats_text", "uses_activation") if (rows["question"] == question).any()]
    gaps = of_methods(rows, f"gap:{asked[0]}") if asked and metric == "accuracy_corrected" else rows.iloc[:0]
    if len(gaps) > 1:
        layer, value = gaps["layer"].to_numpy(dtype=float), gaps[metric].to_numpy()
        axis.fill_between(
            layer, value - gaps["high"].to_numpy(), value - gaps["low"].to_numpy(), color=colour, alpha=0.13, lw=0,
            zorder=1,
        )  # fmt: skip


def _note(axis: Axes, lines: Sequence[str]) -> None:
    """Write below the panel which rivals are not drawn in it."""
    axis.annotate(
        "\n".join(lines), (0.0, 0.0), xycoords="axes fraction", xytext=(0, -27), textcoords="offset points",
        fontsize=5.5, color="#666666", va="top", annotation_clip=False,
    )  # fmt: skip


def draw_text_baseline(axis: Axes, rows: pd.DataFrame, method: str, metric: str, colour: str) -> None:
    """Draw the strongest text rival of a method, layer by layer, as a thin dashed curve in the method's colour."""
    mine = rows[rows["inspector"] == method]
    baselines = mine[(mine["baseline"] != "none") & (mine["question"] == "beats_text") & mine["layer"].notna()]
    if baselines.empty:
        return
    best = baselines.groupby("layer", observed=True)[metric].max().sort_index()
    layer = best.index.to_numpy(dtype=float)
    draw_curve(axis, layer, best.to_numpy(), color=colour, lw=0.9, ls=(0, (3, 1.5)), alpha=0.8, zorder=3)
