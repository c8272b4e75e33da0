"""The journal of a run: `run.json`, written after every cell, so that a run that was cut off can be gone on with."""

import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from lensbench.baselines import Baseline
from lensbench.errors import UsageError
from lensbench.plan import Cell, Setting
from lensbench.records import RECORDS, RUN_FILE, read_run, write_json_atomic

# What records of one folder must have in common: they are read as one table.
COMMON = (
    "schema",
    "model",
    "model_fingerprint",
    "module_paths",
    "verbalizer",
    "verbalizer_fingerprint",
    "dtype",
    "device",
    "layers",
    "limit",
    "seed",
)
VERSIONS = ("lensbench", "torch", "transformers", "scikit-learn", "numpy")
SETTLED = ("done", "not applicable")


class Journal:
    """What `run.json` says: settings, versions, and how each cell went.

    Args:
        out: the run folder. The journal of an earlier run in it is gone on with.
        setting: what all cells depend on.
        cells: the plan.
        baselines: the rivals in it.
        due: inspector -> the rivals that it must have faced, as `due_rivals` lists them.

    Raises:
        UsageError: the folder holds a run whose records cannot stand beside these.
    """

    def __init__(
        self,
        out: Path,
        setting: Setting,
        cells: list[Cell],
        baselines: Mapping[str, Baseline],
        due: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.out = out
        before: dict[str, Any] = read_run(out) if (out / RUN_FILE).exists() else {}
        described = setting.describe()
        for key in COMMON if before else ():
            held = before.get("setting", {}).get(key)
            if held != described[key]:
                raise UsageError(
                    f"--out {out} holds a run with {key} {held}, now {described[key]}; choose another folder"
                )
        asked = {name: {"question": one.question, "rules_out": one.rules_out} for name, one in baselines.items()}
        self.cells: dict[str, dict[str, Any]] = before.get("cells", {})
        self.dropped: dict[str, dict[str, str]] = {}
        self.content: dict[str, Any] = {
            "config": setting.config.model_dump(mode="json", exclude={"out"}),
            "setting": described,
            "versions": {name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "git_commit": _commit(),
            "baselines": {**before.get("baselines", {}), **asked},
            "due": {**before.get("due", {}), **due},
            "patched_pass": before.get("patched_pass"),
            "plan": [cell.file for cell in cells],
            "cells": self.cells,
            "dropped": self.dropped,
        }
        for cell in cells:
            self._enter(cell)

    def _enter(self, cell: Cell) -> None:
        """Enter a cell as settled where its records are there, else as missing; drop what it makes stale."""
        place = {"task": cell.task.name, "site": cell.site, "inspector": cell.inspector}
        named = {**place, "baseline": cell.baseline_name, "method": cell.method, "relations": cell.relations}
        for file, other in list(self.cells.items()):
            if other["task"] == cell.task.name and other.get("relations") != cell.relations:
                raise UsageError(
                    f"--out {self.out} holds task {cell.task.name} with the relations {', '.join(other['relations'])}, "
                    f"now {', '.join(cell.relations)}; choose another folder"
                )
            same_method = all(other[key] == value for key, value in place.items())
            stale = other["method"] != cell.method or (other["baseline"] == cell.baseline_name and file != cell.file)
            if same_method and stale:
                # A rival is compared with the method as it is now, not with an earlier version of it.
                del self.cells[file]
                (self.out / RECORDS / file).unlink(missing_ok=True)
        entry = self.cells.get(cell.file, {})
        there = (self.out / RECORDS / cell.file).exists()
        if entry.get("status") != "not applicable" and (entry.get("status") == "done") != there:
            # Records and journal disagree after a crash between the two, or when a shard was deleted: the shard counts.
            entry = {"status": "done" if there else "missing"}
        self.cells[cell.file] = {"status": "missing", **entry, **named}

    def settled(self, cell: Cell) -> bool:
        """Whether the cell needs no more work."""
        return self.cells[cell.file]["status"] in SETTLED

    def drop(self, where: str, item: str, reason: str) -> None:
        """Note an item that no method is asked about."""
        self.dropped.setdefault(where, {})[item] = reason

    def write(self, patched_pass: str | None = None) -> None:
        """Write `run.json`.

        Args:
            patched_pass: the proven mode of the patched pass, once there is one.
        """
        if patched_pass is not None:
            self.content["patched_pass"] = patched_pass
        write_json_atomic(self.out / RUN_FILE, self.content)

    @contextmanager
    def record(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """Note how a cell goes. A cell that fails does not end the others."""
        entry = self.cells[cell.file]
        for key in ("error", "traceback"):
            entry.pop(key, None)
        begun = time.perf_counter()
        try:
            yield entry
        except Exception as error:
            entry.update(status="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        entry["seconds"] = round(time.perf_counter() - begun, 3)
        entry["peak_memory_mb"] = _peak_memory()


def _commit() -> str | None:
    """Return the commit of lensbench's own checkout, where it runs from one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # a checkout without git, as in slim containers
        return None
    return done.stdout.strip() or None


def _peak_memory() -> int:
    """Return the most memory, in MiB, that this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset // 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))
