"""The run folder: held by one process at a time, its `run.json` written after every cell, so that runs resume."""

import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lensbench.baselines.spec import Baseline
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.given import name_of
from lensbench.evaluation.plan import Cell, CellResult, Job, Plan, failure
from lensbench.results.calibrations import calibration_of
from lensbench.results.crossed_files import CROSSED
from lensbench.results.records import (
    CORRECTED,
    JUDGED,
    MEASURES,
    RECORDS,
    write_json_atomic,
    write_shard,
    write_table,
)
from lensbench.results.run_file import DIGESTS, RUN_FILE, SETTLED, changed_file, read_run
from lensbench.utils.cache import TEMPORARY, atomic_file, sha256_of
from lensbench.utils.logs import RUN_LOG

# What records of one folder must have in common: they are read as one table.
COMMON = (
    "schema",
    "model",
    "model_args",
    "model_fingerprint",
    "module_paths",
    "verbalizer",
    "verbalizer_fingerprint",
    "dtype",
    "device",
    "layers",
    "limit",
    "seed",
    "score",
    "whole_answers",
    "exam",
)
EARLIER: dict[str, Any] = {"score": CORRECTED, "model_args": {}, "exam": None, "whole_answers": False}
"""Settings that not all folders have, as they are where they do not stand: of earlier versions, or of no exam."""
LOG = logging.getLogger("lensbench")
VERSIONS = ("lensbench", "torch", "transformers", "scikit-learn", "numpy")


LOCK = ".lock"
RESERVE = ".reserve"
RESERVED = 256 * 1024
"""Bytes that a run keeps on the disk, in a file of this name, so that it can still say how it ended."""


def folder_of_run(config: RunConfig) -> Path:
    """Return the folder given, or `reports/TIME-MODEL`."""
    return config.out or Path("reports") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(name_of(config.model)).name}"


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Make a run folder and hold it, so that a second process cannot work in it at the same time.

    The lock is the operating system's and ends with the process, however that ends. Folders that nothing was written
    into are taken back, so that neither a run that does not begin nor one that is refused leaves a trace.

    Raises:
        UsageError: it cannot be written to, or another process is at work in it.
    """
    made = [folder for folder in (out / RECORDS, *(out / RECORDS).parents) if not folder.exists()]
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another process is using --out {out}; wait until it has finished, or choose another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from None
    try:
        _sweep(out)
        yield
    finally:
        (out / RESERVE).unlink(missing_ok=True)
        _take_back(out, made)
        lock.release()


def _sweep(out: Path) -> None:
    """Remove half-written files of a process that was killed."""
    for folder in (out, out / RECORDS, out / MEASURES, out / CROSSED):
        for path in folder.glob(TEMPORARY):
            path.unlink(missing_ok=True)


def _take_back(out: Path, made: Sequence[Path]) -> None:
    if out / RECORDS in made and not any((out / RECORDS).glob("*")):
        (out / LOCK).unlink(missing_ok=True)
    if not (out / RUN_FILE).exists():
        for file in (LOCK, RUN_LOG):
            (out / file).unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # something else is in it
            folder.rmdir()


class Journal:
    """The content of `run.json`: settings, versions, and how each cell went.

    Args:
        out: the run folder. An earlier run in it is resumed.
        config: what was asked.
        baselines: the rivals in it.
        plan: what is to be done.

    Raises:
        UsageError: the folder holds a run whose records cannot stand beside these.
    """

    def __init__(self, out: Path, config: RunConfig, baselines: Mapping[str, Baseline], plan: Plan) -> None:
        self.out = out
        before = read_before(out)
        for key in COMMON if before else ():
            held, now = (one.get(key, EARLIER.get(key)) for one in (before.get("setting", {}), plan.setting))
            if held != now:
                raise UsageError(f"--out {out} holds a run with {key} {held}, now {now}; choose another folder")
        asked = {name: one.model_dump(include={"question", "rules_out", "stride"}) for name, one in baselines.items()}
        self.cells: dict[str, dict[str, Any]] = before.get("cells", {})
        self.content: dict[str, Any] = {
            "config": config.model_dump(mode="json", exclude={"out"}),
            "setting": plan.setting,
            "versions": {name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "git_commit": _commit(),
            "date": time.strftime("%Y-%m-%d"),
            "baselines": {**before.get("baselines", {}), **asked},
            "calibration": {**before.get("calibration", {}), **_calibrations(plan)},
            "methods": {**before.get("methods", {}), **plan.methods},
            "due": {**before.get("due", {}), **plan.due},
            "patched_pass": before.get("patched_pass"),
            "memory_budget": plan.memory,
            "n_layers": plan.n_layers,
            "plan": [cell.file for cell in plan.cells],
            "cells": self.cells,
            "dropped": {**_of_others(before.get("dropped", {}), plan), **plan.dropped},
            "selected": sorted([*_of_others(before.get("selected", []), plan), *plan.selected]),
            "by_token": sorted([*_of_others(before.get("by_token", []), plan), *plan.by_token]),
            "short_answers": {**before.get("short_answers", {}), **plan.short_answers},
            "summaries": {**before.get("summaries", {}), **plan.summaries},
            "prose": sorted({*before.get("prose", []), *plan.prose}),
            "knowledge": before.get("knowledge", {}),
            "judges": before.get("judges", {}),
        }
        self._stale: list[str] = []
        for cell in plan.cells:
            self._enter(cell)

    def begin(self) -> None:
        """Remove the records that are stale, keep some room for the end, and write `run.json`; nothing before.

        Raises:
            LensbenchError: it cannot be written.
        """
        for file in self._stale:
            for folder in (RECORDS, MEASURES, CROSSED):
                (self.out / folder / file).unlink(missing_ok=True)
        if any(self.cells[file]["status"] not in SETTLED for file in self.content["plan"]):
            # Judges marked texts that may be made anew.
            for path in (self.out / MEASURES).glob(f"{JUDGED}*"):
                LOG.warning("%s is removed: run `lensbench judge` again after this run", path)
                path.unlink()
            self.content["judges"] = {}
        with suppress(OSError):  # a disk that is full already will say so
            (self.out / RESERVE).write_bytes(b"\0" * RESERVED)
        self.write()

    def _enter(self, cell: Cell) -> None:
        """Enter a cell as settled where its records are there, else as missing; drop what it makes stale."""
        place = {"task": cell.task, "site": cell.site, "inspector": cell.inspector}
        relations = list(cell.relations)
        named = {**place, "baseline": cell.baseline, "method": cell.method, "relations": relations}
        for file, other in list(self.cells.items()):
            same_place = (other["task"], other["site"]) == cell.place
            if same_place and other.get("relations") != relations:
                raise UsageError(
                    f"--out {self.out} holds task {cell.task} with the relations {', '.join(other['relations'])}, "
                    f"now {', '.join(cell.relations)}; choose another folder"
                )
            same_method = all(other[key] == value for key, value in place.items())
            stale = other["method"] != cell.method or (other["baseline"] == cell.baseline and file != cell.file)
            if same_method and stale:
                # A rival is compared with the method as it is now, not with an earlier version of it.
                del self.cells[file]
                self._stale.append(file)
        entry = self.cells.get(cell.file, {})
        needed = [RECORDS, *(folder for folder in (MEASURES, CROSSED) if entry.get(folder))]
        if entry.get("status") == "done" and not all((self.out / folder / cell.file).exists() for folder in needed):
            entry = {}  # somebody deleted it, to have it made again
        elif entry.get("status") == "done" and (changed := changed_file(self.out, cell.file, entry)) is not None:
            LOG.warning("%s is not the file that this run wrote: its cell is made again", changed)
            self._stale.append(cell.file)
            entry = {}
        elif entry.get("status") not in SETTLED:
            # A shard that the journal does not know is of a run that was cut off between the two: what the journal
            # would have said is lost, so the cell was in hand and is done again.
            self._stale.append(cell.file)
        self.cells[cell.file] = {"status": "missing", **entry, **named}

    def _shard(self, file: str) -> Path:
        return self.out / RECORDS / file

    def settled(self, cell: Cell) -> bool:
        """Whether the cell needs no more work."""
        return self.cells[cell.file]["status"] in SETTLED

    def write(self) -> None:
        """Write `run.json`.

        Raises:
            LensbenchError: it cannot be written. What it said before stays.
        """
        try:
            try:
                write_json_atomic(self.out / RUN_FILE, self.content)
            except OSError:  # what was kept free for the last words is used for them
                (self.out / RESERVE).unlink()
                write_json_atomic(self.out / RUN_FILE, self.content)
        except OSError as error:
            raise LensbenchError(
                f"{self.out / RUN_FILE} cannot be written: {error.strerror}; finished cells are kept: free some "
                "space, and run the same command again"
            ) from None

    def keep(self, work: CellResult) -> dict[str, Any]:
        """Write a cell's records, then the journal; return what it says of the cell.

        Records that cannot be written (a full disk) make a failed cell.
        """
        entry = work.entry
        if work.table is not None:
            try:
                # The records tell that a cell is done: they come last.
                if work.measures is not None:
                    entry = {**entry, "measures": True}
                    write_table(self.out / MEASURES / work.cell.file, work.measures)
                if work.crossed is not None:
                    entry = {**entry, "crossed": True}
                    write_table(self.out / CROSSED / work.cell.file, work.crossed)
                write_shard(self._shard(work.cell.file), work.table)
                places = [RECORDS, *(place for place in (MEASURES, CROSSED) if entry.get(place))]
                entry = {**entry, DIGESTS: {place: sha256_of(self.out / place / work.cell.file) for place in places}}
            except OSError as error:
                entry = failure(error)
        names = ("task", "site", "inspector", "baseline", "method", "relations")
        entry = {**{name: self.cells[work.cell.file][name] for name in names}, **entry}
        self.cells[work.cell.file] = entry
        self.content["knowledge"].update(work.state.get("knowledge", {}))
        self.content.update({k: v for k, v in work.state.items() if v is not None and k != "knowledge"})
        self.write()
        return entry


def _calibrations(plan: Plan) -> dict[str, dict[str, Any] | None]:
    """What calibration found of the very versions of the methods."""
    found = {name: calibration_of(version) for name, version in plan.versions.items()}
    return {name: None if one is None else asdict(one) for name, one in found.items()}


@contextmanager
def noting_calibrations(out: Path) -> Iterator[None]:
    """Note in `run.json` what calibration has found since of the methods in a run, and hold the folder meanwhile.

    Where what is done inside fails, `run.json` is put back as it was.

    Raises:
        UsageError: another process is at work in the folder.
    """
    with hold_folder(out):
        before, content = (out / RUN_FILE).read_bytes(), read_run(out)
        for name, method in content.get("methods", {}).items():
            found = calibration_of(method.get("version", ""))
            if found is not None:
                content["calibration"][name] = asdict(found)
        write_json_atomic(out / RUN_FILE, content)
        try:
            yield
        except BaseException:
            with atomic_file(out / RUN_FILE) as file:
                file.write(before)
            raise


def _of_others(before: Any, plan: Plan) -> Any:
    """What an earlier plan said of tasks that are not in this one, by `task/relation`."""
    own = {cell.task for cell in plan.cells}
    kept = [name for name in before if name.split("/", 1)[0] not in own]
    return {name: before[name] for name in kept} if isinstance(before, dict) else kept


def read_before(out: Path) -> dict[str, Any]:
    """Read the journal of an earlier run in a folder; empty where there is none."""
    return read_run(out) if (out / RUN_FILE).exists() else {}


def _commit() -> str | None:
    """Return the commit of lensbench's own checkout, where it runs from one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # a checkout without git, as in slim containers
        return None
    return done.stdout.strip() or None


def with_earlier_budget(job: Job, out: Path) -> Job:
    """Take the memory budget of the run that is resumed, unless one is given: batches are then the same."""
    held_before = read_before(out).get("memory_budget")
    if held_before is None or job.config.memory != "auto":
        return job
    return Job(job.config.model_copy(update={"memory": held_before}), job.tasks, job.baselines)
