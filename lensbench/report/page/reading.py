"""Records, shard by shard: one that is missing, damaged or older costs its own cell and no other."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lensbench.errors import LensbenchError
from lensbench.results.records import RECORDS, SCHEMA, frame_of, read_shard, table_from_columns


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
        rival = "" if cell.get("baseline") in (None, "none") else f", rival {cell['baseline']}"
        place = f"{cell.get('task', '?')} at {cell.get('site', '?')}, {cell.get('inspector', '?')}{rival}"
        said.append(f"{place}: {'not finished' if status == 'missing' else status}{f': {reason[0]}' if reason else ''}")
    return said
