"""What was found in a prompt: a table of layers and tokens, a token's descriptions, and their pages."""

import html
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from jinja2 import Environment, PackageLoader, Template, select_autoescape

from lensbench.errors import unknown_name

By = Literal["probability", "rank"]
BY: tuple[By, ...] = ("probability", "rank")
_SIGNS = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}
_BLANK = "\N{OPEN BOX}"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_COLOURS = {
    "probability": "probability of the token shown",
    "rank": "rank of the model's prediction (0 = the top)",
}
# From this shade on letters are white.
_DARK = 0.55
_ROW_PIXELS = 26
_FRAME_PIXELS = 190


def visible(word: str) -> str:
    """Return a token in one line: without the blanks around it, which are shown only where there is nothing else."""
    if not word.strip(" "):
        return _BLANK * len(word)
    text = "".join(_sign(character) for character in word.strip(" "))
    # Blanks of other kinds, joiners: nothing would be seen of them.
    return text if text.strip() else " ".join(f"U+{ord(character):04X}" for character in word.strip(" "))


def quoted(word: str) -> str:
    """Return a token in quotation marks, with its blanks."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{''.join(map(_sign, word))}\N{RIGHT DOUBLE QUOTATION MARK}"


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character) == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else _UNKNOWN
    # Marks that turn the direction of what follows would reach into the next cell.
    return "" if unicodedata.category(character) == "Cf" else character


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LensTable:
    """What a lens says at each layer and token of a prompt. Notebooks show it; so do `plot` and `to_html`.

    Attributes:
        model: the model's name.
        lens: the lens's name.
        prompt: the text.
        tokens: the prompt's, as texts; there may be equal ones.
        layers: in order; 0 = the embeddings.
        top: the likeliest tokens at each layer and position, likeliest first.
        probabilities: theirs.
        final: the model's own most likely token at each position.
        final_probability: what the model gives it.
        lens_probability: what the lens gives it, at each layer.
        rank: where it stands in the lens's vocabulary (0 = the top).
        vocabulary: how many tokens there are.
        words: texts of tokens by id.
    """

    model: str
    lens: str
    prompt: str
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    top: Int[np.ndarray, "layer token place"]
    probabilities: Float[np.ndarray, "layer token place"]
    final: Int[np.ndarray, " token"]
    final_probability: Float[np.ndarray, " token"]
    lens_probability: Float[np.ndarray, "layer token"]
    rank: Int[np.ndarray, "layer token"]
    vocabulary: int
    words: Mapping[int, str]

    def to_frame(self, top: int = 1) -> pd.DataFrame:
        """Return one row a layer, token and place (1 = the likeliest), for so many places.

        The columns are layer, position, token, place, predicted, probability, and of the model's own prediction final,
        final_rank (in the lens's vocabulary, 0 = the top) and final_probability (that the lens gives it).
        """
        places = min(top, self.top.shape[2])
        layer, position, place = (axis.ravel() for axis in np.indices((*self.rank.shape, places)))
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[layer],
                "position": position,
                "token": [self.tokens[one] for one in position],
                "place": place + 1,
                "predicted": [self.words[int(token)] for token in self.top[layer, position, place]],
                "probability": self.probabilities[layer, position, place],
                "final": [self.words[int(self.final[one])] for one in position],
                "final_rank": self.rank[layer, position],
                "final_probability": self.lens_probability[layer, position],
            }
        )

    def shades(self, by: By = "probability") -> Float[np.ndarray, "layer token"]:
        """Return how dark each cell is, 0 to 1: by the top token's probability, or the rank of what the model says.

        Ranks are on a log scale: 1 is the top, 0 the end of the vocabulary.

        Raises:
            UsageError: something else.
        """
        if by not in BY:
            raise unknown_name("colour", by, BY)
        if by == "probability":
            return self.probabilities[:, :, 0]
        shades: Float[np.ndarray, "layer token"] = 1 - np.log1p(self.rank) / np.log(max(2, self.vocabulary))
        return shades

    def plot(self, *, by: By = "probability", ax: "Axes | None" = None) -> "Figure":
        """Draw the classic picture: the likeliest token of each cell, coloured; bold where it is the model's own."""
        from lensbench.report.lens_table import Cells, plot_lens_table

        agrees = self.top[:, :, 0] == self.final[None]
        return plot_lens_table(
            Cells(
                tuple(str(layer) for layer in self.layers),
                tuple(visible(token) for token in self.tokens),
                [[visible(self.words[int(token)]) for token in row] for row in self.top[:, :, 0]],
                self.shades(by),
                agrees,
                [visible(self.words[int(token)]) for token in self.final],
                self._scale(by),
            ),
            title=f"{self.lens.replace('_', ' ')} on {self.model}",
            colour=_COLOURS[by],
            ax=ax,
        )

    def _scale(self, by: By) -> Mapping[float, str]:
        """Return what to write beside the colours."""
        if by == "probability":
            return {place / 5: f"{place / 5:.1f}" for place in range(6)}
        ranks = [0, *(10**power for power in range(1, 7) if 10**power < self.vocabulary)]
        return {float(1 - np.log1p(rank) / np.log(max(2, self.vocabulary))): f"{rank:,}" for rank in ranks}

    def to_html(self, by: By = "probability") -> str:
        """Return a page of its own, which needs no network: a cell's likeliest tokens appear when it is pointed at."""
        return table_page(self, by)

    def _repr_html_(self) -> str:

        return framed(self.to_html(), rows=len(self.layers) + 2)

    def __repr__(self) -> str:
        return f"LensTable({self.lens} on {self.model}: {len(self.layers)} layers, {len(self.tokens)} tokens)"


@dataclass(frozen=True)
class Descriptions:
    """What a Patchscope says of one token's state, layer by layer.

    Attributes:
        model: the model's name.
        prompt: the text that the state was read in.
        token: as text.
        position: of the token.
        layers: the states' layers, in order.
        target_layers: where they were written; `same` is the source layer.
        inspection: the prompt that they were written into, its slot unfilled.
        texts: how the model went on.
    """

    model: str
    prompt: str
    token: str
    position: int
    layers: tuple[int, ...]
    target_layers: tuple[str, ...]
    inspection: str
    texts: Shaped[np.ndarray, "layer target"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a layer and target layer: layer, target_layer, text."""
        layer, target = (axis.ravel() for axis in np.indices(self.texts.shape))
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[layer],
                "target_layer": [self.target_layers[one] for one in target],
                "text": self.texts[layer, target],
            }
        )

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the texts, a line a layer."""
        from lensbench.report.lens_table import plot_descriptions

        rows = [
            (f"{row.layer}" if len(self.target_layers) == 1 else f"{row.layer} \N{RIGHTWARDS ARROW} {row.target_layer}",
             visible(str(row.text)))
            for row in self.to_frame().itertuples()
        ]  # fmt: skip
        return plot_descriptions(rows, title=f"What {self.model} makes of {quoted(self.token)}, layer by layer", ax=ax)

    def to_html(self) -> str:
        """Return a page of its own, which needs no network."""
        return descriptions_page(self)

    def _repr_html_(self) -> str:

        return framed(self.to_html(), rows=len(self.layers) * len(self.target_layers) + 2)

    def __repr__(self) -> str:
        return f"Descriptions({visible(self.token)!r} on {self.model}: {len(self.layers)} layers)"


@cache
def _template(name: str) -> Template:
    loader = PackageLoader("lensbench.explore", "templates/prompt")
    return Environment(loader=loader, autoescape=select_autoescape(default=True)).get_template(name)


def table_page(table: LensTable, by: By) -> str:
    """Return the page of a lens's table."""
    shades = {name: table.shades(name) for name in ("probability", "rank")}
    rows = []
    for i in reversed(range(len(table.layers))):
        cells = [_cell(table, i, j, {name: float(shade[i, j]) for name, shade in shades.items()})
                 for j in range(len(table.tokens))]  # fmt: skip
        rows.append({"layer": table.layers[i], "index": i, "cells": cells})
    data = {
        "words": {str(token): quoted(word) for token, word in table.words.items()},
        "tokens": [quoted(token) for token in table.tokens],
        "layers": list(table.layers),
        "top": table.top.tolist(),
        "probabilities": table.probabilities.round(5).tolist(),
        "final": table.final.tolist(),
        "finalProbability": table.final_probability.round(5).tolist(),
        "given": table.lens_probability.round(7).tolist(),
        "rank": table.rank.tolist(),
    }
    final = [visible(table.words[int(token)]) for token in table.final]
    return _template("table.html.j2").render(
        table=table, by=by, rows=rows, data=data, tokens=[visible(token) for token in table.tokens], final=final,
        final_shades=[round(float(one), 3) for one in table.final_probability], dark=_DARK,
        title=f"{table.lens.replace('_', ' ')} on {table.model}",
    )  # fmt: skip


def _cell(table: LensTable, i: int, j: int, shades: dict[str, float]) -> dict[str, Any]:
    word = table.words[int(table.top[i, j, 0])]
    rank = int(table.rank[i, j])
    return {
        "word": visible(word),
        "agrees": bool(table.top[i, j, 0] == table.final[j]),
        "shades": {name: round(shade, 3) for name, shade in shades.items()},
        "dark": {name: shade > _DARK for name, shade in shades.items()},
        "said": f"layer {table.layers[i]}, after token {j} {quoted(table.tokens[j])}: {quoted(word)} with probability "
        f"{table.probabilities[i, j, 0]:.2f}; rank of the model's prediction {rank}",
    }


def descriptions_page(found: Descriptions) -> str:
    """Return the page of a token's descriptions."""
    rows = list(zip(found.layers, found.texts.tolist(), strict=True))[::-1]
    before = [visible(line) for line in found.inspection.splitlines()]
    return _template("descriptions.html.j2").render(
        found=found, rows=rows, token=visible(found.token), inspection=before,
        title=f"{visible(found.token)} as {found.model} describes it",
    )  # fmt: skip


def framed(page: str, rows: int) -> str:
    """Return a page inside a frame of so many rows, so that neither its style nor its script touch what is around."""
    height = min(760, _FRAME_PIXELS + _ROW_PIXELS * rows)
    return (
        f'<iframe title="lensbench" sandbox="allow-scripts" style="width:100%;height:{height}px;border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )
