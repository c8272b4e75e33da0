"""Pages of their own: no network, everything from data escaped."""

import html
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, Template, select_autoescape

from lensbench.explore.prompt.words import quoted, visible

if TYPE_CHECKING:
    from lensbench.explore.prompt.tables import By, Descriptions, LensTable

# From this shade on letters are white.
_DARK = 0.55
_ROW_PIXELS = 26
_FRAME_PIXELS = 190


@cache
def _template(name: str) -> Template:
    loader = PackageLoader("lensbench.explore.prompt", "templates")
    return Environment(loader=loader, autoescape=select_autoescape(default=True)).get_template(name)


def table_page(table: "LensTable", by: "By") -> str:
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


def _cell(table: "LensTable", i: int, j: int, shades: dict[str, float]) -> dict[str, Any]:
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


def descriptions_page(found: "Descriptions") -> str:
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
