"""The paper of an exam: what is handed out, and what may be known of it."""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from lensbench.errors import LensbenchError, UsageError
from lensbench.exam.key import PAPER
from lensbench.exam.readme import readme
from lensbench.utils.foreign import read_text, reading

FORMAT = 1
ABOUT, ROWS, EVIDENCE, TRAINING = "exam.toml", "rows.parquet", "evidence.safetensors", "training"
TENSOR = "activations"
AGAIN = "ask whoever made the exam for another copy"
_TEXTS = pa.list_(pa.string())
ROW_SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("sheet", pa.int16()),
        ("layer", pa.int16()),
        ("site", pa.string()),
        ("question", pa.string()),
        ("forms", _TEXTS),
        ("answers", _TEXTS),
        ("choices", _TEXTS),
    ]
)
"""One row is one thing that is asked; its activation stands in the same place of `evidence.safetensors`."""
TRAINING_COLUMN = pa.field("training", pa.string())
NEEDED = {
    "exam": str, "model": str, "revision": str, "verbalizer": str, "dtype": str, "reads": list, "training": bool,
    "layers": list, "key_sha256": str,
}  # fmt: skip
"""What `exam.toml` has to say."""
TEXT_COLUMNS = (pa.field("source", pa.string()), pa.field("subject", pa.string()))
TRAINING_SCHEMA = pa.schema(
    [
        TRAINING_COLUMN,
        ("layer", pa.int16()),
        ("site", pa.string()),
        ("question", pa.string()),
        ("answers", _TEXTS),
        ("group", pa.int32()),
        ("label", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows, and the activation of each."""

    rows: pa.Table
    activations: Float[np.ndarray, "row d_model"]


@dataclass(frozen=True, eq=False)
class Paper:
    """The paper of an exam.

    Attributes:
        about: what `exam.toml` says.
        asked: the rows that are to be answered.
        training: what may be learned from; None where the exam has nothing.
    """

    about: Mapping[str, Any]
    asked: Table
    training: Table | None = field(default=None)

    @property
    def reads(self) -> frozenset[str]:
        """What a method may read."""
        return frozenset(self.about["reads"])


def write_tables(folder: Path, asked: Table, training: Table | None) -> None:
    """Write what is asked, and what may be learned from, into an empty folder."""
    _write_table(folder, asked)
    if training is not None:
        (folder / TRAINING).mkdir()
        _write_table(folder / TRAINING, training)


def finish_paper(folder: Path, about: Mapping[str, Any], width: int, date: str) -> None:
    """Write what a paper says of itself. Its files tell no time but the day."""
    (folder / ABOUT).write_text(as_toml(about), encoding="utf-8")
    (folder / "README.md").write_text(readme(about, width), encoding="utf-8")
    noon = datetime.fromisoformat(date).replace(tzinfo=UTC, hour=12).timestamp()
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (noon, noon))


def as_toml(values: Mapping[str, Any]) -> str:
    """Return texts, numbers, truth values and lists of them as TOML, which writes these as JSON does."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def _write_table(folder: Path, table: Table) -> None:
    save_file({TENSOR: np.ascontiguousarray(table.activations, dtype=np.float32)}, folder / EVIDENCE)
    pq.write_table(table.rows, folder / ROWS, compression="zstd")


def read_paper(exam: Path) -> Paper:
    """Read the paper of an exam, or a paper alone.

    Args:
        exam: the exam's folder, or the paper's.

    Raises:
        LensbenchError: something is missing or damaged.
    """
    folder = exam / PAPER if (exam / PAPER).is_dir() else exam
    about = read_about(folder)
    training = _read_table(folder / TRAINING, TRAINING_SCHEMA.names) if (folder / TRAINING).is_dir() else None
    return Paper(about, _read_table(folder, ROW_SCHEMA.names), training)


def read_about(folder: Path) -> dict[str, Any]:
    """Read what a paper says of itself.

    Raises:
        UsageError: it is no paper.
        LensbenchError: it is damaged, or one of another version.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise UsageError(f"{folder} is no exam paper: it has no {ABOUT}; give the folder that `exam make` wrote")
    with reading(path, AGAIN):
        about = tomllib.loads(read_text(path))
    if about.get("format") != FORMAT:
        raise LensbenchError(
            f"{path} has format {about.get('format')!r}, expected {FORMAT}; use the lensbench that made it"
        )
    wrong = [name for name, kind in NEEDED.items() if not isinstance(about.get(name), kind)]
    if wrong:
        raise LensbenchError(
            f"{path}: {wrong[0]} = {about.get(wrong[0])!r}, expected {NEEDED[wrong[0]].__name__}; {AGAIN}"
        )
    return about


def _read_table(folder: Path, columns: list[str]) -> Table:
    with reading(folder / EVIDENCE, AGAIN):
        values = load_file(folder / EVIDENCE)[TENSOR]
    with reading(folder / ROWS, AGAIN):
        rows = pq.read_table(folder / ROWS, memory_map=False, partitioning=None)
    missing = [name for name in columns if name not in rows.column_names]
    if missing or len(rows) != len(values):
        what = f"has no column {missing[0]}" if missing else f"has {len(rows)} rows, {EVIDENCE} has {len(values)}"
        raise LensbenchError(f"{folder / ROWS} {what}: {AGAIN}")
    return Table(rows, values)
