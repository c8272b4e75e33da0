"""The corridor: from a configuration to a run folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensbench.baselines.spec import find_function
from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig, check_config, make_config
from lensbench.evaluation.dry_run import Estimate, estimate
from lensbench.evaluation.journal import Journal, folder_of_run, hold_folder, read_before
from lensbench.evaluation.plan import Cell, Job, make_inspectors, sites_of
from lensbench.evaluation.runner import Executor, LocalExecutor, Runner
from lensbench.results.records import NO_BASELINE
from lensbench.runs.run import Run, finish
from lensbench.utils.cache import size_limit
from lensbench.utils.logs import kept_log
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")


def evaluate(
    model: str | None = None, *, progress: Progress = silent, config: Path | None = None, **settings: Any
) -> Run:
    """Evaluate inspection methods on tasks, at every layer, beside their rival explanations.

    Args:
        model: a built-in name, a folder, a GGUF file or a Hub id; by default the configuration's, or `smollm2-135m`.
        progress: is told of each cell; `lensbench.utils.progress.bar` draws it.
        config: a TOML file of settings; explicit ones win.
        settings: the fields of `RunConfig`: tasks, inspectors, baselines, layers, limit, seed, out, ...

    Returns:
        The run. `run.failed` tells which cells failed; calling again with the same `out` tries only those and the
        missing.

    Raises:
        UsageError: wrong settings, found before anything is loaded or written.
        LensbenchError: a task, model or output folder that cannot be used.
    """
    given = settings if model is None else {**settings, "model": model}
    return run_config(make_config(given, config), progress)


def run_config(config: RunConfig, progress: Progress = silent) -> Run:
    """Execute a checked configuration; see `evaluate`."""
    job = check_job(config)
    out = folder_of_run(config)
    with hold_folder(out), kept_log(out):
        job = _as_before(job, out)
        executor = start_executor(job)
        try:
            _warn_of_idle(job, executor.plan.cells)
            journal = Journal(out, job.config, job.baselines, executor.plan)
            journal.begin()
            _execute(executor, journal, progress)
        finally:
            executor.close()
        finish(out)
    return Run(out)


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        out: its folder, which is left as it is.
        cells: all of the plan.
        missing: those that are still to be made.
        estimate: what they will take, in one process on this machine.
    """

    out: Path
    cells: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    estimate: Estimate


def dry_run(config: RunConfig) -> DryRun:
    """Plan a run, and try its cells on a few items; nothing is written but what a cache keeps of models."""
    out = folder_of_run(config)
    job = _as_before(check_job(config), out)
    runner = Runner(job)
    journal = Journal(out, job.config, job.baselines, runner.plan)
    missing = [cell for cell in runner.plan.cells if not journal.settled(cell)]
    return DryRun(out, runner.plan.cells, tuple(missing), estimate(runner, missing))


def check_job(config: RunConfig) -> Job:
    """Look up every name in a configuration, without a model.

    Raises:
        UsageError: something that is not there, or does not fit.
        TaskError: a malformed task.
    """
    tasks, baselines = check_config(config)
    for task in tasks:
        if not sites_of(task, config):
            raise UsageError(f"task {task.name} has no site {config.sites}; its sites are {', '.join(task.sites)}")
    known = {site for task in tasks for site in task.sites}
    if missing := [site for site in config.sites or () if site not in known]:
        raise UsageError(f"no task has the site {missing[0]}; their sites are {', '.join(sorted(known))}")
    make_inspectors(config)
    size_limit()  # a wrong one is refused before anything is loaded
    for baseline in baselines.values():
        find_function(baseline.function)
    return Job(config, tuple(tasks), baselines)


def _as_before(job: Job, out: Path) -> Job:
    """Take the memory budget of the run that is gone on with, unless one is given: batches are then the same."""
    held_before = read_before(out).get("memory_budget")
    if held_before is None or job.config.memory != "auto":
        return job
    return Job(job.config.model_copy(update={"memory": held_before}), job.tasks, job.baselines)


def _warn_of_idle(job: Job, cells: Sequence[Cell]) -> None:
    idle = set(job.baselines) - {cell.baseline for cell in cells}
    if idle and job.config.baselines is not None:
        methods = ", ".join(dict.fromkeys(cell.inspector for cell in cells))
        LOG.warning("baseline %s is no rival of %s; it is left out", ", ".join(sorted(idle)), methods)


def _execute(executor: Executor, journal: Journal, progress: Progress) -> None:
    """Work through the cells that are missing. The journal is written after each."""
    cells = executor.plan.cells
    missing = [cell for cell in cells if not journal.settled(cell)]
    LOG.info("%d cells, %d done before, in %s", len(cells), len(cells) - len(missing), journal.out)
    with progress(len(missing)) as advance:

        def begin(cell: Cell) -> None:
            rival = cell.baseline if cell.baseline != NO_BASELINE else ""
            LOG.debug("begins: %s at %s, %s %s", cell.task, cell.site, cell.inspector, rival)
            advance(f"{cell.task} {cell.site}: {cell.inspector} {rival}")

        for work in executor.work(missing, begin):
            entry = journal.keep(work)
            LOG.debug("%s: %s, %s s", entry["status"], work.cell.file, entry.get("seconds", "?"))
            if entry["status"] == "failed":
                LOG.error("%s %s: %s", work.cell.inspector, work.cell.baseline, entry["error"].splitlines()[0])
            advance(None)


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
