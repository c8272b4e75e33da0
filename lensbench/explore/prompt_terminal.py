"""`lensbench inspect` in a terminal: what is refused before a model is loaded, and the tables as they are shown.

Nothing here imports torch.
"""

from collections.abc import Iterator

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lensbench.errors import UsageError
from lensbench.explore.prompt_tables import By, Descriptions, LensTable, visible
from lensbench.inspectors.catalog import check_inspector
from lensbench.utils.layer_spec import parse_layers

PATCHSCOPE = "patchscope"
# Cells of a terminal are not wider than this; where the output is piped nothing is cut.
WIDEST = 11
_SHADE_STOPS = ((244, 247, 250), (169, 201, 230), (63, 134, 192), (8, 74, 134))
_WHITE_FROM = 0.55
# A column for the names of layers.
_LAYER_WIDTH = 5


def check_prompt_text(prompt: str) -> None:
    """Refuse a prompt without a word in it.

    Raises:
        UsageError: it has none.
    """
    if not prompt.strip():
        raise UsageError(f"the prompt {prompt!r} is empty; give a text, such as 'The capital of France is'")


def check_table(prompt: str, lens: str | None, layers: str, top: int) -> None:
    """Refuse what a lens cannot do.

    Args:
        prompt: the text.
        lens: its name; None where it already exists.
        layers: as `--layers`.
        top: how many tokens a cell.

    Raises:
        UsageError: an empty prompt, an unknown lens, layers of another form, or no token to show.
    """
    check_prompt_text(prompt)
    if lens == PATCHSCOPE:
        raise UsageError("a patchscope describes one token in words: give --patchscope --token TOKEN, or another lens")
    if lens is not None:
        check_inspector(lens)
    parse_layers(layers, None)
    if top < 1:
        raise UsageError(f"top = {top}: expected 1 or more likeliest tokens")


def check_token(prompt: str, token: int | str) -> None:
    """Refuse a token that is neither a position nor in the prompt.

    Raises:
        UsageError: it is not.
    """
    if position_of(token) is None and (not str(token).strip() or str(token) not in prompt):
        raise UsageError(
            f"--token {str(token)!r}: expected the number of a token (1 is the second, -1 the last), or a word of the "
            "prompt"
        )


def position_of(token: int | str) -> int | None:
    """Read a token's number; None where it is a word."""
    if isinstance(token, int):
        return token
    digits = token.removeprefix("-")
    return int(token) if digits.isascii() and digits.isdigit() else None


def terminal_table(table: LensTable, by: By, console: Console) -> RenderableType:
    """Return a lens's table, in as many blocks of tokens as the terminal's width asks for.

    Without colours each cell has the figure that the colour stands for.
    """
    coloured = console.is_terminal and console.color_system is not None
    words = [[visible(table.words[int(token)]) for token in row] for row in table.top[:, :, 0]]
    shades = table.shades(by)
    cut = WIDEST if console.is_terminal else 10**6
    parts: list[RenderableType] = [Text(_title(table, by, coloured=coloured)), Text()]
    cells = [[_figure(table, word, by, (i, j), coloured=coloured) for j, word in enumerate(row)]
             for i, row in enumerate(words)]  # fmt: skip
    final = [visible(table.words[int(token)]) for token in table.final]
    columns = [
        min(cut, max(cell_len(text) for text in (visible(table.tokens[j]), final[j], *(row[j] for row in cells))))
        for j in range(len(table.tokens))
    ]
    for block in _blocks(columns, console.width if console.is_terminal else None):
        shown = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        shown.add_column("layer", justify="right", no_wrap=True)
        for j in block:
            shown.add_column(Text(_fit(visible(table.tokens[j]), columns[j])), no_wrap=True, width=columns[j])
        shown.add_row("model", *(Text(_fit(final[j], columns[j]), style="bold") for j in block), end_section=True)
        for i in reversed(range(len(table.layers))):
            row = [
                Text(
                    _fit(cells[i][j], columns[j]),
                    style=_style(float(shades[i, j]), bool(table.top[i, j, 0] == table.final[j]), coloured=coloured),
                )
                for j in block
            ]
            shown.add_row(str(table.layers[i]), *row)
        parts += [shown, Text()]
    return Group(*parts)


def _title(table: LensTable, by: By, *, coloured: bool) -> str:
    what = "probability" if by == "probability" else "rank of the model's prediction (0 = the top)"
    how = (
        f"darker: {'higher ' + what if by == 'probability' else 'better ' + what}" if coloured else f"beside it: {what}"
    )
    return f"{table.lens} on {table.model}: the likeliest next token; {how}; model: what it says itself" + (
        "; bold: the same" if coloured else "; *: the same"
    )


def _figure(table: LensTable, word: str, by: By, at: tuple[int, int], *, coloured: bool) -> str:
    if coloured:
        return word
    same = "*" if table.top[(*at, 0)] == table.final[at[1]] else ""
    figure = f"{table.probabilities[(*at, 0)]:.2f}" if by == "probability" else str(table.rank[at])
    return f"{word}{same} {figure}"


def _blocks(columns: list[int], width: int | None) -> Iterator[list[int]]:
    """Yield tokens that fit beside one another."""
    block: list[int] = []
    used = _LAYER_WIDTH
    for j, column in enumerate(columns):
        if width is not None and block and used + column + 1 > width:
            yield block
            block, used = [], _LAYER_WIDTH
        block.append(j)
        used += column + 1
    yield block


def _fit(text: str, width: int) -> str:
    """Return a text of exactly so many columns of a terminal."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "\N{HORIZONTAL ELLIPSIS}"


def _style(shade: float, same: bool, *, coloured: bool) -> Style:
    if not coloured:
        return Style()
    place = min(max(shade, 0.0), 1.0) * (len(_SHADE_STOPS) - 1)
    below = min(int(place), len(_SHADE_STOPS) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - below)) for a, b in zip(_SHADE_STOPS[below], _SHADE_STOPS[below + 1], strict=True)
    )
    ink = "#ffffff" if shade > _WHITE_FROM else "#15181b"
    return Style.parse(f"{'bold ' if same else ''}{ink} on rgb({red},{green},{blue})")


def terminal_descriptions(found: Descriptions) -> RenderableType:
    """Return a token's descriptions, the last layer first."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.add_column("layer", justify="right", no_wrap=True)
    for layer in found.target_layers:
        shown.add_column("continuation" if len(found.target_layers) == 1 else f"written at {layer}")
    for i in reversed(range(len(found.layers))):
        shown.add_row(str(found.layers[i]), *(Text(visible(str(text))) for text in found.texts[i]))
    title = f"token {found.position}, {visible(found.token)}, of {found.model}, written into another prompt"
    return Group(Text(title), Text(), shown)
