"""Making an exam."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lensbench.errors import UsageError
from lensbench.evaluation.dry_run import estimate
from lensbench.evaluation.plan import CellResult
from lensbench.exam import key as keys
from lensbench.exam.composing import REPEATED, SHEETS, Composer
from lensbench.exam.examiner import Examiner, ExamSettings, job_of, place_rows
from lensbench.exam.writing import ComposedExam
from lensbench.harness.recording import Recording
from lensbench.utils.progress import Progress, silent

__all__ = ["ExamSettings", "ExamSize", "make_exam", "size_of_exam"]
Prepare = Callable[[Path], dict[str, Any]]


def make_exam(
    settings: ExamSettings, out: Path, progress: Progress = silent, *, prepare: Prepare = lambda _: {}
) -> Path:
    """Make an exam: its paper, and its key.

    Args:
        settings: what it asks.
        out: a new folder.
        progress: is told of each cell.
        prepare: is given the folder of the key before anything is asked, and returns settings that it changes.

    Returns:
        The folder.

    Raises:
        UsageError: settings that do not fit, or a folder that is there.
        LensbenchError: a cell failed, or a baseline computes with scores.
    """
    if out.exists():
        raise UsageError(f"--out {out} is there already; give a new folder")
    settings = settings.seeded()
    job_of(settings)  # before anything is planted
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        (out / keys.KEY).mkdir(parents=True)
        config = settings.config.model_copy(update=prepare(out / keys.KEY))
        _compose(replace(settings, config=config), progress).write(out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        for folder in made[1:]:
            with suppress(OSError):  # something else is in it
                folder.rmdir()
        raise
    return out


def _compose(settings: ExamSettings, progress: Progress) -> ComposedExam:
    """Ask the recorders everything."""
    recording = Recording()
    examiner = Examiner(job_of(settings), settings, recording)
    results: dict[str, CellResult] = {}
    with progress(len(examiner.plan.cells)) as advance:
        for cell in examiner.plan.cells:
            advance(f"{cell.task} {cell.site}: {cell.baseline}")
            results[cell.file] = examiner.work(cell)
            advance(None)
    return ComposedExam(settings, examiner, recording, results, str(settings.seed))


@dataclass(frozen=True)
class ExamSize:
    """What an exam will be.

    Attributes:
        rows: of its paper.
        bytes: of its paper, training sets included.
        seconds: that it takes to make, beyond planting.
    """

    rows: int
    bytes: int
    seconds: float


def size_of_exam(settings: ExamSettings, *, planted: bool = False) -> ExamSize:
    """Try what an exam asks on a few items, and scale; nothing is written.

    Args:
        settings: what it asks.
        planted: whether facts are to be planted first, so that the model without them is among the rivals.

    Raises:
        UsageError: settings that do not fit.
        LensbenchError: a baseline fails on these items.
    """
    recording = Recording()
    examiner = Examiner(job_of(settings), settings, recording)
    found = estimate(examiner, list(examiner.plan.cells))
    composer = Composer(recording, "")
    place_rows(composer, examiner)
    composer.fill()
    tried = max(1, sum(row.real for row in composer.rows))
    layers = len(examiner.context.layers)
    benches = [bench for group in examiner.benches.values() for bench in group]
    real = sum(len(bench.items) for bench in benches) * layers
    rows = round(real * (len(composer.rows) / tried + planted) * (1 + 1 / SHEETS + REPEATED))
    taught = sum(len(bench.train_items) for bench in benches) * len(recording.training) // max(1, len(benches))
    return ExamSize(rows, (rows + taught) * examiner.context.model.d_model * 4, found.seconds)
