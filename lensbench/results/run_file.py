"""`run.json`: what a run folder says of itself, checked when it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lensbench.errors import LensbenchError
from lensbench.utils.cache import sha256_of
from lensbench.utils.foreign import FOREIGN, read_text

RUN_FILE = "run.json"
DIGESTS = "sha256"
"""What a cell's entry calls the digests of its files: folder -> SHA-256."""
_AGAIN = "delete it and run `lensbench evaluate` again with the same --out"
SETTLED = ("done", "not applicable")
"""The states of a cell that there is no more to do for."""
# A shard's name, and never a path: files of these names are read, and removed when they are stale.
ShardName = Annotated[str, StringConstraints(pattern=r"^[\w+][\w.+@=~-]*\.parquet$", max_length=255)]
Named = dict[str, dict[str, Any]]


class _Cell(BaseModel):
    """What the file says of a cell."""

    model_config = ConfigDict(extra="allow", strict=True)

    status: str
    task: str
    site: str
    inspector: str
    baseline: str
    method: str
    relations: list[str] = []
    not_applicable: dict[str, str] = {}
    attempts: Named = {}
    sha256: dict[str, str] = {}
    error: str = ""


class _RunFile(BaseModel):
    """What is read of the file; keys that earlier versions did not write may be missing."""

    model_config = ConfigDict(extra="allow", strict=True)

    cells: dict[ShardName, _Cell]
    setting: dict[str, Any] = {}
    baselines: Named = {}
    plan: list[str] = []
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    methods: Named = {}
    due: dict[str, Named] = {}
    calibration: dict[str, dict[str, Any] | None] = {}
    knowledge: dict[str, Any] = {}
    judges: dict[str, Any] = {}
    selected: list[str] = []
    by_token: list[str] = []
    prose: list[str] = []
    short_answers: dict[str, float] = {}
    summaries: dict[str, str] = {}
    memory_budget: int | None = None
    n_layers: int | None = None
    patched_pass: str | None = Field(default=None)


class RunInfo(dict[str, Any]):
    """The content of `run.json`; what an earlier version did not write is missed in one line."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise LensbenchError(f"{self._path} has no {key!r}: it is of another version, or damaged; {_AGAIN}")


def rules_of(info: Mapping[str, Any]) -> dict[str, str]:
    """Return method -> the rule by which one of its attempts stands for it, of those that declare one."""
    return {name: str(one["rule"]) for name, one in info.get("methods", {}).items() if "rule" in one}


def read_run(folder: Path) -> RunInfo:
    """Read a run folder's `run.json`.

    Returns:
        Its content; asking for a key that is not there raises a LensbenchError.

    Raises:
        LensbenchError: it is not there, is damaged, or is not of a run.
    """
    path = folder / RUN_FILE
    try:
        run = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"it has no {RUN_FILE}" if folder.is_dir() else "it is not there"
        raise LensbenchError(f"{folder} is not a run folder: {what}; give one of `lensbench evaluate`") from error
    except FOREIGN as error:
        reason = getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__
        raise LensbenchError(f"{path} is damaged ({reason}): {_AGAIN}") from error
    if not isinstance(run, dict):
        raise LensbenchError(f"{path} must hold an object, got {type(run).__name__}: {_AGAIN}")
    if not isinstance(run.get("cells"), dict):
        raise LensbenchError(f"{path} names no cells: it is not of a run; give a folder of a run")
    try:
        _RunFile.model_validate(run)
    except ValidationError as error:
        first = error.errors()[0]
        where = repr(".".join(str(part) for part in first["loc"]))[1:-1]
        raise LensbenchError(f"{path} is damaged ({where[:200]}: {first['msg']}): {_AGAIN}") from None
    return RunInfo(run, path)


def changed_file(folder: Path, file: str, entry: Mapping[str, Any]) -> Path | None:
    """Return the first file of a cell that is not the one that the journal tells of; None where all are.

    Cells of runs of before there were digests are believed.

    Args:
        folder: the run folder.
        file: the cell's file name.
        entry: what `run.json` says of the cell.
    """
    for place, digest in entry.get(DIGESTS, {}).items():
        path: Path = folder / place / file
        try:
            same = sha256_of(path) == digest
        except OSError:
            same = False
        if not same:
            return path
    return None
