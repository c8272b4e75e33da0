"""Grading a series of exams: one calibration of a method that runs elsewhere."""

from dataclasses import replace
from pathlib import Path

from lensbench.calibration.calibrate import Calibration, write_result
from lensbench.calibration.findings import TrialFinding, findings
from lensbench.calibration.trials import find_trials
from lensbench.errors import UsageError
from lensbench.exam.fresh import IMPLANT
from lensbench.exam.grade import grade_exam
from lensbench.exam.key import KEY, PAPER
from lensbench.exam.paper import read_about


def grade_series(folder: Path, answers: Path, out: Path, card: Path | None = None) -> list[str]:
    """Grade the answers to every exam of a series, and write what calibration finds of them.

    Args:
        folder: of the series.
        answers: a folder with one file for each exam, named like the exam's folder: `1.parquet`, ...
        out: each exam becomes a run in it; `calibration.json` has what was found.
        card: of the method; None takes the one beside each file.

    Returns:
        What speaks against the method, or against the instrument: a fact claimed where nothing was planted, or before
        the layer that holds it.

    Raises:
        UsageError: answers to one of the exams are missing, or cannot be graded, or are of several methods.
    """
    exams = sorted(one.parent for one in folder.glob(f"*/{PAPER}"))
    missing = [one.name for one in exams if not (answers / f"{one.name}.parquet").is_file()]
    if missing:
        raise UsageError(f"{answers} has no {missing[0]}.parquet: expected a file for each exam of {folder}")
    found: list[TrialFinding] = []
    versions: dict[str, list[str]] = {}
    base = str(read_about(exams[0] / PAPER)["model"])
    for exam in exams:
        run = grade_exam(exam, answers / f"{exam.name}.parquet", out / exam.name, card)
        for name, one in run.info["methods"].items():
            versions.setdefault(name, []).append(one["version"])
        (trial,) = find_trials(base, [str(exam / KEY / IMPLANT)], quick=False)
        found += findings(replace(trial, name=f"exam {exam.name}"), run)
    if len(versions) > 1:
        raise UsageError(f"the answers are of {', '.join(versions)}; expected one method, with one card for each file")
    result = Calibration(
        model=base, versions={name: "+".join(own) for name, own in versions.items()}, findings=tuple(found)
    )
    write_result(result, out)
    return result.problems()
