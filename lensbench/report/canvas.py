"""Figures without a window: their widths in papers, what notebooks show of them, and the files that they go into."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lensbench.errors import LensbenchError, UsageError
from lensbench.report.style import plot_style

FORMATS = (".png", ".svg", ".pdf")

WIDTHS: Mapping[str, float] = {"column": 3.3, "text": 5.5, "page": 7.2}
"""Inches: one column of two (84 mm), the text of a page with one column, a page of two columns (183 mm)."""

_NARROW, _MIDDLE = 4.3, 6.2

# It tells of every glyph that goes into a PDF.
logging.getLogger("fontTools").setLevel(logging.WARNING)


class PaperFigure(Figure):
    """A figure that notebooks show, whether pyplot is imported or not."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with plot_style():
            self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(size: tuple[float, float], layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """Return an empty figure of so many inches that belongs to no window."""
    figure = PaperFigure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def figure_of(axes: Axes) -> Figure:
    """Return the figure that a user's axes belong to."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def inches(width: str | float) -> float:
    """Return a width in inches: one of WIDTHS, or a number of inches.

    Raises:
        UsageError: neither.
    """
    if isinstance(width, str) and width in WIDTHS:
        return WIDTHS[width]
    try:
        number = float(width)
    except ValueError:
        number = 0.0
    if not 2.0 <= number <= 40.0:
        known = ", ".join(f"{name} ({size:g})" for name, size in WIDTHS.items())
        raise UsageError(f"width {width!r}: expected {known}, or a number of inches from 2 to 40")
    return number


def columns_for(width: float, wide: int = 4) -> int:
    """Return how many small panels stand side by side in a figure of so many inches."""
    return max(1, wide // 2) if width < _NARROW else max(1, wide - 1) if width < _MIDDLE else wide


def check_format(path: Path) -> None:
    """Refuse a file whose suffix is no format of figures.

    Raises:
        LensbenchError: it is not.
    """
    if path.suffix.lower() not in FORMATS:
        raise LensbenchError(f"cannot plot to {path}: the suffix must be one of {', '.join(FORMATS)}, or give a folder")


def save_figure(figure: Figure, paths: Sequence[Path]) -> list[Path]:
    """Write a figure to files, each in the format of its suffix, and return their paths."""
    # Dates and versions would make two runs on the same records differ.
    metadata: dict[str, dict[str, Any]] = {
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
