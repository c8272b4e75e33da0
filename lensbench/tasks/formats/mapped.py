"""Tables with a column mapping: CSV, TSV, JSON, JSON Lines and Parquet files, and the Hub (`hf:`)."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lensbench.errors import UsageError, unknown_name
from lensbench.tasks.facts import ANSWER_SLOT, OWN, SLOT, SOURCE_SLOT, Site, normalise
from lensbench.tasks.formats.building import Draft, SourceRow, Wording
from lensbench.tasks.formats.loading import load_rows
from lensbench.tasks.formats.spec import Source
from lensbench.tasks.formats.tables import (
    Cells,
    DatasetRows,
    Report,
    name_of,
    names_of,
    open_file,
    read_csv,
    read_json_lines,
    read_json_rows,
    text_of,
)
from lensbench.tasks.formats.texts import (
    EXPECTED_TEMPLATE,
    SUBJECT_SOURCES,
    default_inspection,
    default_question,
    is_template,
    place_subject,
    place_whole,
    slug,
)
from lensbench.tasks.problems import Problems

_COLUMNS = ("subject", "answer", "relation", "source", "prompt", "question", "aliases", "choices")
_TEXTS = ("source", "prompt", "question")
_LITERAL = "="
_Table = Sequence[tuple[int, Cells]]


def read_mapped(source: Source, problems: Problems) -> Draft:
    """Read a table by the columns that the options name; subject and answer may be called so."""
    columns = _columns(source)
    report, table, content = _open(source, problems)
    if not table and not problems.found:
        report.problem(1, "no rows", "one fact a row", "give a file with rows")
    if not table:
        problems.stop_if_any()
    known = list(dict.fromkeys(key for _, cells in table for key in cells))
    for key, column in columns.items():
        if not column.startswith(_LITERAL) and column not in known:
            hint = f"map it: ?{key}=COLUMN" if source.option(key) is None else ""
            shown = [" ".join(name.split()) for name in known]
            raise unknown_name(f"column for {key} in {source.path}:", column, shown, hint)
    _check_literals(source, columns)
    rows, forms = _rows(report, table, columns)
    if "choices" in columns:
        _check_choices(report, rows)
    others = sum(sum(form.values()) - max(form.values()) for form in forms.values())
    left_out = {"other forms of a relation's question": others}
    names = dict.fromkeys(row.relation for row in rows)
    wordings = {name: _wording(columns, name, forms.get(name)) for name in names}
    summary = f"Facts of {source.path.name}: from {columns['subject']} to {columns['answer']}."
    return Draft(slug(source.path.stem), summary, content, tuple(rows), wordings, left_out)


def _columns(source: Source) -> dict[str, str]:
    columns = {key: value for key in _COLUMNS if (value := source.option(key)) is not None}
    return {"subject": "subject", "answer": "answer"} | columns


def _open(source: Source, problems: Problems) -> tuple[Report, _Table, bytes]:
    """Where problems are noted, the rows with their lines, and the bytes that the version stands for."""
    ending = source.path.suffix.lower()
    if source.scheme == "hf" or ending == ".parquet":
        rows = load_rows(source)
        content = json.dumps(rows, sort_keys=True, default=str).encode()
        return DatasetRows(str(source.path), problems), list(enumerate(rows, 1)), content
    file = open_file(source, problems, "a CSV, TSV, JSON, JSON Lines or Parquet file")
    if ending in (".csv", ".tsv"):
        # Other columns are checked by name, with the nearest that there is.
        table = read_csv(file, "\t" if ending == ".tsv" else ",", ())
    else:
        table = read_json_rows(file) if ending == ".json" else read_json_lines(file)
    return file, table, file.content


def _check_literals(source: Source, columns: dict[str, str]) -> None:
    for key in _COLUMNS:
        text = columns.get(key, "")
        if not text.startswith(_LITERAL):
            continue
        if key not in _TEXTS:
            expected = f"expected a column; a text may be given for {', '.join(_TEXTS)}"
            raise UsageError(f"{source.path}: {key}={text} is a text; {expected}")
        text = text.removeprefix(_LITERAL)
        if not is_template(text) or text != text.strip() or (key != "prompt" and text.startswith(SLOT)):
            raise UsageError(f"{source.path}: {key}={_LITERAL}{text}: {EXPECTED_TEMPLATE}; see docs/readers.md")


def _rows(report: Report, table: _Table, columns: dict[str, str]) -> tuple[list[SourceRow], dict[str, Counter[str]]]:
    """Rows, and for each relation how often its questions have which form."""
    rows: list[SourceRow] = []
    forms: dict[str, Counter[str]] = {}
    for line, cells in table:
        subject, answer = (name_of(report, line, cells, columns[key]) for key in ("subject", "answer"))
        relation = _relation(report, line, cells, columns)
        lists = [_list(report, line, cells, columns, key) for key in ("aliases", "choices")]
        if subject is None or answer is None or relation is None or None in lists:
            continue
        texts, rank = _texts(report, line, cells, columns, subject)
        question = _question(report, line, cells, columns, subject)
        if texts is None or question is None:
            continue
        if question:
            forms.setdefault(relation, Counter())[question] += 1
        aliases, choices = (entry or () for entry in lists)
        rows.append(SourceRow(relation, subject, answer, line, aliases, texts, rank, choices=choices))
    return rows, forms


def _relation(report: Report, line: int, cells: Cells, columns: dict[str, str]) -> str | None:
    if "relation" not in columns:
        return slug(columns["answer"])
    name = text_of(report, line, cells, columns["relation"])
    return slug(name) if name is not None else None


def _list(report: Report, line: int, cells: Cells, columns: dict[str, str], key: str) -> tuple[str, ...] | None:
    return names_of(report, line, cells, columns[key]) if key in columns else ()


def _texts(
    report: Report, line: int, cells: Cells, columns: dict[str, str], subject: str
) -> tuple[dict[Site, str] | None, int]:
    """The fact's own texts, and how well the source fits its subject."""
    texts: dict[Site, str] = {}
    rank = 0
    source, prompt = columns.get("source", _LITERAL), columns.get("prompt", _LITERAL)
    if not source.startswith(_LITERAL):
        text = text_of(report, line, cells, source)
        if text is None:
            return None, 0
        texts["subject"], rank = place_subject(text, subject)
    if not prompt.startswith(_LITERAL):
        text = text_of(report, line, cells, prompt)
        if text is None:
            return None, 0
        texts["answer"] = text if is_template(text) else place_whole(text, subject)
        if ANSWER_SLOT in text or texts["answer"].count(SLOT) > 1:
            report.problem(line, f"{prompt!r} is {text!r:.60}", "no braces but one {subject}", "mend the text")
            return None, 0
    return texts, rank


def _question(report: Report, line: int, cells: Cells, columns: dict[str, str], subject: str) -> str | None:
    """The form of the row's question: the slot in the subject's place; "" where no column is given."""
    column = columns.get("question", _LITERAL)
    if column.startswith(_LITERAL):
        return ""
    text = text_of(report, line, cells, column)
    if text is None:
        return None
    form = text if is_template(text) else place_whole(text, subject)
    if not is_template(form) or form.startswith(SLOT):
        expected = "a text that names the subject, or {subject}, once and after other words"
        report.problem(line, f"{column!r} is {text!r:.60}", expected, "mend it, or give one for all: question==TEXT")
        return None
    return form


def _wording(columns: dict[str, str], name: str, form: Counter[str] | None) -> Wording:
    given = columns.get("question", "")
    literal = given.removeprefix(_LITERAL) if given.startswith(_LITERAL) else ""
    own = form.most_common(1)[0][0] if form else literal
    sources: dict[Site, Any] = {"subject": _sources(columns.get("source"), dict(SUBJECT_SOURCES), cut=True)}
    if "prompt" in columns:
        sources["answer"] = _sources(columns["prompt"], {}, cut=False)
    return Wording(
        summary=f"{columns['subject']} → {name.replace('_', ' ')}",
        inspection=(own or default_inspection(name),),
        questions=(default_question(name),),
        sources=sources,
    )


def _sources(given: str | None, default: dict[str, str], *, cut: bool) -> dict[str, str]:
    """Templates of a site: the one that was given, or that each fact brings a text of its own, or ours."""
    if given is None:
        return default
    if not given.startswith(_LITERAL):
        return {OWN: SOURCE_SLOT}
    text = given.removeprefix(_LITERAL)
    # What stands after the subject cannot be seen from it, and could only be merged with it.
    text = text.split(SLOT)[0] + SLOT if cut else text
    return {"train0": text, "test0": text}


def _check_choices(report: Report, rows: list[SourceRow]) -> None:
    """Choices are one set for all rows of a relation, or sets that share no answer."""
    owner: dict[tuple[str, str], frozenset[str]] = {}
    for row in rows:
        own = frozenset(normalise(choice) for choice in row.choices)
        if len(own) < 2 or normalise(row.answer) not in own:
            given = f"answer {row.answer!r} with choices {', '.join(row.choices)!r:.60}"
            report.problem(row.line, given, "two choices or more, the answer among them", "mend the choices")
            continue
        for choice in own:
            if owner.setdefault((row.relation, choice), own) != own:
                expected = "one set for all rows of a relation, or sets that share no answer"
                given = f"choices {', '.join(row.choices)!r:.60}, of which another row has some with others"
                report.problem(row.line, given, expected, "leave out choices=, and lensbench deals them")
                break
