"""The table in which a task's README states its figures and thresholds."""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lensbench.errors import unknown_name
from lensbench.tasks import Task, TaskError
from lensbench.tasks.audit.findings import ALL, DEFAULT_THRESHOLDS
from lensbench.tasks.audit.tables import COLUMNS

HEADING = "## Leak audit"
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Stated:
    """What a README says of one check.

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
