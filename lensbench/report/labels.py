"""Names written at curves, so that no legend is needed: beside their ends, or along them where there is room."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lensbench.report.style import figure_of, label

MOST_AT_ENDS = 8
"""With more names a legend is easier to read."""
_LINE = 1.25
"""The height of a line of text, in font sizes."""
_LETTERS = 16
_SMALLEST = 4.0
_PLACES = 25
_PIXELS = 4.0
_BELOW = 0.5
"""What a place below a line costs: above is where readers look first."""
_ASIDE = 1e-3
"""What a pixel from the middle costs: it decides between places that are alike."""
_FAR = 1.6
"""Font sizes: a curve that is nearer than this to a name could be taken for the one that is named."""


def label_ends(axis: Axes, last: Sequence[tuple[str, float]], palette: Mapping[str, str], size: float = 8.0) -> None:
    """Write each method's name beside the end of its curve, moved apart where they would overlap.

    Args:
        axis: at its final height; see `settle`.
        last: each method with its last value.
        palette: the colour of each.
        size: of the letters, in points; smaller where there are too many names.
    """
    if not last:
        return
    low, high = axis.get_ylim()
    names = [textwrap.fill(label(name), _LETTERS) for name, _ in last]
    tall = axis.get_window_extent().height / figure_of(axis).dpi * 72 / max(name.count("\n") + 1 for name in names)
    size = max(_SMALLEST, min(size, tall / (_LINE * len(last))))
    places = spread([value for _, value in last], _LINE * size / tall * (high - low), low, high)
    for (method, value), name, place in zip(last, names, places, strict=True):
        axis.annotate(
            name, (axis.get_xlim()[1], value), xytext=(1.02, (place - low) / (high - low)),
            textcoords="axes fraction", color=palette[method], fontsize=size, fontweight="bold", va="center",
            arrowprops={"arrowstyle": "-", "color": palette[method], "lw": 0.6, "shrinkA": 1, "shrinkB": 1},
            annotation_clip=False, linespacing=1.0,
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


def settle(axis: Axes) -> None:
    """Find the layout of a figure of ours, so that names can be placed in its panels."""
    figure = figure_of(axis)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


@dataclass(frozen=True)
class Named:
    """A line, and what to write beside it.

    Attributes:
        line: as it was drawn.
        text: its name; line breaks stay.
        font: how it is written, as matplotlib takes it.
    """

    line: Line2D
    text: str
    font: Mapping[str, Any]


def label_lines(axis: Axes, named: Sequence[Named]) -> None:
    """Write names along lines, above or below, where the fewest other lines and names are.

    Args:
        axis: in its final size; see `settle`.
        named: the lines that have names, the most important first. All lines of the axis are kept clear of.
    """
    frame = axis.get_window_extent().padded(-0.03 * figure_of(axis).dpi)
    panel = axis.get_window_extent()
    others = {line: _points(line) for line in axis.lines}
    taken = [Text.get_window_extent(text) for text in axis.texts if text.get_text()]  # without their arrows
    for one in named:
        text = axis.text(0, 0, one.text, transform=None, va="bottom", ha="left", zorder=6, **one.font)
        box = text.get_window_extent()
        own = others.pop(one.line)
        size = float(text.get_fontsize()) * figure_of(axis).dpi / 72
        places = _places(own, box, frame, 0.35 * size)
        _, found = min((_cost(place, own, others.values(), taken, size), place) for place in places)
        if any(_inside(points, Bbox.from_bounds(*found), 0.0) for points in (own, *others.values())):
            text.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.3})
        others[one.line] = own
        text.set_transform(axis.transAxes)
        text.set_position(((found[0] - panel.x0) / panel.width, (found[1] - panel.y0) / panel.height))
        taken.append(Bbox.from_bounds(*found))


Place = tuple[float, float, float, float]
Points = Float[np.ndarray, "_ 2"]


def _points(line: Line2D) -> Points:
    """Points along a line, a few pixels apart."""
    corners: Points = np.asarray(line.get_transform().transform_path(line.get_path()).vertices, dtype=float)
    corners = corners[np.isfinite(corners).all(1)]
    if len(corners) < 2:
        return corners
    at = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    even = np.linspace(0.0, at[-1], max(2, int(at[-1] / _PIXELS)))
    points: Points = np.stack([np.interp(even, at, corners[:, side]) for side in (0, 1)], axis=1)
    return points


def _places(own: Points, box: Bbox, frame: Bbox, gap: float) -> list[Place]:
    """Boxes just above and just below a line, inside the panel."""
    found = []
    for left in np.linspace(frame.x0, max(frame.x0, frame.x1 - box.width), _PLACES):
        heights = own[(own[:, 0] >= left) & (own[:, 0] <= left + box.width), 1]
        for bottom in () if not len(heights) else (heights.max() + gap, heights.min() - gap - box.height):
            held = min(max(float(bottom), frame.y0), frame.y1 - box.height)
            found.append((float(left), held, box.width, box.height))
    return found or [(frame.x0, frame.y0, box.width, box.height)]


def _cost(place: Place, own: Points, others: Iterable[Points], taken: Sequence[Bbox], size: float) -> float:
    """How bad a place is: what it covers, what else it could be taken to name, how far it is from its line."""
    left, bottom, width, height = place
    box = Bbox.from_bounds(left, bottom, width, height)
    cost = 500.0 * sum(box.overlaps(other) for other in taken) + 20.0 * _inside(own, box, 0.0)
    near = own[(own[:, 0] >= left) & (own[:, 0] <= left + width), 1]
    if not len(near):
        return cost
    cost += float(np.ptp(near)) / size
    cost += _BELOW * float(bottom < near.min()) + _ASIDE * abs(float(2 * left + width - own[0, 0] - own[-1, 0]))
    for points in others:
        cost += 10.0 * _inside(points, box, 1.0) + 0.4 * _inside(points, box, _FAR * size / 2)
    return cost


def _inside(points: Points, box: Bbox, pad: float) -> int:
    x, y = points[:, 0], points[:, 1]
    return int(((x > box.x0) & (x < box.x1) & (y > box.y0 - pad) & (y < box.y1 + pad)).sum())
