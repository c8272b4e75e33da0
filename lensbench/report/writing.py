"""Figures into files: one for each task and site that is asked for, and those that every run gets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.report.figure import Choice, Results, draw_figure, drawn_figure, with_option
from lensbench.report.figures.layers import plot_layers
from lensbench.report.figures.relations import plot_relations
from lensbench.report.panels import of_methods
from lensbench.report.style import check_format, inches, save_figure
from lensbench.report.view import METRICS, RULES, in_order
from lensbench.results.records import ALL


@dataclass(frozen=True)
class FigureRequest:
    """A request for one of the figures.

    Attributes:
        figure: its name, as `--figure` takes it.
        choice: as for every figure; of tasks and sites that it leaves open, each gets a figure of its own.
        inspector: one method alone, for figures that take one.
        before: the run that `compare` shows beside this one, and the names of both.
        names: before, after.
    """

    figure: str
    choice: Choice
    inspector: str | None = None
    before: Results | None = None
    names: tuple[str, str] = ("before", "after")


def check_asked(asked: FigureRequest, out: Path | None) -> None:
    """Refuse a request that is wrong whatever the run holds.

    Raises:
        UsageError: an unknown figure, metric or width, or options that do not go together.
        LensbenchError: a file of another format.
    """
    options = drawn_figure(asked.figure).options
    metric = asked.choice.get("metric", METRICS[0])
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    inches(asked.choice.get("width", "page"))
    if asked.inspector is not None and "inspector" not in options:
        names = ", ".join(with_option("inspector"))
        raise UsageError(f"--inspector is for --figure {names}; {asked.figure} shows all methods")
    if asked.before is None and "before" in options:
        raise UsageError(f"--figure {asked.figure} needs the other run: give it with --before RUN")
    if asked.before is not None and "before" not in options:
        names = " and ".join(with_option("before"))
        raise UsageError(f"--before is for --figure {names}; {asked.figure} shows one run: leave it out")
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
    given = {"inspector": asked.inspector, "before": asked.before, "names": asked.names}
    extra = {name: given[name] for name in drawn_figure(asked.figure).options}
    written = []
    for choice, names in choices:
        figure = draw_figure(asked.figure, run, **choice, **extra)
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


def plot_run(summary: pd.DataFrame, out: Path, metric: str = "accuracy_corrected") -> list[Path]:
    """Write the plots of a summary and return their paths.

    Args:
        summary: of one run.
        out: a folder, for PNG and SVG of each task: the totals at each site, and several relations as small multiples;
            or a file .png, .svg or .pdf, for the small multiples alone (with several tasks or models their names are
            added).
        metric: one of METRICS.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if out.suffix:
        check_format(out)
    groups = summary.groupby(["model", "task"], observed=True, sort=True)
    whole = [(str(rows["model"].iloc[0]), str(rows["task"].iloc[0]), rows) for _, rows in groups]
    written: list[Path] = []
    for model, task, rows in whole:
        prefix = task if summary["model"].nunique() == 1 else f"{model}-{task}".replace("/", "_")
        if not _has_values(rows, metric):
            continue
        if out.suffix:
            figure = plot_relations(rows, task=task, metric=metric)
            path = out if len(whole) == 1 else out.with_name(f"{out.stem}-{prefix}{out.suffix}")
            written += save_figure(figure, [path])
            continue
        kind = metric.replace(":", "-")
        if rows["relation"].nunique() > 1 + (rows["relation"] == ALL).any():  # the only one is the total
            figure = plot_relations(rows, task=task, metric=metric)
            written += save_figure(figure, [out / f"{prefix}-relations-{kind}{suffix}" for suffix in (".png", ".svg")])
        for site in sorted(rows["site"].unique()):
            if _has_values(rows[(rows["relation"] == ALL) & (rows["site"] == site)], metric):
                figure = plot_layers(rows, task=task, relation=ALL, site=site, metric=metric)
                place = _plain([str(site)])[0]
                written += save_figure(
                    figure, [out / f"{prefix}-{place}-{kind}{suffix}" for suffix in (".png", ".svg")]
                )
    if not written:
        raise LensbenchError(f"nothing to plot: the summary has no values of {metric}; was a baseline of it run?")
    return written


def _has_values(rows: pd.DataFrame, metric: str) -> bool:
    return bool(len(rows)) and not of_methods(rows[rows["rule"] == "fixed"], metric).empty
