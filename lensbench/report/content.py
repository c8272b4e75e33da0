"""What a page is made of: one run with all that is said about it, and its records as far as they can be read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lensbench.errors import LensbenchError
from lensbench.results.records import RECORDS, SCHEMA, frame_of, read_shard, table_from_columns


@dataclass(frozen=True)
class ItemText:
    """The source text of an item.

    Attributes:
        source: what the target model read.
        start: first character of what is marked.
        end: the one after its last; the token read is the last one before it.
        note: what is read, in words.
        question: the inspection prompt of the relation.
    """

    source: str
    start: int
    end: int
    note: str
    question: str


@dataclass(frozen=True)
class MethodText:
    """A method in words.

    Attributes:
        summary: the first line of its docstring.
        reads: the sources that it declares.
        learns_from: the supervision that it declares.
    """

    summary: str
    reads: tuple[str, ...]
    learns_from: str


@dataclass(frozen=True)
class PageRun:
    """One run, as far as it could be read.

    Attributes:
        name: of its folder.
        info: `run.json`.
        summary: as `Run.summary`; empty where there is none.
        records: of all shards that could be read.
        problems: what is missing or damaged, a sentence each.
        unanswered: what a method could not answer, and why.
        calibrations: what calibration found of each method, in words; None where it was not made.
        methods: in words, by name, those that are installed.
        relations: what leads to what, by task and relation.
        texts: source texts by task and item.
        shares: as `whose.shares`, where target and verbalizer were told different facts.
        metrics: as `Run.metrics`; empty where there are none.
    """

    name: str
    info: Mapping[str, Any]
    summary: pd.DataFrame
    records: pd.DataFrame
    problems: tuple[str, ...] = ()
    unanswered: Mapping[str, str] = field(default_factory=dict)
    calibrations: Mapping[str, str | None] = field(default_factory=dict)
    methods: Mapping[str, MethodText] = field(default_factory=dict)
    relations: Mapping[tuple[str, str], str] = field(default_factory=dict)
    texts: Mapping[tuple[str, str], ItemText] = field(default_factory=dict)
    shares: pd.DataFrame | None = None
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def outside_totals(self) -> frozenset[tuple[str, str]]:
        """The (task, relation) pairs that have no part in a task's total."""
        named = [name.partition("/") for key in ("selected", "by_token") for name in self.info.get(key, ())]
        return frozenset((task, relation) for task, _, relation in named)

    @property
    def model(self) -> str:
        """The target's name."""
        return str(self.info.get("setting", {}).get("model") or self.info.get("config", {}).get("model") or "?")

    @property
    def verbalizer(self) -> str:
        """The verbalizer's name."""
        return str(self.info.get("setting", {}).get("verbalizer") or self.model)


def read_readable(folder: Path, names: Iterable[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read the named shards of a run folder, those that can be read.

    Returns:
        Their records, and a sentence for each shard that is missing, damaged or of another version.
    """
    tables: list[pa.Table] = [SCHEMA.empty_table()]
    problems = []
    for name in names:
        try:
            table, remark = _read(folder / RECORDS / name)
        except LensbenchError as error:
            problems.append(f"{name} is left out: {_short(error, folder)}")
            continue
        tables.append(table)
        if remark:
            problems.append(f"{name}: {remark}")
    return frame_of(tables), problems


def _short(error: LensbenchError, folder: Path) -> str:
    return str(error).replace(f"{folder / RECORDS}/", "").replace(f"{folder}/", "")


def _read(path: Path) -> tuple[pa.Table, str]:
    try:
        return read_shard(path), ""
    except LensbenchError:
        if not path.exists():
            raise
        table = _older(path)
    if table is None:
        raise LensbenchError("it is damaged, or lacks columns that a page needs; run `lensbench evaluate` again")
    return table, "written by another version of lensbench; columns that it lacks are shown empty"


def _older(path: Path) -> pa.Table | None:
    """Read a shard of another version by the columns that it shares with today's; None where that is not possible."""
    try:
        table = pq.read_table(path, memory_map=False, partitioning=None)
        known = [name for name in table.column_names if name in SCHEMA.names]
        return table_from_columns({name: table[name].to_pylist() for name in known}) if len(table) else None
    except (pa.ArrowException, OSError, LensbenchError):
        return None


def unfinished(info: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every cell of the plan that is not done, and why."""
    cells = info.get("cells", {})
    said = []
    for file in info.get("plan", cells):
        cell = cells.get(file, {})
        status = cell.get("status", "missing")
        if status in ("done", "not applicable"):
            continue
        reason = str(cell.get("error", "")).strip().splitlines()
        baseline = "" if cell.get("baseline") in (None, "none") else f", rival {cell['baseline']}"
        place = f"{cell.get('task', '?')} at {cell.get('site', '?')}, {cell.get('inspector', '?')}{baseline}"
        said.append(f"{place}: {'not finished' if status == 'missing' else status}{f': {reason[0]}' if reason else ''}")
    return said
