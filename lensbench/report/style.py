"""How all plots look: colours for colour-blind readers, fonts that stay text, widths in papers."""

import io
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font

from lensbench.errors import LensbenchError, UsageError
from lensbench.report.wording import readable

BASE_FONT = "DejaVu Sans"
"""Ships with matplotlib: figures are the same on every machine. It has Latin, Greek, Cyrillic, Hebrew and Arabic."""

OTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji", "Segoe UI Symbol", "Arial Unicode MS",
)  # fmt: skip
"""Asked, where they are installed, for what the base font lacks."""

MISSING = "\N{WHITE SQUARE}"


@cache
def font_families() -> tuple[str, ...]:
    """Return the families that figures are drawn in, the base font first."""
    installed = {font.name for font in fontManager.ttflist}
    return (BASE_FONT, *(name for name in OTHER_FONTS if name in installed))


@cache
def _characters() -> frozenset[int]:
    """Every character that one of our fonts has."""
    return frozenset().union(*(get_font(fontManager.findfont(name)).get_charmap() for name in font_families()))


def drawable(text: str) -> str:
    """Return a text of the data as matplotlib can draw it.

    A run of characters that no font has becomes one square; a line break becomes a blank, and a dollar sign does not
    begin a formula.
    """
    kept = []
    for character in " ".join(text.split("\n")):
        category = unicodedata.category(character)
        # Joiners and variation selectors show nothing by themselves.
        if category in ("Cf", "Cc") or "\N{VARIATION SELECTOR-1}" <= character <= "\N{VARIATION SELECTOR-16}":
            continue
        kept.append(character if ord(character) in _characters() else MISSING)
    return re.sub(f"{MISSING}+", MISSING, "".join(kept)).replace("$", r"\$")


STYLE_FILE = Path(__file__).with_name("lensbench.mplstyle")

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito 2008, ordered so that the first ones differ most; yellow, hard to see on white, comes last."""

METHOD_COLOURS = {"patchscope": "#D55E00", "probe": "#0072B2", "tuned_lens": "#009E73", "logit_lens": "#CC79A7"}
"""A method has the same colour in every plot, whichever others are in it."""

METHOD_MARKERS = {"patchscope": "o", "probe": "s", "tuned_lens": "^", "logit_lens": "D"}
"""A method has the same marker in every plot: in grey the colours are much alike."""
_OTHER_MARKERS = "vPX*<>hp"

BASELINE_GREYS = ("#3b3b3b", "#5c5c5c", "#7a7a7a", "#969696", "#ababab")
BASELINE_DASHES = ((4.5, 1.6), (1.4, 1.4), (6.0, 1.5, 1.4, 1.5), (2.6, 1.4), (8.0, 2.0))
CHANCE_COLOUR = "#8a8a8a"
SOFT = "#555555"
MAP = "cividis"
"""The colour map of grids: even in lightness, and the same to colour-blind readers."""


@cache
def _settings() -> mpl.RcParams:
    return mpl.rc_params_from_file(STYLE_FILE, use_default_template=False)


@contextmanager
def plot_style() -> Iterator[None]:
    """Matplotlib's settings while a figure is drawn or saved: those of `lensbench.mplstyle`."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc would make other figures; this leaves the backend alone
        mpl.rcParams.update(_settings())
        mpl.rcParams["font.sans-serif"] = list(font_families())
        yield


def colours(methods: Iterable[str]) -> dict[str, str]:
    """One colour a method: its own where it has one, else the next that is free, in the order of the names."""
    names = sorted(set(methods))
    taken = {METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS}
    free = [colour for colour in OKABE_ITO if colour not in taken]
    others = [name for name in names if name not in METHOD_COLOURS]
    return {
        **{name: METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS},
        **{name: (free or list(OKABE_ITO))[index % len(free or OKABE_ITO)] for index, name in enumerate(others)},
    }


def markers(methods: Iterable[str]) -> dict[str, str]:
    """One marker a method, by the same rule as its colour."""
    names = sorted(set(methods))
    others = [name for name in names if name not in METHOD_MARKERS]
    return {
        **{name: METHOD_MARKERS[name] for name in names if name in METHOD_MARKERS},
        **{name: _OTHER_MARKERS[place % len(_OTHER_MARKERS)] for place, name in enumerate(others)},
    }


def label(name: str) -> str:
    """A name of the data as a label in a figure."""
    return drawable(readable(name))


FORMATS = (".png", ".svg", ".pdf")

WIDTHS: Mapping[str, float] = {"column": 3.3, "text": 5.5, "page": 7.2}
"""Inches: one column of two (84 mm), the text of a page with one column, a page of two columns (183 mm)."""

NARROW, _MIDDLE = 4.3, 6.2
"""Inches: a figure that is no wider stands in a column."""

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
    """Return the figure that a user's axes belong to.

    Raises:
        UsageError: they were removed from it.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise UsageError("ax belongs to no figure: give axes that were not removed from theirs")
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
    return max(1, wide // 2) if width < NARROW else max(1, wide - 1) if width < _MIDDLE else wide


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
        _lay_out(figure)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format=path.suffix[1:].lower(), metadata=metadata[path.suffix.lower()])
    return list(paths)


def _lay_out(figure: Figure) -> None:
    """Find the layout once, for all formats, and round it: the solver's last digits differ from time to time."""
    engine = figure.get_layout_engine()
    if engine is None:
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        if axes.get_axes_locator() is None:
            left, bottom, width, height = axes.get_position().bounds
            axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
