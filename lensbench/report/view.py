"""What a figure shows of a summary: which task, relation, site, measure and rule, and how it is named in words."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.report.figure import Choice
from lensbench.report.panels import of_methods
from lensbench.report.style import inches, label
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.verdicts import USED, VERDICTS

RULES = ("fixed", "selected", "oracle")
METRICS = ("accuracy_corrected", "accuracy", *(f"gap:{question}" for question in VERDICTS))
# As they stand in a text; the report knows no tasks.
ORDER_OF_SITES = ("subject", "t1", "t2", "answer")
Y_LABELS = {
    "accuracy_corrected": "Accuracy (prior-corrected)",
    "accuracy": "Accuracy (raw)",
    "gap:uses_activation": "Gap: uses the activation",
    "gap:beats_text": "Gap: beats the text",
    "gap:target_specific": "Gap: target-specific",
    f"gap:{USED}": "Effect: share of the whole residual's",
}
_SCALES = {
    (False, False): "\ndotted: chance",
    (False, True): "\nrelation mean, chance = 0",
    (True, False): "",
    (True, True): "\nrelation mean of gap / (1 - chance)",
}
"""(gap, total) -> the second line of the y label."""


@dataclass(frozen=True)
class View:
    """The choice of rows that a figure shows, its width and its title.

    Attributes:
        task: by default the only one.
        relation: by default `all`, or the only one.
        site: by default the only one.
        metric: one of METRICS.
        rule: which attempt counts where a method makes several: `fixed`, `selected` or `oracle`.
        width: `column`, `text`, `page`, or inches.
        title: whether the figure says at its top what it is; a caption may.
    """

    task: str | None = None
    relation: str | None = None
    site: str | None = None
    metric: str = "accuracy_corrected"
    rule: str = "fixed"
    width: str | float = "page"
    title: bool = True

    @property
    def is_gap(self) -> bool:
        """Whether a difference to rivals is shown, not a score."""
        return self.metric.startswith("gap:")

    @property
    def total(self) -> bool:
        """Whether it is about the mean of all relations."""
        return self.relation == ALL

    @property
    def inches(self) -> float:
        """The width of the figure in inches."""
        return inches(self.width)

    @property
    def y_label(self) -> str:
        """The label of the vertical axis, with its scale."""
        return Y_LABELS[self.metric] + _SCALES[self.is_gap, self.total]

    def resolved(self, table: pd.DataFrame, *columns: str) -> "View":
        """Return the view with a value for each column that the caller left open, where a table leaves no choice.

        Raises:
            UsageError: a value that the table does not have, or several to choose from.
            LensbenchError: an empty table.
        """
        if self.metric not in METRICS:
            raise unknown_name("metric", self.metric, METRICS)
        if table.empty:
            raise LensbenchError("nothing to plot: the run has no results; run `lensbench evaluate` with its --out")
        found, rows = self, table
        for column in columns:
            chosen: dict[str, Any] = {column: _value(rows, column, getattr(self, column))}
            found = replace(found, **chosen)
            rows = rows[rows[column] == chosen[column]]
        return found

    def chosen(self, summary: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a summary that are to be drawn.

        Raises:
            LensbenchError: none, or those of several models.
        """
        rows = summary[summary["rule"] == self.rule]
        for column in ("task", "relation", "site"):
            rows = rows[rows[column] == getattr(self, column)]
        where = f"task {self.task!r}, relation {self.relation!r}, site {self.site!r}, rule {self.rule!r}"
        if rows["model"].nunique() > 1:
            raise LensbenchError(f"the summary has several models at {where}: plot one at a time")
        if not of_methods(rows, self.metric)["layer"].notna().any():
            raise LensbenchError(f"nothing to plot: the summary has no {self.metric} of a method at {where}")
        return rows

    def title_of(self, methods: Sequence[str], counted: str = "") -> str:
        """Return what is shown, in words.

        Args:
            methods: that are shown.
            counted: what `counted` returns, for a panel in axes of the caller, which have no note below.
        """
        what = label(self.task or "")
        if self.relation not in (ALL, None):
            what = f"{what} \N{RIGHTWARDS ARROW} {label(self.relation or '')}"
        if self.site is not None:
            what = f"{what}, read at {label(self.site)}"
        if self.site == "subject":
            # Nobody has asked the model at the subject: a score there is the reader's, not the place of a fact.
            what += f": what {'this reader' if len(methods) == 1 else 'each reader'} can recover from each layer"
        return f"{what} ({counted})" if counted else what

    def counted(self, table: pd.DataFrame, inspector: str | None = None) -> str:
        """Return the model, and how many subjects, items and relations are shown.

        Args:
            table: the summary.
            inspector: the method, where only one is shown.
        """
        there = table[table["task"] == self.task] if self.task is not None else table
        there = there[there["site"] == self.site] if self.site is not None else there
        own = there[(there["baseline"] == NO_BASELINE) & (there["rule"] == self.rule)]
        shown = own if self.relation is None else own[own["relation"] == self.relation]
        shown = shown if inspector is None else shown[shown["inspector"] == inspector]
        parts = [" and ".join(map(label, sorted(shown["model"].astype(str).unique())))]
        parts += [
            f"{span(shown[column])} {column if column == 'subjects' else 'items'}" for column in ("subjects", "n")
        ]
        if self.relation in (ALL, None) and "relations" in shown and shown["relations"].notna().any():
            whole = len(set(own["relation"]) - {ALL})
            parts.append(f"{span(shown.loc[shown['relation'] == ALL, 'relations'])} of {whole} relations")
        return ", ".join(parts)


def span(numbers: pd.Series) -> str:
    """Return the least and the most of some counts: `120 to 192`."""
    known = numbers.dropna()
    if known.empty:
        return "?"
    least, most = int(known.min()), int(known.max())
    return str(most) if least == most else f"{least} to {most}"


def view_of(choice: Choice) -> View:
    """Return the view of a figure's options.

    Raises:
        UsageError: something that no figure can be asked for.
    """
    known = [field.name for field in fields(View)]
    for name in choice:
        if name not in known:
            raise unknown_name("option of a figure", name, known)
    return View(**choice)


def methods_in(rows: pd.DataFrame) -> list[str]:
    """Return the methods that have rows, in the order of their names."""
    return sorted(rows.loc[rows["baseline"] == NO_BASELINE, "inspector"].unique())


def in_order(sites: Sequence[str]) -> list[str]:
    """Return sites as they follow each other in a text, those of other tasks last."""
    known = {name: place for place, name in enumerate(ORDER_OF_SITES)}
    return sorted(sites, key=lambda site: (known.get(site.partition("/")[0], len(known)), site))


def _value(rows: pd.DataFrame, column: str, given: str | None) -> str:
    there = sorted(str(value) for value in rows[column].unique())
    if given is not None:
        if given not in there:
            raise unknown_name(column, given, there)
        return given
    if column == "relation" and ALL in there and len(there) != 2:
        return ALL
    names = [value for value in there if value != ALL] if column == "relation" else there
    if len(names) != 1:
        raise UsageError(f"the run has several {column}s: give {column}, one of {', '.join(names)}")
    return names[0]
