"""From a configuration to a run folder."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import pandas as pd

from lensbench.evaluation.checking import check_methods
from lensbench.evaluation.config import RunConfig, make_config
from lensbench.evaluation.dry_run import DryRun
from lensbench.evaluation.dry_run import dry_run as plan_run
from lensbench.evaluation.given import GivenModel, Settings
from lensbench.evaluation.journal import Journal, folder_of_run, hold_folder, with_earlier_budget
from lensbench.evaluation.plan import Cell, CellResult, Job, Place, Plan, check_job
from lensbench.evaluation.runner import Executor, LocalExecutor
from lensbench.evaluation.tracking import track
from lensbench.results.records import NO_BASELINE
from lensbench.runs.run import Run, finish
from lensbench.utils.imports import refuse_while_importing
from lensbench.utils.logs import kept_log
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")


@overload
def evaluate(
    model: GivenModel | None = ..., *, dry_run: Literal[False] = ..., progress: Progress = ...,
    config: Path | str | None = ..., **settings: Unpack[Settings],
) -> Run: ...  # fmt: skip


@overload
def evaluate(
    model: GivenModel | None = ..., *, dry_run: Literal[True], progress: Progress = ...,
    config: Path | str | None = ..., **settings: Unpack[Settings],
) -> DryRun: ...  # fmt: skip


def evaluate(
    model: GivenModel | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = silent,
    config: Path | str | None = None,
    **settings: Unpack[Settings],
) -> Run | DryRun:
    """Evaluate methods on tasks at every layer, next to baselines that could produce the same score.

    Args:
        model: a built-in name, a folder, a GGUF file, a Hub id, or a model of `load_model`; by default the
            configuration's, or `smollm2-135m`.
        dry_run: only list the cells, and estimate time, memory and disk space.
        progress: is told of each cell; `lensbench.utils.progress.bar` draws it.
        config: a TOML file of settings; explicit ones win.
        settings: the fields of `RunConfig`. `inspectors` takes names, classes and objects, `tasks` names and tasks of
            `load_task`, `baselines` names, .toml files and `Baseline` objects, and the other models names or models.
            A class of a notebook cell is noted in `run.json` with its source.

    Returns:
        The run. `run.failed` tells which cells failed; calling again with the same `out` tries only those and the
        missing. With `dry_run`, what a run would do.

    Raises:
        UsageError: wrong settings, found before anything is loaded or written.
        LensbenchError: a task, model or output folder that cannot be used.
    """
    refuse_while_importing("lensbench.evaluate")
    given: dict[str, Any] = {**settings} if model is None else {**settings, "model": model}
    made = make_config(given, None if config is None else Path(config))
    return plan_run(made) if dry_run else run_config(made, progress)


def run_config(config: RunConfig, progress: Progress = silent) -> Run:
    """Execute a checked configuration; see `evaluate`."""
    job = check_job(config)
    out = folder_of_run(config)
    with hold_folder(out), kept_log(out) as begin_log:
        job = with_earlier_budget(job, out)
        executor = start_executor(job)
        try:
            _warn_of_idle(job, executor.plan.cells)
            journal = Journal(out, job.config, job.baselines, _with_checks(executor.plan, job.config))
            begin_log()
            journal.begin()
            _execute(executor, journal, progress)
        finally:
            executor.close()
        finish(out)
    run = Run(out)
    if config.log is not None:
        track(run, config.log)
    return run


def _warn_of_idle(job: Job, cells: Sequence[Cell]) -> None:
    computed = {name for name, baseline in job.baselines.items() if baseline.from_scores}
    idle = set(job.config.named_baselines()) - {cell.baseline for cell in cells} - computed
    if idle:
        methods = ", ".join(dict.fromkeys(cell.inspector for cell in cells))
        LOG.warning("baseline %s does not apply to %s and is left out", ", ".join(sorted(idle)), methods)


def _with_checks(plan: Plan, config: RunConfig) -> Plan:
    """Check the methods, and say of each in the plan what was found."""
    checks = check_methods(config, plan.versions)
    return replace(plan, methods={name: {**one, "checks": checks[name].entry()} for name, one in plan.methods.items()})


def _execute(executor: Executor, journal: Journal, progress: Progress) -> None:
    """Work through the cells that are missing. The journal is written after each."""
    cells = executor.plan.cells
    missing = mixed([cell for cell in cells if not journal.settled(cell)], journal.content["setting"]["seed"])
    LOG.info("%d cells, %d done before, in %s", len(cells), len(cells) - len(missing), journal.out)
    with progress(len(missing)) as advance:

        def begin(cell: Cell) -> None:
            shown = f"{cell.inspector} {_baseline_of(cell)}".rstrip()
            LOG.debug("begins: %s at %s, %s", cell.task, cell.site, shown)
            advance(f"{cell.task} {cell.site}: {shown}")

        for work in executor.work(missing, begin):
            entry = journal.keep(work)
            LOG.debug("%s: %s, %s s", entry["status"], work.cell.file, entry.get("seconds", "?"))
            if entry["status"] == "failed":
                failed = f"{work.cell.inspector} {_baseline_of(work.cell)}".rstrip()
                LOG.error("%s failed: %s", failed, entry["error"].splitlines()[0])
            advance(None, _best_so_far(work))


def _baseline_of(cell: Cell) -> str:
    return "" if cell.baseline == NO_BASELINE else cell.baseline


def _best_so_far(work: CellResult) -> str:
    """What a method has found at a place, before anything is known of its baselines."""
    if work.table is None or work.cell.baseline != NO_BASELINE:
        return ""
    records = work.table.select(["attempt", "layer", "correct_corrected"]).to_pandas()
    mean = records.groupby(["attempt", "layer"], dropna=False, observed=True)["correct_corrected"].mean()
    _, layer = mean.idxmax()
    where = "" if pd.isna(layer) else f" at layer {layer:.0f}"
    return f"{work.cell.task} {work.cell.site}: {work.cell.inspector:<20} {mean.max():.2f}{where}"


def mixed(cells: Iterable[Cell], seed: int) -> list[Cell]:
    """Return the cells with those of each method at each place in an order that the seed draws.

    From the order of its fits, a method could tell whether it is run as itself or for a baseline. What is left of an
    interrupted run is in the same order.
    """
    groups: dict[tuple[Place, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.place, cell.inspector), []).append(cell)

    def drawn(cell: Cell) -> bytes:
        return hashlib.sha256(f"{seed}/{cell.digest}".encode()).digest()

    return [cell for group in groups.values() for cell in sorted(group, key=drawn)]


def start_executor(job: Job) -> Executor:
    """Start the executor that the configuration names.

    Raises:
        UsageError: it is not installed, or what the job asks does not fit.
        LensbenchError: a model or task that cannot be used.
    """
    if job.config.executor == "ray":
        from lensbench.evaluation.ray import RayExecutor

        return RayExecutor(job)
    return LocalExecutor(job)
