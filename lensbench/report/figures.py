"""Figures into files, one for each task and site that is asked for: what `lensbench plot --figure` does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd
from matplotlib.figure import Figure

from lensbench.errors import UsageError, unknown_name
from lensbench.report.before_after import plot_comparison
from lensbench.report.canvas import check_format, inches, save_figure
from lensbench.report.choices import Choice
from lensbench.report.gaps import plot_gap
from lensbench.report.grids import plot_grid
from lensbench.report.multiples import plot_relations
from lensbench.report.plots import plot_layers
from lensbench.report.view import METRICS, RULES, in_order


@runtime_checkable
class Results(Protocol):
    """What a run gives to draw."""

    @property
    def summary(self) -> pd.DataFrame:
        """One row a method or rival, layer and question."""

    @property
    def records(self) -> pd.DataFrame:
        """One row a prediction."""


@dataclass(frozen=True)
class FigureRequest:
    """What is drawn.

    Attributes:
        figure: one of FIGURES.
        choice: as for every figure; of tasks and sites that it leaves open, each gets a figure of its own.
        inspector: one method alone, in grids and comparisons.
        before: the run that `compare` shows beside this one, and the names of both.
        names: before, after.
    """

    figure: str
    choice: Choice
    inspector: str | None = None
    before: Results | None = None
    names: tuple[str, str] = ("before", "after")


def _layers(run: Results, _asked: FigureRequest, choice: Choice) -> Figure:
    return plot_layers(run.summary, **choice)


def _gap(run: Results, _asked: FigureRequest, choice: Choice) -> Figure:
    return plot_gap(run.summary, **choice)


def _grid(run: Results, asked: FigureRequest, choice: Choice) -> Figure:
    return plot_grid(run.records, inspector=asked.inspector, **choice)


def _relations(run: Results, _asked: FigureRequest, choice: Choice) -> Figure:
    return plot_relations(run.summary, **choice)


def _compare(run: Results, asked: FigureRequest, choice: Choice) -> Figure:
    assert asked.before is not None
    return plot_comparison(asked.before.summary, run.summary, names=asked.names, inspector=asked.inspector, **choice)


FIGURES: Mapping[str, Callable[[Results, FigureRequest, Choice], Figure]] = {
    "layers": _layers,
    "gap": _gap,
    "grid": _grid,
    "relations": _relations,
    "compare": _compare,
}
"""By the name that `--figure` takes."""


def check_asked(asked: FigureRequest, out: Path | None) -> None:
    """Refuse what can be told to be wrong before a run is read.

    Raises:
        UsageError: an unknown figure, metric or width, or options that do not go together.
        LensbenchError: a file of another format.
    """
    if asked.figure not in FIGURES:
        raise unknown_name("figure", asked.figure, FIGURES)
    metric = asked.choice.get("metric", METRICS[0])
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    inches(asked.choice.get("width", "page"))
    if asked.inspector is not None and asked.figure not in ("grid", "compare"):
        raise UsageError(f"--inspector is for --figure grid and compare; {asked.figure} shows all methods")
    if asked.figure == "compare" and asked.before is None:
        raise UsageError("--figure compare needs the other run: give it with --before RUN")
    if asked.figure != "compare" and asked.before is not None:
        raise UsageError(f"--before is for --figure compare; {asked.figure} shows one run: leave it out")
    if (rule := asked.choice.get("rule", RULES[0])) not in RULES:
        raise unknown_name("rule", rule, RULES)
    if out is not None and out.suffix:
        check_format(out)


def write_figures(run: Results, asked: FigureRequest, out: Path) -> list[Path]:
    """Draw a figure for each task and site that is asked for, and return the files.

    Args:
        run: what is drawn.
        asked: which figure of it.
        out: a file (with several tasks or sites their names are added), or a folder for PDF files.

    Raises:
        UsageError: a task, relation or site that the run does not have.
        LensbenchError: nothing to draw.
    """
    check_asked(asked, out)
    choices = list(_choices(run.summary, asked))
    written = []
    for choice, names in choices:
        figure = FIGURES[asked.figure](run, asked, choice)
        path = out.with_name("-".join([out.stem, *names]) + out.suffix)
        if not out.suffix:
            kept = [name for key in ("task", "relation", "site") if (name := choice.get(key))]
            metric = choice.get("metric", METRICS[0])
            kind = [] if metric == METRICS[0] else [metric.replace(":", "-")]
            path = out / f"{'-'.join(_plain([asked.figure, *map(str, kept), *kind]))}.pdf"
        written += save_figure(figure, [path])
    return written


def _choices(summary: pd.DataFrame, asked: FigureRequest) -> Iterator[tuple[Choice, list[str]]]:
    """Each task and site that was not named, with what is added to the name of a file."""
    task, site = asked.choice.get("task"), asked.choice.get("site")
    tasks = sorted(summary["task"].unique()) if task is None else [task]
    for one in tasks:
        there = summary.loc[summary["task"] == one, "site"].unique()
        sites = in_order(list(there)) if site is None and len(there) else [site]
        for place in sites:
            names = [one] * (len(tasks) > 1) + [str(place)] * (len(sites) > 1)
            yield {**asked.choice, "task": one, "site": place}, _plain(names)
    if not tasks:
        yield asked.choice, []


def _plain(names: Sequence[str]) -> list[str]:
    """Names as parts of a file's name."""
    return ["".join(c if c.isalnum() or c in "-_." else "_" for c in name) for name in names]
