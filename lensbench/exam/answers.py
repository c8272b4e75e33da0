"""What comes back from whoever sat an exam: the answers, and a card that says what gave them."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lensbench.errors import UsageError
from lensbench.exam.composing import Repeat
from lensbench.exam.paper import Paper
from lensbench.results.records import NO_BASELINE, write_table
from lensbench.tasks.names import find_name
from lensbench.utils.foreign import read_text, reading
from lensbench.utils.settings import settings_error

KINDS = ("log_scores", "answer", "text")
DEFAULT = "default"
SAME = 5e-3
"""Log-scores of a repeated row that are nearer than this are the same: batches differ in the last digits."""


class Card(BaseModel):
    """What a method is, as whoever sat the exam says.

    Attributes:
        name: of the method.
        summary: what it does, in a sentence.
        version: of it.
        author: who made it, and sat the exam.
        reads: what it reads of a row.
        learns_from: what it learned from.
        attempts: names of its attempts at each row; the first counts.
        rule: `fixed`, or `selected`: at each layer the attempt that is best on the other folds counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)
    summary: str = ""
    version: str = ""
    author: str = ""
    reads: tuple[Literal["activation", "question", "text"], ...] = ("activation", "question")
    learns_from: Literal["nothing", "corpus", "labels"] = "nothing"
    attempts: tuple[str, ...] = Field(default=(DEFAULT,), min_length=1)
    rule: Literal["fixed", "selected"] = "fixed"

    @field_validator("reads")
    @classmethod
    def _reads_activations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "activation" not in value:
            raise ValueError("lacks activation, which every row of an exam is about")
        return value

    @field_validator("attempts")
    @classmethod
    def _are_different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value) or not all(value):
            raise ValueError("holds a name twice, or an empty one; give each attempt a name of its own")
        return value

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value == NO_BASELINE:
            raise ValueError("stands for no method; give another name")
        return value


def read_card(path: Path | None, answers: Path, paper: Paper) -> Card:
    """Read a card; where there is none, the method has the name of its file, learns nothing, and reads what it may.

    Raises:
        UsageError: a card that cannot be read, or that says what the exam does not allow.
    """
    where = path or answers
    with reading(where, "see docs/exam.md", UsageError):
        stem = re.sub(r"[^A-Za-z0-9_]", "_", answers.stem)
        unnamed = {"name": stem if stem[:1].isalpha() else f"method_{stem}", "reads": sorted(paper.reads)}
        given = tomllib.loads(read_text(path)) if path else unnamed
    try:
        card = Card.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"{where}: {settings_error(error, Card.model_fields, 'key')}") from None
    if beyond := sorted(set(card.reads) - paper.reads):
        raise UsageError(f"{where}: reads {beyond[0]}, which this exam does not have; it has {', '.join(paper.reads)}")
    if card.learns_from == "labels" and not paper.about["training"]:
        raise UsageError(f"{where}: learns_from = 'labels', but the paper has no training sets; ask for one that has")
    return card


@dataclass(frozen=True)
class Answers:
    """Checked answers.

    Attributes:
        attempts: their names, the one that counts first.
        scores: row → a log-score for each attempt and answer.
        texts: row → what each attempt said; empty where no texts were given.
    """

    attempts: tuple[str, ...]
    scores: Mapping[str, Float[np.ndarray, "attempt answer"]]
    texts: Mapping[str, tuple[str, ...]]

    def problems(self, repeats: Sequence[tuple[str, str, Repeat]]) -> list[str]:
        """Return what repeated rows show: that a method is not deterministic, or looks at a row's neighbours."""
        kinds: tuple[Repeat, ...] = ("same neighbours", "other neighbours")
        for kind in kinds:
            pairs = [(self.scores[one], self.scores[other]) for one, other, found in repeats if found == kind]
            differing = sum(not np.allclose(*pair, rtol=0, atol=SAME) for pair in pairs)
            if differing:
                return [
                    f"check_repeats: {differing} of {len(pairs)} rows that stand in the paper twice, among {kind}, "
                    "were answered in two ways"
                ]
        return []


def write_answers(
    path: Path, attempts: Sequence[str], scores: Mapping[str, Float[np.ndarray, "attempt answer"]]
) -> None:
    """Write log-scores as an answer file."""
    rows = [
        (row, attempt, values) for row, found in scores.items() for attempt, values in zip(attempts, found, strict=True)
    ]
    names, made, values = zip(*rows, strict=True)
    write_table(path, pa.table({"row": names, "attempt": made, "log_scores": pa.array(map(np.ndarray.tolist, values))}))


def read_answers(path: Path, paper: Paper, card: Card) -> Answers:
    """Read and check an answer file: nothing is graded where anything is wrong.

    Raises:
        UsageError: what is wrong, how often, and where first.
    """
    with reading(path, "give a Parquet file with the columns row and log_scores", UsageError):
        given = pq.read_table(path, memory_map=False, partitioning=None)
    kinds = [name for name in KINDS if name in given.column_names]
    if "row" not in given.column_names or len(kinds) != 1 or len(set(given.column_names)) < given.num_columns:
        raise UsageError(
            f"{path} has the columns {', '.join(given.column_names)}; expected row, one of {', '.join(KINDS)}, "
            "and attempt where there are several"
        )
    table = pd.DataFrame(
        {name: _column(path, given, name) for name in ("row", "attempt", kinds[0]) if name in given.column_names}
    )
    if "attempt" not in table.columns:
        if len(card.attempts) > 1:
            raise UsageError(f"{path} has no column attempt, and the card declares {len(card.attempts)} attempts")
        table["attempt"] = card.attempts[0]
    asked = {row["row"]: row for row in paper.asked.rows.select(["row", "answers", "choices"]).to_pylist()}
    _check_rows(path, table, asked, card)
    read = {"log_scores": _log_scores, "answer": _one_answer, "text": _text}[kinds[0]]
    found: dict[str, np.ndarray] = {}
    texts: dict[str, tuple[str, ...]] = {}
    values = table.set_index(["attempt", "row"])[kinds[0]]
    columns = [values.loc[attempt].to_dict() for attempt in card.attempts]
    wrong: list[str] = []
    for name, row in asked.items():
        said = [column[name] for column in columns]
        try:
            found[name] = np.stack([read(value, row) for value in said])
        except ValueError as error:
            wrong.append(f"{name} {error}")
        if kinds[0] == "text":
            texts[name] = tuple(said)
    if wrong:
        raise UsageError(f"{path}: {len(wrong)} rows are wrong, the first: {wrong[0]}")
    return Answers(card.attempts, found, texts)


def _column(path: Path, table: pa.Table, name: str) -> list[Any]:
    """Return a column as plain texts, or as plain lists of numbers.

    Raises:
        UsageError: it holds something else.
    """
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if name != "log_scores":
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or (name != "text" and column.null_count):
            raise UsageError(f"{path}: {name} is {column.type}; expected texts, and none missing")
        return list(column.to_pylist())
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UsageError(f"{path}: log_scores is {column.type}; expected lists of numbers")
    return list(column.to_pylist())


def _check_rows(path: Path, table: pd.DataFrame, asked: Mapping[str, Any], card: Card) -> None:
    """Check that every row is there once for each attempt, and no other.

    Raises:
        UsageError: one is missing, unknown or double, or an attempt is not declared.
    """
    attempts = set(map(str, table["attempt"]))
    for what, odd in (("does not declare", attempts - {*card.attempts}), ("declares", {*card.attempts} - attempts)):
        if odd:
            there = "is there" if what != "declares" else "is missing"
            raise UsageError(f"{path}: the attempt {min(odd)!r} {there}, and the card {what} it")
    unknown = table.loc[~table["row"].isin(asked), "row"]
    double = table.loc[table.duplicated(["row", "attempt"]), "row"]
    for what, rows in (("are not in the paper", unknown), ("stand there twice", double)):
        if len(rows):
            raise UsageError(f"{path}: {len(rows)} rows {what}, the first: {rows.iloc[0]}")
    for attempt, rows in table.groupby("attempt")["row"]:
        given = set(rows)
        if missing := [name for name in asked if name not in given]:
            where = f" of the attempt {attempt!r}" if len(card.attempts) > 1 else ""
            raise UsageError(f"{path}: {len(missing)} rows{where} are missing, the first: {missing[0]}")


def _log_scores(value: Any, row: Mapping[str, Any]) -> Float[np.ndarray, " answer"]:
    wanted = len(row["answers"])
    if value is None or None in value:
        raise ValueError("has a log-score that is no number; give -inf to impossible answers")
    values = np.asarray(value, dtype=np.float64)
    if values.shape != (wanted,):
        raise ValueError(f"has {values.size} log-scores; it has {wanted} answers")
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError("has a log-score that is no number; give -inf to impossible answers")
    return values


def _one_answer(value: Any, row: Mapping[str, Any]) -> Float[np.ndarray, " answer"]:
    if value not in row["choices"]:
        raise ValueError(f"answers {value!r:.40}; its choices are {', '.join(row['choices'])}")
    return np.where(np.array(row["answers"]) == value, 0.0, -np.inf)


def _text(value: Any, row: Mapping[str, Any]) -> Float[np.ndarray, " answer"]:
    """Give the score to the choice that a text names first, the longer of two that begin there; -inf to the others."""
    if not isinstance(value, str):
        raise ValueError(f"has {value!r:.40}; expected a text")
    named = [(found.start, -len(one), one) for one in row["choices"] if (found := find_name(value, one))]
    first = min(named)[2] if named else None
    return np.where(np.array(row["answers"]) == first, 0.0, -np.inf)
