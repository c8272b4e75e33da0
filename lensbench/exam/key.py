"""The key of an exam: what stays with whoever made it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped
from pydantic import TypeAdapter

from lensbench.baselines.spec import Baseline
from lensbench.errors import LensbenchError
from lensbench.evaluation.plan import Plan
from lensbench.exam.composing import Repeat
from lensbench.tasks import Item, Relation
from lensbench.utils.cache import sha256_of
from lensbench.utils.foreign import read_bytes, reading

FORMAT = 1
PAPER = "paper"
KEY, FILE, ROWS = "key", "key.json", "rows.parquet"
AGAIN = "make the exam again"


@dataclass(frozen=True)
class RelationKey:
    """What is asked about one relation at one site.

    Attributes:
        relation: the relation.
        items: by name.
        known: whether the target knows the fact, by subject; None where nobody asked.
    """

    relation: Relation
    items: dict[str, Item]
    known: dict[str, bool] | None


@dataclass(frozen=True)
class OutcomeKey:
    """An outcome of a cell that is made of answers; where its rows stand is in `rows.parquet`.

    Attributes:
        relation: the relation.
        layers: of the first axis; None for what reads no layer.
        items: the items, in order.
        zero_shot: as in `Outcome`.
        credited_as_chance: as in `Outcome`.
        exchangeable: as in `Outcome`.
    """

    relation: str
    layers: tuple[int | None, ...]
    items: tuple[str, ...]
    zero_shot: bool
    credited_as_chance: tuple[str, ...] | None
    exchangeable: bool


@dataclass(frozen=True)
class CellKey:
    """What is known of a cell before there are answers.

    Attributes:
        entry: what the journal says of it.
        parts: its outcomes that are made of answers.
        tables: which tables of it are in the key: of rivals that need no answers.
    """

    entry: dict[str, Any]
    parts: tuple[OutcomeKey, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """The key of an exam.

    Attributes:
        format: of the key.
        exam: the exam's name.
        seed: of everything random.
        config: the settings, as `RunConfig` dumps them.
        baselines: all that the evaluation had.
        plan: the cells, of the recorders.
        asked: task/site/relation → what is asked.
        cells: the cells, by file.
        repeats: pairs of rows that are the same.
        real: how many rows are real, how many are decoys.
        files: the SHA-256 of the other files of the key.
        paper: the SHA-256 of the tables of the paper.
    """

    format: int
    exam: str
    seed: str
    config: dict[str, Any]
    baselines: dict[str, Baseline]
    plan: Plan
    asked: dict[str, RelationKey]
    cells: dict[str, CellKey]
    repeats: tuple[tuple[str, str, Repeat], ...]
    real: tuple[int, int]
    files: dict[str, str]
    paper: dict[str, str]


_ADAPTER = TypeAdapter(Key)
PLACES = pa.schema(
    [
        ("cell", pa.string()),
        ("part", pa.int32()),
        ("layer_at", pa.int32()),
        ("item_at", pa.int32()),
        ("row", pa.string()),
        ("baseline", pa.string()),
        ("item", pa.string()),
        ("gold", pa.string()),
    ]
)
"""Which row answers what: the item at `item_at` and the layer at `layer_at` of a part of a cell."""


def write_key(folder: Path, key: Key) -> str:
    """Write the key into its folder, beside its other files; return the SHA-256 that the paper holds."""
    content = _ADAPTER.dump_json(key, indent=1)
    (folder / FILE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_key(folder: Path, digest: str) -> Key:
    """Read a key, and check that it is the one of which the paper holds the digest.

    Raises:
        LensbenchError: it is missing, damaged, or another one.
    """
    path = folder / FILE
    if not path.is_file():
        raise LensbenchError(f"{folder} has no {FILE}: only whoever made an exam can grade it, with its key")
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise LensbenchError(f"{path} is not the key that the paper was made with: its SHA-256 is another; {AGAIN}")
    with reading(path, AGAIN):
        if (found := json.loads(content)["format"]) != FORMAT:
            raise LensbenchError(f"{path} has format {found}, this lensbench reads {FORMAT}; use the one that made it")
        key = _ADAPTER.validate_json(content)
    made = {folder / name: digest for name, digest in key.files.items()}
    made |= {folder.parent / PAPER / name: digest for name, digest in key.paper.items()}
    for file, expected in made.items():
        if not file.is_file() or sha256_of(file) != expected:
            raise LensbenchError(f"{file} is not the file that was made with the key; {AGAIN}")
    return key


def read_places(folder: Path) -> Mapping[tuple[str, int], Shaped[np.ndarray, "layer item"]]:
    """Return which row answers each layer and item of each part of each cell."""
    table: pd.DataFrame = pq.read_table(folder / ROWS).to_pandas()
    found: dict[tuple[str, int], Shaped[np.ndarray, "layer item"]] = {}
    for _, places in table.groupby(["cell", "part"], sort=False):
        rows = np.empty((places["layer_at"].max() + 1, places["item_at"].max() + 1), dtype=object)
        rows[places["layer_at"], places["item_at"]] = places["row"]
        found[places["cell"].iloc[0], int(places["part"].iloc[0])] = rows
    return found
