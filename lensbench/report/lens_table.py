"""The classic picture of a lens: layers upwards, tokens sideways, the likeliest token in each cell."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lensbench.errors import LensbenchError
from lensbench.report.style import drawable, figure_of, new_figure, plot_style

SHADES = LinearSegmentedColormap.from_list("lensbench_shades", ["#f4f7fa", "#a9c9e6", "#3f86c0", "#084a86"])
"""From nothing to certain: even in lightness, and the same to colour-blind readers."""
_WHITE_FROM = 0.55
_MOST_TOKENS = 150
_MOST_LETTERS = 11
_CELL = (0.66, 0.185)
_TICKS = 40
_LETTERS_AN_INCH = 14


@dataclass(frozen=True)
class Cells:
    """The contents of a lens's table.

    Attributes:
        layers: their names, the first at the bottom.
        tokens: the prompt's.
        words: what the lens says, [layer][token].
        shades: how dark each cell is, 0 to 1.
        agrees: whether it says what the model says.
        final: what the model says, above the table.
        scale: what to write beside the colours, by shade.
    """

    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    words: list[list[str]]
    shades: Float[np.ndarray, "layer token"]
    agrees: Bool[np.ndarray, "layer token"]
    final: list[str]
    scale: Mapping[float, str]


def plot_lens_table(cells: Cells, *, title: str, colour: str, ax: Axes | None = None) -> Figure:
    """Draw a lens's table: bold where the lens says what the model says in the end.

    Args:
        cells: the table.
        title: of the figure.
        colour: what the colour is, in words.
        ax: where to draw it; by default a new figure, as large as the table needs.

    Raises:
        LensbenchError: more tokens than a figure has room for.
    """
    rows, columns = cells.shades.shape
    if columns > _MOST_TOKENS:
        raise LensbenchError(
            f"a figure has room for {_MOST_TOKENS} tokens, the prompt has {columns}: give a shorter one, or use --html"
        )
    with plot_style():
        if ax is None:
            size = (max(4.0, 1.1 + _CELL[0] * columns + 0.5), max(1.9, 1.25 + _CELL[1] * rows))
            figure = new_figure(size)
            axis = figure.subplots()
        else:
            figure, axis = figure_of(ax), ax
        image = axis.imshow(
            cells.shades, origin="lower", aspect="auto", cmap=SHADES, vmin=0.0, vmax=1.0, interpolation="nearest"
        )
        _write(axis, cells)
        _name(
            axis,
            cells,
            f"{title}: the likeliest next token, bold where it is the model's own (above). Colour: {colour}",
        )
        bar = figure.colorbar(image, ax=axis, pad=0.01, fraction=0.05, aspect=30)
        bar.set_ticks(list(cells.scale), labels=list(cells.scale.values()))
        bar.outline.set_visible(False)
    return figure


def _write(axis: Axes, cells: Cells) -> None:
    for i, row in enumerate(cells.words):
        for j, word in enumerate(row):
            weight = "bold" if cells.agrees[i, j] else "normal"
            ink = "white" if cells.shades[i, j] > _WHITE_FROM else "#15181b"
            axis.text(j, i, _short(word), ha="center", va="center", fontsize=6, color=ink, weight=weight, clip_on=True)


def _name(axis: Axes, cells: Cells, title: str) -> None:
    """Name layers and tokens; places, not names, tell equal tokens apart."""
    rows, columns = cells.shades.shape
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    step = -(-rows // _TICKS)
    axis.set_yticks(range(0, rows, step), cells.layers[::step])
    axis.set_xticks(range(columns), [f"{_short(token)}\n{j}" for j, token in enumerate(cells.tokens)], fontsize=6)
    axis.tick_params(length=0)
    axis.set_ylabel("Layer (0 = embeddings)")
    axis.set_xlabel("Token of the prompt")
    for j, word in enumerate(cells.final):
        axis.annotate(
            _short(word), (j, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", fontsize=6, weight="bold", annotation_clip=False,
        )  # fmt: skip
    lines = textwrap.fill(title, max(40, int(figure_of(axis).get_figwidth() * _LETTERS_AN_INCH)))
    axis.set_title("\n".join(drawable(line) for line in lines.splitlines()), fontsize=8, pad=16)


def plot_descriptions(rows: Sequence[tuple[str, str]], *, title: str, ax: Axes | None = None) -> Figure:
    """Draw texts, a line a layer, the first at the bottom.

    Args:
        rows: what each line is, and its text.
        title: of the figure.
        ax: where to draw it; by default a new figure.
    """
    with plot_style():
        if ax is None:
            figure = new_figure((7.2, 0.75 + 0.19 * len(rows)))
            axis = figure.subplots()
        else:
            figure, axis = figure_of(ax), ax
        axis.grid(visible=False)
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_xticks([])
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        axis.tick_params(length=0)
        for place, (_, text) in enumerate(rows):
            if place % 2 == 0:
                axis.axhspan(place - 0.5, place + 0.5, color="#f1f4f7", lw=0, zorder=0)
            axis.text(0.01, place, _short(text, 105), va="center", fontsize=7)
        axis.set_title(drawable(title), fontweight="bold")
    return figure


def _short(text: str, most: int = _MOST_LETTERS) -> str:
    return drawable(text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}")
