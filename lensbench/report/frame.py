"""What stands around the panels of a figure: the title above, the legend and what was counted below.

All of it is measured, and the figure grows by what it takes: nothing leaves the canvas, and panels keep their size.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, cast

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from lensbench.report.style import SOFT, figure_of

TITLE: dict[str, Any] = {"fontsize": 9.0, "fontweight": "bold"}
NOTE: dict[str, Any] = {"fontsize": 6.5, "color": SOFT}
_LEGEND_POINTS = 7.0
_SIDE, _GAP = 0.05, 0.1
"""Inches at the sides, and between title, panels, legend and note."""
_FEWEST_LETTERS = 8


def frame(figure: Figure, *, title: str = "", note: str = "", handles: Sequence[Artist] = ()) -> None:
    """Write a title above the panels of a figure of ours, and below them a legend and a note, in lines that fit.

    Args:
        figure: with a constrained or compressed layout; it grows by the height that the texts need.
        title: in bold letters.
        note: what was counted, and how the figure is read.
        handles: of the legend; none for no legend.
    """
    width, height = figure.get_size_inches()
    room = width - 2 * _SIDE
    above = figure.text(0, 0, fitted(figure, title, room, **TITLE), va="top", **TITLE) if title else None
    below = figure.text(0, 0, fitted(figure, note, room, **NOTE), va="bottom", **NOTE) if note else None
    legend = _legend(figure, handles, room) if handles else None
    top, low, middle = (0.0 if part is None else size_of(figure, part)[1] + _GAP for part in (above, below, legend))
    bottom = low + middle
    whole = height + top + bottom
    figure.set_size_inches(width, whole)
    if above is not None:
        above.set_position((_SIDE / width, 1 - _GAP / 2 / whole))
    if below is not None:
        below.set_position((_SIDE / width, _GAP / 2 / whole))
    if legend is not None:
        legend.set_bbox_to_anchor((_SIDE / width, low / whole), transform=figure.transFigure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0.0, bottom / whole, 1.0, 1 - (top + bottom) / whole))  # type: ignore[call-arg]


def fitted(figure: Figure, text: str, room: float, **font: Any) -> str:
    """Return a text in lines that are no wider than so many inches in these letters.

    A word that is wider alone is broken, down to eight letters a line.
    """
    text = " ".join(text.split())
    letters = max(_FEWEST_LETTERS, int(room * 72 / (0.42 * float(font.get("fontsize", 8.0)))))
    while letters > _FEWEST_LETTERS:
        trial = figure.text(0, 0, textwrap.fill(text, letters), **font)
        wide = size_of(figure, trial)[0]
        trial.remove()
        if wide <= room:
            break
        letters = max(_FEWEST_LETTERS, min(letters - 1, int(letters * room / wide) + 2))
    # As many lines, but even: a last line of one letter looks like a mistake.
    lines, longest = len(textwrap.wrap(text, letters)), max(map(len, text.split()), default=0)
    while letters > max(_FEWEST_LETTERS, longest) and len(textwrap.wrap(text, letters - 1)) == lines:
        letters -= 1
    return textwrap.fill(text, letters)


def name_panel(axis: Axes, text: str, room: float, **font: Any) -> None:
    """Write a title above one of several panels, in lines that are no wider than so many inches."""
    axis.set_title(fitted(figure_of(axis), text, room, **font), **font)


def size_of(figure: Figure, artist: Text | Legend) -> tuple[float, float]:
    """Return the width and height of a text or legend in inches."""
    box = artist.get_window_extent(cast(FigureCanvasAgg, figure.canvas).get_renderer())  # type: ignore[no-untyped-call]
    return box.width / figure.dpi, box.height / figure.dpi


def _legend(figure: Figure, handles: Sequence[Artist], room: float) -> Legend:
    """Return a legend of as many columns as fit."""
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles=handles, loc="lower left", ncols=columns, fontsize=_LEGEND_POINTS, borderpad=0.1,
            borderaxespad=0.0, columnspacing=1.4, handlelength=2.4,
        )  # fmt: skip
        if columns == 1 or size_of(figure, legend)[0] <= room:
            return legend
        legend.remove()
    raise ValueError("a legend needs handles")
