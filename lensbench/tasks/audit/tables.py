"""The table of an audit, as the command shows it and as a task's README holds it."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lensbench.tasks.audit.findings import ALL, DEFAULT_THRESHOLDS, AuditFinding, Thresholds, threshold_of, within

COLUMNS = ("relation", "check", "value", "threshold", "what was seen")
# A proposed threshold lets a figure move by this much at least, and is a multiple of the step.
_MARGIN = 0.015
_STEP = 0.02
# Names that tell are a property of every relation with classes, and never of the task as a whole.
_ALWAYS_OWN = frozenset({"subject characters"})
_LONGEST = 160


@dataclass(frozen=True)
class AuditRow:
    """One row: a relation's figure, or the highest figure of all relations that have no row of their own."""

    relation: str
    check: str
    value: float
    threshold: float
    detail: str

    @property
    def ok(self) -> bool:
        """Whether the value is within the threshold."""
        return within(self.value, self.threshold)

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """The row as text."""
        value = f"{self.value:.3f}".replace("-0.000", "0.000")
        return (self.relation, self.check, value, f"{self.threshold:g}", textwrap.shorten(self.detail, _LONGEST))


def table_rows(findings: Sequence[AuditFinding], thresholds: Thresholds) -> list[AuditRow]:
    """Return the rows `all`, in the order of the checks, and then those of relations, in the order of the findings.

    A figure has a row of its own where it is above the threshold that holds for all, where it has a threshold of its
    own, and where the check is about names.

    Args:
        findings: of `audit_task`.
        thresholds: those that it was given.
    """
    general = {check: threshold_of(thresholds, ALL, check) for check in DEFAULT_THRESHOLDS}
    own = [
        finding
        for finding in findings
        if finding.check in _ALWAYS_OWN
        or finding.threshold != general[finding.check]
        or not within(finding.value, general[finding.check])
    ]
    rows = [
        _summed_up(check, general[check], [f for f in same if f not in own])
        for check in DEFAULT_THRESHOLDS
        if (same := [finding for finding in findings if finding.check == check])
    ]
    return rows + [AuditRow(one.relation, one.check, one.value, one.threshold, one.detail) for one in own]


def _summed_up(check: str, threshold: float, findings: Sequence[AuditFinding]) -> AuditRow:
    """The row of all relations that have none of their own: the highest of their figures."""
    if not findings:
        return AuditRow(ALL, check, 0.0, threshold, "none besides those below")
    highest = max(findings, key=lambda finding: finding.value)
    detail = f"highest in {highest.relation}; {highest.detail}" if round(highest.value, 3) else ""
    return AuditRow(ALL, check, highest.value, threshold, detail)


def proposed(findings: Iterable[AuditFinding]) -> dict[tuple[str, str], float]:
    """Return thresholds under which every figure passes: the default, or else the value with a margin, rounded up.

    A share is never allowed to be more than 1.
    """
    above = [finding for finding in findings if not within(finding.value, DEFAULT_THRESHOLDS[finding.check])]
    return {(one.relation, one.check): _with_margin(one.value) for one in above}


def _with_margin(value: float) -> float:
    rounded = round(math.ceil((value + _MARGIN) / _STEP - 1e-9) * _STEP, 2)
    return min(rounded, 1.0) if value <= 1 else rounded


def markdown(rows: Iterable[AuditRow]) -> str:
    """Return rows as a table for the section "Leak audit" of a task's README."""
    lines = [" | ".join(COLUMNS), "|".join(["---"] * len(COLUMNS))]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row.cells) for row in rows]
    framed = [f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines]
    return "\n".join(framed)
