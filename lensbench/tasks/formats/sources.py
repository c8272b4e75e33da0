"""Other people's files: how `--tasks` names them, and the rows in them, each with the line where it begins.

The standard library reads the rows: it guesses no types ("007" stays what it is, and "NA" is a name), and knows lines.
"""

import ast
import csv
import io
import json
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from lensbench.errors import UsageError, unknown_name
from lensbench.tasks.facts import SLOT
from lensbench.tasks.files import LONGEST, File, Problems, Report, is_unicode
from lensbench.tasks.formats.texts import fill_placeholder, is_template, mend
from lensbench.utils.foreign import reason_of

FILE_SCHEMES = (
    "lre", "patchscopes", "hopping", "personaqa", "counterfact", "popqa", "pararel", "ravel", "mquake", "twohopfact",
    "workspace",
)  # fmt: skip
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_COMMON = ("name", "question")
COLUMNS = ("subject", "answer", "relation", "source", "prompt", "question", "aliases", "choices")
OPTIONS = {
    **dict.fromkeys(FILE_SCHEMES, _COMMON),
    "pararel": (*_COMMON, "patterns"),
    "table": ("name", *COLUMNS),
    "hf": ("name", *COLUMNS, "split", "config", "revision"),
}


@dataclass(frozen=True)
class Source:
    """A file or data set of another format, and how its columns are to be read.

    Attributes:
        scheme: one of `FILE_SCHEMES`, `hf`, or `table` for a file without a scheme.
        place: the path, or the name of a data set on the Hub.
        options: what stands behind the `?`, by key, in alphabetical order.
    """

    scheme: str
    place: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> Path:
        """The path of the file; for a data set of the Hub a path that only names it."""
        return Path(f"hf:{self.place}") if self.is_remote else Path(self.place).expanduser()

    @property
    def is_remote(self) -> bool:
        """Whether the place is the name of a data set on the Hub."""
        return self.scheme == "hf" and not _is_local(self.place)

    def option(self, key: str) -> str | None:
        """Value of an option; None where it was not given."""
        return dict(self.options).get(key)


def parse_spec(spec: str) -> tuple[Source, str] | None:
    """Read a specification that has a scheme, or is a table's path.

    Args:
        spec: Such as `lre:FILE.json`, `hf:ORG/NAME?split=test&subject=name&answer=job`, `data.csv/RELATION?...`.

    Returns:
        The source and the relation that was named ("" for all); None where this is no file of another format.

    Raises:
        UsageError: An unknown scheme or option, or options in another form.
    """
    head, _, query = spec.partition("?")
    scheme, colon, place = head.partition(":")
    if not colon or scheme not in OPTIONS or scheme == "table":
        if _looks_like_scheme(head):
            raise unknown_name("format", scheme, [*FILE_SCHEMES, "hf"], "see docs/readers.md")
        if not any(Path(part).suffix.lower() in TABLE_ENDINGS for part in (head, str(Path(head).parent))):
            return None
        scheme, place = "table", head
    if not place:
        _refuse(spec, f"{scheme}: and a file" if scheme != "hf" else "hf:ORG/NAME, or hf: and a path")
    place, relation = _split_relation(spec, scheme, place)
    return Source(scheme, place, _parse_options(spec, scheme, query)), relation


def _looks_like_scheme(head: str) -> bool:
    scheme, colon, _ = head.partition(":")
    # One letter is a drive of Windows.
    return bool(colon) and len(scheme) > 1 and scheme.isidentifier() and not Path(head).exists()


def _is_local(place: str) -> bool:
    path = Path(place).expanduser()
    return path.exists() or path.is_absolute() or place.startswith((".", "~")) or path.suffix in TABLE_ENDINGS


def _split_relation(spec: str, scheme: str, place: str) -> tuple[str, str]:
    path = Path(place).expanduser()
    if scheme == "hf" and not _is_local(place):
        parts = place.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            _refuse(spec, "hf:ORG/NAME, hf:ORG/NAME/RELATION, or hf: and a path that exists")
        return "/".join(parts[:2]), "".join(parts[2:])
    before, slash, last = place.rpartition("/")
    nothing_there = not path.exists() and slash
    if nothing_there and (path.parent.is_file() or (scheme == "hf" and path.parent.is_dir() and not path.suffix)):
        return before, last
    return place, ""


def _parse_options(spec: str, scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not equals or not value:
            _refuse(spec, f"KEY=VALUE in {part!r}, such as subject=name")
        if key not in OPTIONS[scheme]:
            raise unknown_name(f"option of {scheme}{':' if scheme != 'table' else ''}", key, OPTIONS[scheme])
        if key in options:
            _refuse(spec, f"each option once, and {key!r} is there twice")
        # A comma, which separates tasks, and an & can be written %2C and %26.
        options[key] = unquote(value)
    return tuple(sorted(options.items()))


def _refuse(spec: str, expected: str) -> NoReturn:
    raise UsageError(f"task {spec!r}: expected {expected}; see docs/readers.md")


@dataclass(frozen=True)
class Row:
    """One row of a file or data set, with the line where it begins.

    A cell that is wrong is noted as a problem, which ends the reading in the end, and is empty until then.
    """

    report: Report
    line: int
    cells: Mapping[str, Any]

    def problem(self, given: str, expected: str, do: str) -> None:
        """Note what was given in this row, what was expected, and what to do."""
        self.report.problem(self.line, given, expected, do)

    def text(self, column: str) -> str:
        """A cell's text, which must be there, not empty, and Unicode."""
        value = self.cells.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if column not in self.cells:
            self.problem(f"no {column!r}", f"a text in {column!r}", "add it or remove the row")
        elif value is not None and not isinstance(value, str):
            self.problem(f"{column!r} is a {type(value).__name__}", "a text", "write it so")
        elif value is None or not mend(value):
            self.problem(f"{column!r} is empty", "a text", "fill it or remove the row")
        elif not is_unicode(mend(value)):
            self.problem(f"{column!r} holds half of a surrogate pair", "Unicode", "mend the text")
        else:
            return mend(value)
        return ""

    def name(self, column: str) -> str:
        """A cell's text that is a name: a subject or an answer."""
        text = self.text(column)
        if len(text) > LONGEST:
            self.problem(f"{column!r} of {len(text)} characters", f"at most {LONGEST}", "shorten the name")
        return text

    def prompt(self, column: str) -> str:
        """A cell's prompt, with the slot in the place of its placeholder: the last x that is a word of its own."""
        text = self.text(column)
        filled = text if SLOT in text else fill_placeholder(text)
        if text and (filled is None or not is_template(filled) or filled.startswith(SLOT)):
            self.problem(f"{column} {text!r}", "a placeholder x after other words", "mend the prompt")
        return filled or ""

    def names(self, column: str) -> tuple[str, ...]:
        """A cell's list: a list, one written as JSON or Python, or texts with | between."""
        value = self.cells.get(column)
        if isinstance(value, str):
            value = _parse_list(mend(value))
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(one, str | int) for one in value):
            self.problem(f"{column!r} is {value!r:.60}", "a list of texts, or texts with | between", "write it so")
            return ()
        return tuple(dict.fromkeys(mend(str(one)) for one in value if is_unicode(mend(str(one))) and mend(str(one))))

    def number(self, column: str) -> float | None:
        """A cell's number; None where it is empty."""
        value = self.cells.get(column)
        if value is None or value == "":
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            self.problem(f"{column!r} is {value!r:.60}", "a number", "write one, or leave it empty")
            return None


def _parse_list(text: str) -> Any:
    """The list that a text is: JSON, Python, as numpy prints it (no commas), or parts with | between."""
    if not (text.startswith("[") and text.endswith("]")):
        return [part for part in text.split("|") if part.strip()]
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        value = ast.literal_eval(text)
        # Python joins texts that have no comma between them, as numpy prints them.
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        quoted = [token.string for token in tokens if token.type == tokenize.STRING]
        if not isinstance(value, list) or len(quoted) <= len(value):
            return value
        return [ast.literal_eval(one) for one in quoted] if "," not in _outside(text, quoted) else text
    return text  # no list: a problem of its row


def _outside(text: str, quoted: Iterable[str]) -> str:
    """What stands in a text beside its quoted parts."""
    for one in quoted:
        text = text.replace(one, "", 1)
    return text


def open_file(source: Source, problems: Problems, what: str) -> File:
    """Read a source's file; what cannot be read is a problem.

    Raises:
        TaskError: it cannot be read, or is no UTF-8.
    """
    file = File(source.path, problems, f"give the path of {what}")
    problems.stop_if_any()
    return file


def read_csv(file: File, delimiter: str, needed: Iterable[str]) -> list[Row]:
    """Rows of a file with a header, by column; quoted cells may hold newlines."""
    reader = csv.reader(io.StringIO(file.text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header, before = None, 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if not _check_header(file, line, header, needed):
                    return []
            elif len(cells) != len(header):
                expected = f"{len(header)}, as in the header"
                file.problem(line, f"{len(cells)} cells", expected, "quote cells that hold the delimiter or a newline")
            else:
                rows.append(Row(file, line, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        long = "field larger" in str(error)
        expected = "shorter cells; an open quote runs on" if long else "cells with quotes doubled inside quotes"
        file.problem(before + 1, f"not CSV ({error})", expected, "repair the line")
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


def read_json_lines(file: File) -> list[Row]:
    """Objects of a file with one a line."""
    return [Row(file, line, cells) for line, cells in file.json_lines()]


def parse_json(file: File) -> Any:
    """The document of a JSON file; a problem, and None, where it is none."""
    try:
        return json.loads(file.text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and error.lineno > 1
        do = "rename it to .jsonl, if it has one object a line" if lines else "repair the file"
        file.problem(error.lineno, f"not JSON ({error.msg} at column {error.colno})", "JSON", do)
    except (ValueError, RecursionError) as error:
        file.problem(1, f"not JSON ({reason_of(error)})", "a list or an object of rows", "repair the file")
    return None


def read_object(
    file: File, problems: Problems, expected: str = "an object by name", do: str = "give the file as it is published"
) -> Mapping[str, Any]:
    """Read a JSON file that is one object.

    Args:
        file: the file.
        problems: where a file that is none is noted.
        expected: what the object is like, for the error.
        do: what to do about a file that is none.

    Raises:
        TaskError: it is something else.
    """
    document = parse_json(file)
    problems.stop_if_any()
    if not isinstance(document, dict):
        file.problem(1, f"a JSON {type(document).__name__}", expected, do)
        problems.stop_if_any()
    return document if isinstance(document, dict) else {}


def read_json_rows(file: File) -> list[Row]:
    """Objects of a JSON file that is a list of them."""
    document = parse_json(file)
    if document is None or not isinstance(document, list):
        if document is not None:
            file.problem(1, f"a JSON {type(document).__name__}", "a list of objects", "or give JSON Lines (.jsonl)")
        return []
    rows: list[Row] = []
    for found in elements(file.text):
        if isinstance(found.value, dict):
            rows.append(Row(file, found.line, found.value))
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
