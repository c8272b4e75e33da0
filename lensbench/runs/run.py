"""A run folder, read back: records, summary, plots. Needs no model."""

import html
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from lensbench.errors import LensbenchError
from lensbench.report.figure import Choice, draw_figure
from lensbench.report.notebook import best_as_html
from lensbench.results.calibrations import Calibrated, read_calibrated
from lensbench.results.compare import between_methods
from lensbench.results.crossed_files import CROSSED, read_crossed
from lensbench.results.method_checks import MethodChecks, read_checks
from lensbench.results.metrics import metrics
from lensbench.results.records import (
    CORRECTED,
    NO_BASELINE,
    RECORDS,
    read_measures,
    read_records,
    with_attempts,
)
from lensbench.results.run_file import changed_file, read_run, rules_of
from lensbench.results.samples import RequiredBaseline, SummarySettings
from lensbench.results.summary import (
    EARLIER_SUMMARY_COLUMNS,
    SUMMARY_COLUMNS,
    accuracy_column,
    best_layers,
    summary_and_power,
)
from lensbench.runs.csv_tables import AGAIN, read_csv, write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUMMARY = "summary.csv"
METRICS = "metrics.csv"
COMPARISONS = "comparisons.csv"
PLOTS = "plots"


class Run:
    """A run folder.

    Args:
        path: the folder that `lensbench evaluate` wrote.

    Raises:
        LensbenchError: not a run folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = read_run(self.path)

    @property
    def done(self) -> list[str]:
        """The files of the cells that have records."""
        return [file for file, cell in self.info["cells"].items() if cell["status"] == "done"]

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row a prediction, of all cells of the folder that are done.

        Raises:
            LensbenchError: a file is missing, damaged, or not the one that the run wrote.
        """
        for file in self.done:
            changed = changed_file(self.path, file, self.info["cells"][file])
            if changed is not None and changed.exists():
                raise LensbenchError(f"{changed} is not the file that this run wrote: {AGAIN}")
        return with_attempts(read_records(self.path / RECORDS, self.done), self.info)

    @cached_property
    def crossed(self) -> pd.DataFrame:
        """The credit of items under each other's activations, for permutation tests: a row for each that is above 0.

        Raises:
            LensbenchError: a table is damaged or missing. Without it a verdict would be given by another test.
        """
        return read_crossed(self.path, [file for file in self.done if self.info["cells"][file].get(CROSSED)])

    @cached_property
    def measures(self) -> pd.DataFrame:
        """One row an item, layer, attempt and measure: how good texts are, how far lenses are from the model."""
        return read_measures(self.path, self.done)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a method or baseline, layer and question: accuracy with its band, gap, verdict."""
        try:
            frame = read_csv(self.path / SUMMARY)
        except LensbenchError as error:
            raise LensbenchError("; ".join(filter(None, (str(error), self._failure)))) from None
        if tuple(frame.columns) not in (SUMMARY_COLUMNS, EARLIER_SUMMARY_COLUMNS):
            raise LensbenchError(f"{self.path / SUMMARY} is not a summary: {AGAIN}")
        return frame.reindex(columns=list(SUMMARY_COLUMNS))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a measure: the rows of metrics.csv."""
        return read_csv(self.path / METRICS)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """One row for two methods at a task and site: their paired difference over the items that both answered."""
        return read_csv(self.path / COMPARISONS).astype({"other_layer": "Int16"})

    @cached_property
    def best(self) -> pd.DataFrame:
        """One row a task, relation, site and method: its best layer and the strongest baselines there.

        The best layer is that of the highest accuracy by the deciding score. Where a method makes several attempts the
        column `rule` says which of them counts: `fixed` is the first, `selected` the best on the other folds.
        """
        return best_layers(self.summary, self.score, rules_of(self.info))

    @property
    def score(self) -> str:
        """The score that decides, `corrected` or `raw`."""
        return str(self.info["setting"].get("score", CORRECTED))

    @property
    def calibrations(self) -> dict[str, Calibrated | None]:
        """The calibration of the versions of the methods in this run, by name; None where there was none."""
        kept = self.info.get("calibration", {})
        return {name: None if one is None else read_calibrated(one) for name, one in kept.items()}

    @property
    def checks(self) -> dict[str, MethodChecks]:
        """What the checks found of the methods, by name; those of a run of before there were any are not in it."""
        methods = self.info.get("methods", {})
        return {name: read_checks(one["checks"]) for name, one in methods.items() if "checks" in one}

    @property
    def summaries(self) -> dict[tuple[str, str], str]:
        """(task, relation) -> what leads to what; runs of earlier versions have none."""
        return dict(zip(_pairs(self, "summaries"), self.info.get("summaries", {}).values(), strict=True))

    @property
    def outside_totals(self) -> set[tuple[str, str]]:
        """The (task, relation) pairs that have no part in a task's total."""
        return {*_pairs(self, "selected"), *_pairs(self, "by_token")}

    @property
    def unanswered(self) -> dict[str, str]:
        """The relations that a method could not answer, `method: relation`, with the reason."""
        cells = [cell for cell in self.info["cells"].values() if cell["baseline"] == NO_BASELINE]
        return {
            f"{cell['inspector']}: {relation}": reason
            for cell in cells
            for relation, reason in cell.get("not_applicable", {}).items()
        }

    def __repr__(self) -> str:
        cells = len(self.info["cells"])
        return f"Run({str(self.path)!r}): {cells} cell{'s' * (cells != 1)}, {len(self.failed)} failed"

    def _repr_html_(self) -> str:
        said = "".join(f"<p><b>{html.escape(line)}</b></p>" for line in (repr(self), self._failure) if line)
        try:
            return said + best_as_html(self.best, self.info, self.summaries)
        except LensbenchError as error:
            return f"{said}<p>{html.escape(str(error))}</p>"

    @property
    def _failure(self) -> str:
        """How many cells failed, and how the first did; empty where none has."""
        if not self.failed:
            return ""
        file, error = next(iter(self.failed.items()))
        name = self.info["cells"][file]["inspector"]
        many = f"{len(self.failed)} cell{'s' * (len(self.failed) > 1)}"
        return f"{many} failed, the first of {name}: {error.splitlines()[0]} (all: run.failed)"

    @property
    def settings(self) -> SummarySettings:
        """The settings with which its verdicts are made."""
        due = {
            name: {baseline: RequiredBaseline(**one) for baseline, one in baselines.items()}
            for name, baselines in self.info["due"].items()
        }
        methods = self.info.get("methods", {})
        learners = frozenset(name for name, method in methods.items() if method["learns_from"] == "labels")
        return SummarySettings(
            {name: baseline["question"] for name, baseline in self.info["baselines"].items()}, due,
            frozenset(_excused(self.info["cells"])), selected=frozenset(_pairs(self, "selected")),
            apart=frozenset(_pairs(self, "by_token")), prose=frozenset(self.info.get("prose", ())),
            learns_labels=learners, score=self.score, seed=int(self.info["setting"]["seed"]),
            uncalibrated=frozenset(name for name in learners if not _trusted(self.calibrations.get(name))),
            unfit={name: found.first for name, found in self.checks.items() if not found.passed},
        )  # fmt: skip

    @property
    def failed(self) -> dict[str, str]:
        """The cells of the last plan that failed, and how."""
        cells, plan = self.info["cells"], self.info["plan"]  # one that was never begun is in the plan alone
        return {file: cells[file]["error"] for file in plan if file in cells and cells[file]["status"] == "failed"}

    def plot(self, figure: str, **options: Any) -> "Figure":
        """Draw one of the figures of `lensbench plot --figure`, by name.

        Args:
            figure: its name, the name of its module in `lensbench.report.figures`.
            options: what is shown, and how wide (`lensbench.report.figure.Choice`), and what this figure takes besides.

        Raises:
            UsageError: there is no such figure, or it leaves a choice open.
            LensbenchError: the run has nothing to draw.
        """
        try:
            return draw_figure(figure, self, **options)
        except LensbenchError as error:
            if self.failed:
                raise type(error)(f"{error}; {self._failure}") from None
            raise

    def show(self, **choice: Unpack[Choice]) -> "Figure":
        """Draw the chart that the page begins with, which notebooks show: every method, and each beside its baselines.

        Args:
            choice: what is shown, and how wide. A task or site that is left open is the first by name, as on the page.

        Raises:
            UsageError: a choice that the run does not have.
            LensbenchError: the run has nothing to draw.
        """
        table = self.summary
        for column in ("task", "site"):
            if len(table) and choice.get(column) is None:
                choice[column] = str(table[column].min())
            table = table[table[column] == choice.get(column)]
        return self.plot_layers(**choice)

    def plot_layers(self, *, ax: "Axes | None" = None, **choice: Unpack[Choice]) -> "Figure":
        """Draw accuracy over layers, each method beside its baselines; see `lensbench.report.figures.layers`."""
        return self.plot("layers", ax=ax, **choice)

    def plot_gap(self, *, question: str | None = None, ax: "Axes | None" = None, **choice: Unpack[Choice]) -> "Figure":
        """Draw the gaps to the baselines over layers; see `lensbench.report.figures.gap`."""
        return self.plot("gap", question=question, ax=ax, **choice)

    def plot_grid(
        self, *, inspector: str | None = None, ax: "Axes | None" = None, **choice: Unpack[Choice]
    ) -> "Figure":
        """Draw accuracy by source and target layer; see `lensbench.report.figures.grid`."""
        return self.plot("grid", inspector=inspector, ax=ax, **choice)

    def plot_relations(self, **choice: Unpack[Choice]) -> "Figure":
        """Draw a panel for each relation of a task; see `lensbench.report.figures.relations`."""
        return self.plot("relations", **choice)

    def plot_comparison(
        self, before: "Run", *, inspector: str | None = None, ax: "Axes | None" = None, **choice: Unpack[Choice]
    ) -> "Figure":
        """Draw this run beside an earlier one; see `lensbench.report.figures.compare`."""
        names = (before.path.resolve().name, self.path.resolve().name)
        return self.plot("compare", before=before, names=names, inspector=inspector, ax=ax, **choice)


def load_run(path: Path | str) -> Run:
    """Read a run folder."""
    return Run(path)


def finish(path: Path) -> None:
    """Write summary, metrics and plots of a run folder from its records.

    Raises:
        LensbenchError: they cannot be written. Records stay as they are.
    """
    try:
        _finish(Run(path))
    except OSError as error:
        raise LensbenchError(
            f"summary and plots of {path} cannot be written ({error.strerror or error}); its records are kept: free "
            "some space, and run the same command again"
        ) from None


def _finish(run: Run) -> None:
    from lensbench.report.writing import plot_run

    path = run.path
    if not run.done:
        # What an earlier plan left here must not pass for the result of this one.
        for name in (SUMMARY, METRICS, COMPARISONS):
            (path / name).unlink(missing_ok=True)
        shutil.rmtree(path / PLOTS, ignore_errors=True)
        return
    settings = run.settings
    summary, power = summary_and_power(run.records, settings, run.crossed)
    write_csv(summary, path / SUMMARY)
    write_csv(between_methods(run.records, settings), path / COMPARISONS)
    measured = metrics(run.records, run.measures, seed=settings.seed)
    write_csv(pd.concat([frame for frame in (measured, power) if len(frame)] or [measured]), path / METRICS)
    if (summary["layer"].notna() & (summary["baseline"] == NO_BASELINE)).any():
        plot_run(summary, path / PLOTS, accuracy_column(run.score))


def _trusted(found: Calibrated | None) -> bool:
    """Whether a method was calibrated, and did what an instrument must do."""
    return found is not None and not found.failed_checks


def _pairs(run: Run, key: str) -> list[tuple[str, str]]:
    """The (task, relation) pairs that a list or table in `run.json` is about."""
    parts = [name.partition("/") for name in run.info.get(key, ())]
    return [(task, relation) for task, _, relation in parts]


def _excused(cells: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Where a rival could not answer: (task, site, inspector, baseline, relation)."""
    for cell in cells.values():
        for relation in cell.get("not_applicable", {}):
            yield cell["task"], cell["site"], cell["inspector"], cell["baseline"], relation
