"""What a figure is, and where figures are found: each module in `lensbench/report/figures` declares one.

A module named `scatter` with a constant `FIGURE` is what `lensbench plot --figure scatter` draws and what pages show.
Names are found without importing a module, so that a command can list them without matplotlib.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

from lensbench.errors import LensbenchError, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

    from lensbench.report.content import PageRun


FOLDER = Path(__file__).parent / "figures"
"""The folder that holds the figures."""
PACKAGE = "lensbench.report.figures"
PAGE_ONLY = "page_"
"""How the names of figures begin that only pages have."""


class Choice(TypedDict, total=False):
    """The options of every figure; see `lensbench.report.view.View`."""

    task: str | None
    relation: str | None
    site: str | None
    metric: str
    rule: str
    width: str | float
    title: bool


@runtime_checkable
class Results(Protocol):
    """The tables of a run that figures are drawn from."""

    @property
    def summary(self) -> "pd.DataFrame":
        """One row a method or baseline, layer and question."""

    @property
    def records(self) -> "pd.DataFrame":
        """One row a prediction."""

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row a measure other than accuracy."""

    @property
    def summaries(self) -> Mapping[tuple[str, str], str]:
        """(task, relation) -> what leads to what; empty where it is not known."""


@dataclass(frozen=True)
class Chart:
    """An interactive chart of one place of a run (a task, relation and site), for the page.

    Attributes:
        caption: what it shows, in words; also what a screen reader says.
        traces: of Plotly, as plain values.
        columns: the heads of the table with the same numbers.
        rows: the rows of that table, each a name and its cells.
        layout: what Plotly's layout has besides the page's own.
        height: in pixels.
    """

    caption: str
    traces: Sequence[Mapping[str, Any]]
    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[str]]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 360


@dataclass(frozen=True)
class Figure:
    """One figure: how it is drawn for a paper, and what a page of a run shows of it.

    A figure whose chart needs a program of its own has that beside its module: `NAME.html.j2`, the section of the page,
    and `NAME.js`, which adds a function to `CHARTS`. Any other gives `chart`, and the page draws what it returns.

    Attributes:
        title: what it is called; the heading of its section on the page.
        about: a sentence on what it shows.
        draw: draws it from a run (`Results`) and the options of `Choice`; None for one that only pages have.
        options: which of `inspector`, `before` and `names` it takes besides.
        anchor: its section on the page, and what links to it.
        label: of the link to its section; by default the title.
        order: its place on the page.
        chart: makes the chart of a task, relation and site; None where there is nothing to show.
        table: makes the coded table that its program reads, "" where the run has nothing for it.
    """

    title: str
    about: str = ""
    draw: "Callable[..., Drawing] | None" = None
    options: frozenset[str] = frozenset()
    anchor: str = ""
    label: str = ""
    order: int = 100
    chart: "Callable[[PageRun, str, str, str], Chart | None] | None" = None
    table: "Callable[[PageRun], str] | None" = None


def figure_names() -> list[str]:
    """Return the names of all figures, without importing one."""
    return sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))


def figure_summaries() -> dict[str, str]:
    """Return what each figure for papers shows, by name: the first line of its module, none of which is imported."""
    names = [name for name in figure_names() if not name.startswith(PAGE_ONLY)]
    lines = {name: beside(name, ".py").read_text(encoding="utf-8").partition("\n")[0] for name in names}
    return {name: line.strip('"') for name, line in lines.items()}


@cache
def find_figures() -> dict[str, Figure]:
    """Return all figures by name, in the order of the page.

    Raises:
        LensbenchError: a module in the folder declares no figure.
    """
    found: dict[str, Figure] = {}
    for name in figure_names():
        figure = getattr(importlib.import_module(f"{PACKAGE}.{name}"), "FIGURE", None)
        if not isinstance(figure, Figure):
            raise LensbenchError(f"{PACKAGE}.{name} declares no figure; expected FIGURE = Figure(...)")
        found[name] = figure
    return dict(sorted(found.items(), key=lambda pair: (pair[1].order, pair[0])))


def drawn_figure(name: str) -> Figure:
    """Return a figure for papers.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in figure_summaries():
        raise unknown_name("figure", name, figure_summaries())
    return find_figures()[name]


def draw_figure(name: str, run: Results, **options: Any) -> "Drawing":
    """Draw a figure of a run.

    Raises:
        UsageError: there is no such figure, or it leaves a choice open.
        LensbenchError: the run has nothing to draw.
    """
    draw = drawn_figure(name).draw
    if draw is None:
        raise LensbenchError(
            f"figure {name} cannot be drawn; expected draw=... in its Figure, or a name {PAGE_ONLY}..."
        )
    return draw(run, **options)


def beside(name: str, suffix: str) -> Path:
    """Return the place of a file that belongs to a figure."""
    return FOLDER / f"{name}{suffix}"


def with_option(option: str) -> list[str]:
    """Return the names of the figures that take an option."""
    return [name for name, figure in find_figures().items() if option in figure.options]
