"""Rows of CSV, TSV, JSON and JSON Lines files, each with the line where it begins.

The standard library reads them: it guesses no types ("007" stays what it is, and "NA" is a name), and it knows lines.
"""

import ast
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lensbench.tasks.formats.spec import Source
from lensbench.tasks.formats.texts import mend
from lensbench.tasks.lines import LONGEST, is_unicode
from lensbench.tasks.problems import File, Problems

Cells = Mapping[str, Any]


@runtime_checkable
class Report(Protocol):
    """Where problems are noted: a file, or a data set that is no text."""

    def problem(self, line: int, given: str, expected: str, do: str) -> None:
        """Note what was given in a line, what was expected, and what to do."""


@dataclass(frozen=True)
class DatasetRows:
    """A data set whose rows are counted instead of lines."""

    path: str
    problems: Problems

    def problem(self, line: int, given: str, expected: str, do: str) -> None:
        """Note what was given in a row, what was expected, and what to do."""
        self.problems.found.append((self.path, line, f"{given}; expected {expected}; {do}"))


def open_file(source: Source, problems: Problems, what: str) -> File:
    """Read a source's file; what cannot be read is a problem.

    Raises:
        TaskError: it cannot be read, or is no UTF-8.
    """
    file = File(source.path, problems, f"give the path of {what}")
    problems.stop_if_any()
    return file


def read_csv(file: File, delimiter: str, needed: Iterable[str]) -> list[tuple[int, Cells]]:
    """Rows of a file with a header, by column; quoted cells may hold newlines."""
    reader = csv.reader(io.StringIO(file.content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Cells]] = []
    header, before = None, 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cells):
                continue
            if header is None:
                header = cells
                if not _check_header(file, line, header, needed):
                    return []
            elif len(cells) != len(header):
                expected = f"{len(header)}, as in the header"
                file.problem(line, f"{len(cells)} cells", expected, "quote cells that hold the delimiter or a newline")
            else:
                rows.append((line, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        file.problem(before + 1, f"not CSV ({error})", "cells with quotes doubled inside quotes", "repair the line")
    if header is None:
        file.problem(1, "no header", f"the columns {', '.join(needed)}", "give a file with a header and rows")
    return rows


def _check_header(file: File, line: int, header: list[str], needed: Iterable[str]) -> bool:
    missing = [name for name in needed if name not in header]
    for name in missing:
        file.problem(
            line, f"no column {name!r}", f"a header with it (found {', '.join(header)!r:.200})", "add the column"
        )
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    for name in twice:
        file.problem(line, f"two columns {name!r}", "each column once", "rename one")
    return not missing and not twice


def read_json_lines(file: File) -> list[tuple[int, Cells]]:
    """Objects of a file with one a line."""
    rows: list[tuple[int, Cells]] = []
    for number, line in enumerate(file.lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            message = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
            file.problem(number, f"not JSON ({message})", "one JSON object a line", "repair the line")
            continue
        if not isinstance(row, dict):
            file.problem(number, f"a JSON {type(row).__name__}", "a JSON object", "write the row as an object")
            continue
        rows.append((number, row))
    return rows


def parse_json(file: File) -> Any:
    """The document of a JSON file; a problem, and None, where it is none."""
    try:
        return json.loads(file.content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        file.problem(error.lineno, f"not JSON ({error.msg} at column {error.colno})", "JSON", "repair the file")
    except RecursionError:
        file.problem(1, "not JSON (too deep)", "a list or an object of rows", "repair the file")
    return None


def read_json_rows(file: File) -> list[tuple[int, Cells]]:
    """Objects of a JSON file that is a list of them."""
    document = parse_json(file)
    if document is None or not isinstance(document, list):
        if document is not None:
            file.problem(1, f"a JSON {type(document).__name__}", "a list of objects", "or give JSON Lines (.jsonl)")
        return []
    rows: list[tuple[int, Cells]] = []
    for found in elements(file.content.decode("utf-8-sig")):
        if isinstance(found.value, dict):
            rows.append((found.line, found.value))
        else:
            given = f"a JSON {type(found.value).__name__}"
            file.problem(found.line, given, "a JSON object", "write the row as an object")
    return rows


class Element(NamedTuple):
    """One value of a JSON list or object: its line, the place where it begins, its key ("" in a list)."""

    line: int
    at: int
    key: str
    value: Any


def elements(text: str, start: int = 0) -> Iterator[Element]:
    """Values of the JSON list or object that begins at `start`.

    The text must be JSON: this only finds what `json.loads` does not say.
    """
    decoder = json.JSONDecoder()
    at = _skip(text, start)
    is_object = text[at] == "{"
    at, line, counted, key = _skip(text, at + 1), 1, 0, ""
    while text[at] not in "]}":
        if is_object:
            key, at = decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        line, counted = line + text.count("\n", counted, at), at
        value, end = decoder.raw_decode(text, at)
        yield Element(line, at, key, value)
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def text_of(report: Report, line: int, cells: Cells, column: str) -> str | None:
    """A cell's text; a problem, and None, where it is missing, empty, too long, no Unicode or no text."""
    value = cells.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if column not in cells:
        report.problem(line, f"no {column!r}", f"a text in {column!r}", "add it or remove the row")
    elif value is not None and not isinstance(value, str):
        report.problem(line, f"{column!r} is a {type(value).__name__}", "a text", "write it so")
    elif value is None or not mend(value):
        report.problem(line, f"{column!r} is empty", "a text", "fill it or remove the row")
    elif not is_unicode(mend(value)):
        report.problem(line, f"{column!r} holds half of a surrogate pair", "Unicode", "mend the text")
    else:
        return mend(value)
    return None


def name_of(report: Report, line: int, cells: Cells, column: str) -> str | None:
    """A cell's text that is a name: a subject or an answer."""
    text = text_of(report, line, cells, column)
    if text is not None and len(text) > LONGEST:
        report.problem(line, f"{column!r} of {len(text)} characters", f"at most {LONGEST}", "shorten the name")
        return None
    return text


def names_of(report: Report, line: int, cells: Cells, column: str) -> tuple[str, ...] | None:
    """A cell's list: a list, one written as JSON or Python, or texts with | between; a problem where it is none."""
    value = cells.get(column)
    if isinstance(value, str):
        value = _parse_list(value.strip())
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(one, str | int) for one in value):
        report.problem(line, f"{column!r} is {value!r:.60}", "a list of texts, or texts with | between", "write it so")
        return None
    return tuple(dict.fromkeys(mend(str(one)) for one in value if is_unicode(mend(str(one))) and mend(str(one))))


def _parse_list(text: str) -> Any:
    if text.startswith("["):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return [part for part in text.split("|") if part.strip()]


def number_of(report: Report, line: int, cells: Cells, column: str) -> float | None:
    """A cell's number; None where it is empty, and a problem where it is no number."""
    value = cells.get(column)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        report.problem(line, f"{column!r} is {value!r:.60}", "a number", "write one, or leave it empty")
        return None
