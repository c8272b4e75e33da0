"""What is drawn inside one panel: methods with bands, a method beside its rivals, chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lensbench.report.labels import Named
from lensbench.report.style import (
    BASELINE_DASHES,
    BASELINE_GREYS,
    CHANCE_COLOUR,
    columns_for,
    label,
    markers,
    new_figure,
)
from lensbench.results.bands import MARGIN
from lensbench.results.verdicts import VERDICTS

LAYER_LABEL = "Layer (0 = embeddings)"
SHOWN_BASELINES = 3
FEW_LAYERS = 12
NEAR_CHANCE = 0.06
"""A baseline whose mean over layers is not above chance by this much is named below the panels, not drawn."""
_WHISKERS_APART = 4
_SMALL = 6.0

GAP_NOTE = (
    "Filled points: the claim of the question holds. Shade or whiskers: the interval of the gap to the strongest "
    f"baseline, at all layers at once. Dotted: {MARGIN:.2f} on both sides, within which a baseline does as well."
)
SHADE_NOTE = "Shade beside baselines: where the strongest text baseline may lie."
_BAND_NOTE = "95 % intervals that hold at all layers at once."


def band_note(methods: Sequence[str]) -> str:
    """Return what the intervals are that `draw_methods` draws of so many methods."""
    return f"{'Shade' if len(methods) == 1 else 'Whiskers'}: {_BAND_NOTE}"


def panel_of_each(inches: float, panels: int) -> tuple[Figure, list[Axes]]:
    """Return a new figure with a panel for each of several methods, side by side as far as they fit.

    Args:
        inches: its width.
        panels: how many.
    """
    wide = min(panels, columns_for(inches))
    deep = -(-panels // wide)
    figure = new_figure((inches, 0.4 + 1.9 * deep))
    every = list(figure.subplots(deep, wide, squeeze=False, sharex=True, sharey=True).flat)
    for axis in every[panels:]:
        axis.set_axis_off()
    for place, axis in enumerate(every[:panels]):
        if place + wide >= panels:
            axis.set_xlabel("Layer" if wide > 1 else LAYER_LABEL)
            axis.tick_params(labelbottom=True)
    return figure, every[:panels]


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
    """Draw the curve and interval of every method, and chance; on gap plots fill the points where the gap holds.

    The band of a single method is shaded. Of several, shades would drown each other: each has whiskers at layers of
    its own, with a marker of its own, which tells them apart in grey.
    """
    curves = list(of_methods(rows, metric).groupby("inspector", observed=True, sort=True))
    shapes = markers(palette)
    for place, (method, curve) in enumerate(curves):
        look = {"color": palette[str(method)], "lw": width, "marker": shapes[str(method)]}
        _draw_method(axis, curve, metric, look, (place, len(curves)))
    _finish(axis, rows, metric)


def _draw_method(axis: Axes, curve: pd.DataFrame, metric: str, look: dict[str, Any], place: tuple[int, int]) -> None:
    """Draw one of several methods: its curve, the points that are marked, its band or whiskers."""
    layer, value = curve["layer"].to_numpy(dtype=float), curve["value"].to_numpy()
    limits, gap = (curve["low"].to_numpy(), curve["high"].to_numpy()), metric.startswith("gap:")
    few, (number, of) = len(layer) <= FEW_LAYERS, place
    step = 1 if few else max(of, _WHISKERS_APART)
    at = np.arange(len(layer)) % step == number % step
    holds = (curve["verdict"] == VERDICTS[metric.removeprefix("gap:")]).to_numpy() if gap else at
    axis.plot(layer, value, zorder=4, **{**look, "marker": ""})
    points = {**look, "lw": 0, "ms": look["lw"] * 2.1, "zorder": 5}
    if gap:
        axis.plot(layer[at & ~holds], value[at & ~holds], mfc="white", mew=0.7, **points)
    if gap or few or of > 1:
        axis.plot(layer[holds], value[holds], mec="white", mew=0.0 if gap else 0.4, **points)
    if metric == "accuracy":  # the bands of a summary belong to the corrected score
        return
    if of == 1:
        draw_band(axis, layer, limits, look["color"])
    else:
        # Few layers have whiskers of all methods, side by side.
        beside = 0.14 * (number - (of - 1) / 2) if few else 0.0
        low, high = (side[at] for side in limits)
        axis.vlines(layer[at] + beside, low, high, color=look["color"], alpha=0.6, lw=0.45 * look["lw"], zorder=2)


def method_handles(axis: Axes, palette: Mapping[str, str]) -> list[Artist]:
    """Return what a legend shows of methods: their colours and markers."""
    shapes = markers(palette)
    return [
        axis.plot([], [], color=colour, lw=1.6, marker=shapes[name], ms=4, mec="white", mew=0.4, label=label(name))[0]
        for name, colour in palette.items()
    ]


def draw_band(axis: Axes, layer: np.ndarray, limits: tuple[np.ndarray, np.ndarray], colour: str) -> None:
    """Draw a band; of one layer alone an interval, as a band of no width cannot be seen."""
    if len(layer) == 1:
        axis.vlines(layer, *limits, color=colour, alpha=0.5, lw=2.4, zorder=2)
    else:
        axis.fill_between(layer, *limits, color=colour, alpha=0.11, lw=0, zorder=2)


def draw_curve(axis: Axes, layer: np.ndarray, value: np.ndarray, **look: Any) -> Line2D:
    """Draw a baseline; at one layer alone as a level line, as a curve of one point cannot be seen."""
    return axis.axhline(float(value[0]), **look) if len(layer) == 1 else axis.plot(layer, value, **look)[0]


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


@dataclass(frozen=True)
class Drawn:
    """What became of the baselines of a method in its panel.

    Attributes:
        named: those that were drawn, with their names; see `label_lines`.
        at_chance: the names of those that are not drawn, as they are at chance.
        weaker: the names of those that are not drawn, as others are stronger.
    """

    named: list[Named]
    at_chance: list[str]
    weaker: list[str]


def draw_baselines(axis: Axes, rows: pd.DataFrame, method: str, metric: str, colour: str) -> Drawn:
    """Draw one method with its strongest baselines as dashed grey curves; their names come when the layout is known."""
    own = of_methods(rows[rows["inspector"] == method], metric)
    layer, value = own["layer"].to_numpy(dtype=float), own["value"].to_numpy()
    baselines = rows[
        (rows["inspector"] == method) & (rows["baseline"] != "none") & rows["question"].isin(list(VERDICTS))
    ]
    means = baselines.groupby("baseline", observed=True)[metric].mean().sort_values(ascending=False, kind="stable")
    near = means <= float(rows["chance"].mean()) + NEAR_CHANCE
    above = [str(name) for name in means.index[~near]]
    named = []
    for index, name in enumerate(above[:SHOWN_BASELINES]):
        curve = baselines[baselines["baseline"] == name].sort_values("layer")
        x, y = curve["layer"].to_numpy(dtype=float), curve[metric].to_numpy()
        look = {"color": BASELINE_GREYS[index], "lw": 1.0, "ls": (0, BASELINE_DASHES[index]), "zorder": 3}
        font = {"fontsize": _SMALL, "color": BASELINE_GREYS[0]}
        named.append(Named(draw_curve(axis, x, y, **look), label(name), font))
    axis.plot(layer, value, color=colour, lw=1.6, marker="o" if len(layer) == 1 else "", ms=3, zorder=4)
    _draw_gap(axis, rows[rows["inspector"] == method], metric, colour)
    _finish(axis, rows, metric)
    return Drawn(named, [str(name) for name in means.index[near]], above[SHOWN_BASELINES:])


def not_drawn(panels: Sequence[Drawn]) -> str:
    """Return a note on the baselines that panels show and do not show, and on the shade in them."""
    said = [f"Dashed: the strongest baselines, at most {SHOWN_BASELINES}." if any(one.named for one in panels) else ""]
    for words, part in (("weaker", "weaker"), ("at chance", "at_chance")):
        names = sorted({name for one in panels for name in getattr(one, part)})
        said.append(f"Not drawn where {words}: {', '.join(map(label, names))}." if names else "")
    return " ".join(filter(None, said))


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


def draw_text_baseline(axis: Axes, rows: pd.DataFrame, method: str, metric: str, colour: str) -> None:
    """Draw the strongest text rival of a method, layer by layer, as a thin dashed curve in the method's colour."""
    mine = rows[rows["inspector"] == method]
    baselines = mine[(mine["baseline"] != "none") & (mine["question"] == "beats_text") & mine["layer"].notna()]
    if baselines.empty:
        return
    best = baselines.groupby("layer", observed=True)[metric].max().sort_index()
    layer = best.index.to_numpy(dtype=float)
    draw_curve(axis, layer, best.to_numpy(), color=colour, lw=0.9, ls=(0, (3, 1.5)), alpha=0.8, zorder=3)
