"""What an audit finds and what is allowed, and the table of both, which a task's README states too."""

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lensbench.errors import unknown_name
from lensbench.tasks import Task, TaskError

ALL = "all"
"""In place of a relation's name: what holds for every relation without a threshold of its own."""

# A value passes when it is not above its threshold. The order is that of every table.
DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "answer in text": 0.0,
    # Only where the sources are to state the answer: there it is no leak, and a task may still ask for less.
    "answer given": 1.0,
    "answer in subject": 0.0,
    "relation words": 0.0,
    "answer in knowledge": 0.0,
    "knowledge repeats": 0.0,
    "read at token 0": 0.0,
    "too few classes": 0.0,
    "best constant": 0.10,
    "gold is first": 0.05,
    "gold is in the middle": 0.05,
    "median popularity": 0.05,
    "most popular": 0.05,
    "fold imbalance": 0.15,
    "near duplicates": 0.02,
    "subject characters": 0.10,
    "alias collisions": 0.0,
    "token collisions": 0.0,
    "alias token collisions": 0.0,
}
# Made only with a model's tokenizer.
MODEL_CHECKS = frozenset({"token collisions", "alias token collisions"})

Thresholds = Mapping[tuple[str, str], float]
"""The most that is allowed, by (relation, check); the relation may be `all`."""

Measurement = tuple[float, str]
"""A value, and in words what was seen."""


@dataclass(frozen=True)
class AuditFinding:
    """One figure of the audit.

    Attributes:
        relation: Name of the relation.
        check: What was checked, one of the keys of `DEFAULT_THRESHOLDS`.
        value: The figure. Of a leak the share of facts; of a guess its accuracy minus what chance allows.
        threshold: The most that is allowed.
        ok: Whether the value is within the threshold.
        detail: The figure in words, with the first examples.
    """

    relation: str
    check: str
    value: float
    threshold: float
    ok: bool
    detail: str


def threshold_of(thresholds: Thresholds, relation: str, check: str) -> float:
    """Return the threshold of a relation's own, else the one for all relations, else the default."""
    general = thresholds.get((ALL, check), DEFAULT_THRESHOLDS[check])
    return thresholds.get((relation, check), general)


def within(value: float, threshold: float) -> bool:
    """Tell whether a value passes; what differs by rounding only does."""
    return value <= threshold + 1e-9


def examples(hits: Sequence[str], most: int = 3) -> str:
    """Return the first of what was found, and how many more there are."""
    return ", ".join(hits[:most]) + (f" and {len(hits) - most} more" if len(hits) > most else "")


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


HEADING = "## Leak audit"
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Stated:
    """The value and threshold that a README states for one check.

    Attributes:
        value: the figure.
        threshold: the most that is allowed.
    """

    value: float
    threshold: float


def read_table(task: Task) -> dict[tuple[str, str], Stated] | None:
    """Read the leak table of a task's README.

    Args:
        task: a loaded task; rows of relations that were left out of it are read too.

    Returns:
        Value and threshold by (relation, check), the relation being `all` for those without a row of their own; None
        where there is no README, or no section "Leak audit" in it.

    Raises:
        TaskError: a section without a table, or a malformed row. The message is one line.
    """
    readme = task.folder / "README.md"
    if not readme.is_file():
        return None
    try:
        lines = readme.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{readme}:1: cannot be read ({error}); expected UTF-8 text; save it so") from None
    if HEADING not in lines:
        return None
    relations = {ALL, *task.every.relations}
    stated: dict[tuple[str, str], Stated] = {}
    for number, cells in _rows(readme, lines):
        key, row = _parse(f"{readme}:{number}", cells, relations)
        if key in stated:
            raise _malformed(f"{readme}:{number}", f"a second row for {' / '.join(key)}", "one row", "remove one")
        stated[key] = row
    return stated


def _rows(readme: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of the first table under the heading, with their lines; its header is checked."""
    at = lines.index(HEADING)
    section = lines[at + 1 :]
    section = section[: next((i for i, line in enumerate(section) if line.startswith("## ")), len(section))]
    start = next((i for i, line in enumerate(section) if line.startswith("|")), None)
    expected = f"a table with the columns {', '.join(COLUMNS)}"
    do = "write the one that `lensbench audit TASK --markdown` prints"
    if start is None:
        raise _malformed(f"{readme}:{at + 1}", "no table in this section", expected, do)
    table = section[start:]
    table = table[: next((i for i, line in enumerate(table) if not line.startswith("|")), len(table))]
    first = at + start + 2
    if _cells(table[0]) != list(COLUMNS) or len(table) < 2 or not re.fullmatch(r"[|:\s-]+", table[1]):
        raise _malformed(f"{readme}:{first}", f"{table[0]!r:.60}", expected, do)
    for number, line in enumerate(table[2:], first + 2):
        yield number, _cells(line)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in _CELL.split(line.strip().removeprefix("|").removesuffix("|"))]


def _parse(where: str, cells: list[str], relations: Collection[str]) -> tuple[tuple[str, str], Stated]:
    if len(cells) != len(COLUMNS):
        raise _malformed(where, f"a row of {len(cells)} cells", f"{len(COLUMNS)}: {', '.join(COLUMNS)}", "write them")
    relation, check, *figures, _seen = cells
    for kind, name, known in (("relation", relation, relations), ("check", check, DEFAULT_THRESHOLDS)):
        if name not in known:
            raise TaskError(f"{where}: {unknown_name(kind, name, known)}")
    numbers = [_number(text) for text in figures]
    for text, number in zip(figures, numbers, strict=True):
        if number is None:
            raise _malformed(where, f"{text!r}", "a number", "write the figure")
    value, threshold = (number for number in numbers if number is not None)
    return (relation, check), Stated(value, threshold)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _malformed(where: str, given: str, expected: str, do: str) -> TaskError:
    return TaskError(f"{where}: {given}; expected {expected}; {do}")
