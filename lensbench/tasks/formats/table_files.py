"""Tables with a column mapping: CSV, TSV, JSON, JSON Lines and Parquet files, and data sets of the Hub (`hf:`)."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.tasks.facts import ANSWER_SLOT, OWN, SLOT, SOURCE_SLOT, Site
from lensbench.tasks.files import Problems, Report
from lensbench.tasks.formats.drafts import Draft, SourceRow, Wording
from lensbench.tasks.formats.sources import (
    COLUMNS,
    Row,
    Source,
    open_file,
    read_csv,
    read_json_lines,
    read_json_rows,
)
from lensbench.tasks.formats.texts import (
    EXPECTED_TEMPLATE,
    SUBJECT_SOURCES,
    Slugs,
    after_words,
    default_inspection,
    default_question,
    is_template,
    place_subject,
    place_whole,
    slug,
)
from lensbench.tasks.names import name_key

_TEXTS = ("source", "prompt", "question")
_LITERAL = "="


def read_mapped(source: Source, problems: Problems) -> Draft:
    """Read a table by the columns that the options name; subject and answer may be called so."""
    columns = _columns(source)
    report, table, content = _open(source, problems)
    if not table and not problems.found:
        report.problem(1, "no rows", "one fact a row", "give a file with rows")
    if not table:
        problems.stop_if_any()
    known = list(dict.fromkeys(key for row in table for key in row.cells))
    for key, column in columns.items():
        if not column.startswith(_LITERAL) and column not in known:
            hint = f"map it: ?{key}=COLUMN" if source.option(key) is None else ""
            shown = [" ".join(name.split()) for name in known]
            raise unknown_name(f"column for {key} in {source.path}:", column, shown, hint)
    _check_literals(source, columns)
    rows, forms = _rows(table, columns)
    if "choices" in columns:
        _check_choices(report, rows)
    others = sum(sum(form.values()) - max(form.values()) for form in forms.values())
    left_out = {"other forms of a relation's question": others}
    names = dict.fromkeys(row.relation for row in rows)
    wordings = {name: _wording(columns, name, forms.get(name)) for name in names}
    summary = f"Facts of {source.path.name}: from {columns['subject']} to {columns['answer']}."
    return Draft(slug(source.path.stem), summary, content, tuple(rows), wordings, left_out)


def _columns(source: Source) -> dict[str, str]:
    columns = {key: value for key in COLUMNS if (value := source.option(key)) is not None}
    return {"subject": "subject", "answer": "answer"} | columns


def _open(source: Source, problems: Problems) -> tuple[Report, Sequence[Row], bytes]:
    """Where problems are noted, the rows with their lines, and the bytes that the version stands for."""
    ending = source.path.suffix.lower()
    if source.scheme == "hf" or ending == ".parquet":
        rows = load_rows(source)
        content = json.dumps(rows, sort_keys=True, default=str).encode()
        report = Report(source.path, problems)
        return report, [Row(report, number, cells) for number, cells in enumerate(rows, 1)], content
    file = open_file(source, problems, "a CSV, TSV, JSON, JSON Lines or Parquet file")
    if ending in (".csv", ".tsv"):
        # Other columns are checked by name, with the nearest that there is.
        table = read_csv(file, "\t" if ending == ".tsv" else ",", ())
    else:
        table = read_json_rows(file) if ending == ".json" else read_json_lines(file)
    return file, table, file.content


def _check_literals(source: Source, columns: dict[str, str]) -> None:
    for key in COLUMNS:
        text = columns.get(key, "")
        if not text.startswith(_LITERAL):
            continue
        if key not in _TEXTS:
            expected = f"expected a column; a text may be given for {', '.join(_TEXTS)}"
            raise UsageError(f"{source.path}: {key}={text} is a text; {expected}")
        text = text.removeprefix(_LITERAL)
        if not is_template(text) or text != text.strip() or (key != "prompt" and text.startswith(SLOT)):
            raise UsageError(f"{source.path}: {key}={_LITERAL}{text}: {EXPECTED_TEMPLATE}; see docs/readers.md")


def _rows(table: Sequence[Row], columns: dict[str, str]) -> tuple[list[SourceRow], dict[str, Counter[str]]]:
    """Rows, and for each relation how often its questions have which form."""
    rows: list[SourceRow] = []
    forms: dict[str, Counter[str]] = {}
    called = Slugs()
    for row in table:
        subject, answer = row.name(columns["subject"]), row.name(columns["answer"])
        relation = called(row.text(columns["relation"]) if "relation" in columns else columns["answer"])
        aliases, choices = (row.names(columns[key]) if key in columns else () for key in ("aliases", "choices"))
        texts, rank = _texts(row, columns, subject)
        question = _question(row, columns, subject)
        if question:
            forms.setdefault(relation, Counter())[question] += 1
        rows.append(SourceRow(relation, subject, answer, row.line, aliases, texts, rank, choices=choices))
    return rows, forms


def _texts(row: Row, columns: dict[str, str], subject: str) -> tuple[dict[Site, str], int]:
    """The fact's own texts, and how well the source fits its subject."""
    texts: dict[Site, str] = {}
    rank = 0
    source, prompt = columns.get("source", _LITERAL), columns.get("prompt", _LITERAL)
    if not source.startswith(_LITERAL):
        texts["subject"], rank = place_subject(row.text(source), subject)
    if not prompt.startswith(_LITERAL):
        text = row.text(prompt)
        texts["answer"] = text if is_template(text) else place_whole(text, subject)
        if ANSWER_SLOT in text or (subject and texts["answer"].count(SLOT) > 1):
            row.problem(f"{prompt!r} is {text!r:.60}", "no braces but one {subject}", "mend the text")
    return texts, rank


def _question(row: Row, columns: dict[str, str], subject: str) -> str:
    """The form of the row's question: the slot in the subject's place; "" where no column is given."""
    column = columns.get("question", _LITERAL)
    text = "" if column.startswith(_LITERAL) else row.text(column)
    if not text or not subject:
        return ""
    form = text if is_template(text) else place_whole(text, subject)
    form = after_words(form)
    if not is_template(form):
        expected = "a text that names the subject, or {subject}, once"
        row.problem(f"{column!r} is {text!r:.60}", expected, "mend it, or give one for all: question==TEXT")
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
    for row in (row for row in rows if row.answer):
        own = frozenset(name_key(choice) for choice in row.choices)
        if len(own) < 2 or name_key(row.answer) not in own:
            given = f"answer {row.answer!r} with choices {', '.join(row.choices)!r:.60}"
            report.problem(row.line, given, "two choices or more, the answer among them", "mend the choices")
            continue
        for choice in own:
            if owner.setdefault((row.relation, choice), own) != own:
                expected = "one set for all rows of a relation, or sets that share no answer"
                given = f"choices {', '.join(row.choices)!r:.60}, of which another row has some with others"
                report.problem(row.line, given, expected, "leave out choices=, and lensbench deals them")
                break


_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_rows(source: Source) -> list[dict[str, Any]]:
    """Rows of a data set, class labels by their names.

    Args:
        source: A data set of the Hub, or a local folder or file.

    Raises:
        UsageError: Several splits or configurations, of which none was named; nothing at that path.
        LensbenchError: The data set cannot be reached or read.
    """
    path = source.path
    if not source.is_remote and not path.exists():
        raise UsageError(f"{path}: no such file or folder; expected one that exists, or hf:ORG/NAME for the Hub")
    with tempfile.TemporaryDirectory() as scratch:
        # What is local is not copied into the cache of the library.
        loaded = _load(source, {} if source.is_remote else {"cache_dir": scratch, "keep_in_memory": True})
        return _named(_split(source, loaded))


def _load(source: Source, places: dict[str, Any]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path, config = source.path, source.option("config")
    builder = _BUILDERS.get(path.suffix.lower()) if path.is_file() else None
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path), keep_in_memory=True)
        if builder:
            more = {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
            return datasets.load_dataset(builder, data_files=str(path), **places, **more)
        name = source.place if source.is_remote else str(path)
        return datasets.load_dataset(name, config, revision=source.option("revision"), **places)
    # The library reports a name that does not exist, and one that cannot be asked for, as a FileNotFoundError or
    # ConnectionError, and a malformed data set as almost anything.
    except OSError as error:
        raise LensbenchError(_unreachable(source, error)) from None
    except Exception as error:
        raise LensbenchError(_unreadable(source, error)) from None


def _unreachable(source: Source, error: Exception) -> str:
    if not source.is_remote:
        return _unreadable(source, error)
    return (
        f"{source.path}: the data set cannot be reached ({_one_line(error)}); check name and network, or download it "
        "elsewhere and give the file: data.parquet?subject=COLUMN&answer=COLUMN"
    )


def _unreadable(source: Source, error: Exception) -> str:
    return f"{source.path}: datasets cannot read it ({_one_line(error)}); expected a data set that it reads"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _split(source: Source, loaded: Any) -> Any:
    import datasets

    wanted = source.option("split")
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if wanted is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if wanted is None:
        raise UsageError(f"{source.path} has the splits {', '.join(loaded)}; choose one: ?split={next(iter(loaded))}")
    if wanted not in loaded:
        raise unknown_name(f"split of {source.path}", wanted, loaded)
    return loaded[wanted]


def _named(data: Any) -> list[dict[str, Any]]:
    import datasets

    labels = {key: kind for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    rows: list[dict[str, Any]] = data.to_list()
    for row in rows:
        for key, kind in labels.items():
            row[key] = kind.int2str(row[key]) if row[key] is not None and row[key] >= 0 else None
    return rows
