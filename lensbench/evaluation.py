"""The corridor: from a configuration to a run folder."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lensbench.baselines import Baseline, find_function
from lensbench.bench import Bench, Lab, Method
from lensbench.config import RunConfig, check_config, make_config, parse_layers
from lensbench.corpus import Corpus, lens_cache
from lensbench.errors import UsageError
from lensbench.evidence import NotApplicableError, Target
from lensbench.inspectors.base import Inspector
from lensbench.journal import Journal
from lensbench.model.architecture import ModulePaths
from lensbench.model.loading import Loading, count_layers, load_source
from lensbench.model.sources import resolve
from lensbench.patching import patcher_of
from lensbench.plan import Cell, Make, Setting, due_rivals, make_inspectors, plan_cells, sites_of
from lensbench.preparation import check_prompts, make_benches
from lensbench.progress import Progress, silent
from lensbench.records import RECORDS, RUN_FILE, table_from_columns, write_shard
from lensbench.rivals import Outcome
from lensbench.run import Run, finish
from lensbench.scoring import prediction_columns
from lensbench.tasks import Site, Task

LOG = logging.getLogger("lensbench")
Place = tuple[str, Site]


def evaluate(
    model: str | None = None, *, progress: Progress = silent, config: Path | None = None, **settings: Any
) -> Run:
    """Evaluate inspection methods on tasks, at every layer, beside their rival explanations.

    Args:
        model: a built-in name, a folder, a GGUF file or a Hub id; by default the configuration's, or `smollm2-135m`.
        progress: is told of each cell; `lensbench.progress.bar` draws it.
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
    tasks, baselines = check_config(config)
    for task in tasks:
        if not sites_of(task, config):
            raise UsageError(f"task {task.name} has no site {config.sites}; its sites are {', '.join(task.sites)}")
    makes = make_inspectors(config)
    for baseline in baselines.values():
        find_function(baseline.function)
    out = _out_folder(config)
    try:
        job, cells = _prepare(config, tasks, makes, baselines, out)
    except BaseException:
        _leave_nothing(out)
        raise
    job.journal.write()
    job.execute(cells, progress)
    finish(out)
    return Run(out)


def _prepare(
    config: RunConfig, tasks: list[Task], makes: dict[str, Make], baselines: dict[str, Baseline], out: Path
) -> "tuple[_Job, list[Cell]]":
    """Load the models, plan, and check everything that can be checked before the first cell is run."""
    setting = _load(config)
    for make in makes.values():
        make().check(Target(setting.model), setting.verbalizer)
    cells = plan_cells(setting, tasks, makes, baselines)
    idle = set(baselines) - {cell.baseline_name for cell in cells}
    if idle and config.baselines is not None:
        LOG.warning("baseline %s is no rival of %s; it is left out", ", ".join(sorted(idle)), ", ".join(makes))
    journal = Journal(out, setting, cells, baselines, due_rivals(makes, baselines))
    corpus = Corpus(setting.model, cache=lens_cache())
    lab = Lab(setting.model, setting.verbalizer, corpus, setting.layers, config.seed)
    benches = {
        (task.name, site): make_benches(lab, setting, task, site, journal)
        for task in tasks
        for site in sites_of(task, config)
    }
    check_prompts(setting, [make() for make in makes.values()], benches.values())
    return _Job(setting, makes, journal, benches), cells


def _leave_nothing(out: Path) -> None:
    """Remove the folders of a run that did not begin."""
    if not (out / RUN_FILE).exists():
        for folder in (out / RECORDS, out):
            with suppress(OSError):  # something else is in it
                folder.rmdir()


def _out_folder(config: RunConfig) -> Path:
    """Make the run folder, and prove that it can be written to.

    Raises:
        UsageError: it cannot.
    """
    stem = Path(config.model).name
    out = config.out or Path("reports") / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from None
    return out


def _load(config: RunConfig) -> Setting:
    """Load target and verbalizer; the layers are checked first, on the configuration alone."""
    paths = ModulePaths(**config.module_paths) if config.module_paths else None
    how = Loading(config.device, config.dtype, config.revision, config.offline, config.chat_template, paths)
    device = how.torch_device()
    source = resolve(config.model, revision=config.revision, offline=config.offline)
    layers = parse_layers(config.layers, count_layers(source))
    model = load_source(source, how, device)
    verbalizer = model
    if config.verbalizer and config.verbalizer != config.model:
        # Revision and module paths are those of the target.
        plain = replace(how, revision=None, paths=None)
        verbalizer = load_source(resolve(config.verbalizer, offline=config.offline), plain, device)
    return Setting(model, verbalizer, layers, config)


@dataclass
class _Job:
    """A run at work: its models, methods and benches, and what has been fitted so far."""

    setting: Setting
    makes: dict[str, Make]
    journal: Journal
    benches: dict[Place, list[Bench]]
    fitted: dict[str, dict[object, Inspector]] = field(default_factory=dict)

    def execute(self, cells: list[Cell], progress: Progress) -> None:
        """Work through the cells that are missing. The journal is written after each."""
        missing = [cell for cell in cells if not self.journal.settled(cell)]
        LOG.info("%d cells, %d done before, in %s", len(cells), len(cells) - len(missing), self.journal.out)
        with progress(len(missing)) as advance:
            for place, cell in enumerate(missing):
                rival = cell.baseline.name if cell.baseline else ""
                advance(f"{cell.task.name} {cell.site}: {cell.inspector} {rival}")
                self._run(cell)
                advance(None)
                if not any(_place(later) == _place(cell) for later in missing[place + 1 :]):
                    self._release(_place(cell))

    def _run(self, cell: Cell) -> None:
        with self.journal.record(cell) as entry:
            entry.update(self._score(cell))
        if entry["status"] == "failed":
            LOG.error("%s %s: %s", cell.inspector, cell.baseline_name, entry["error"].splitlines()[0])
        self.journal.write(patcher_of(self.setting.verbalizer).mode)

    def _score(self, cell: Cell) -> dict[str, Any]:
        """Score a cell's relations, write their records, and return what the journal is to say."""
        fitted = self.fitted.setdefault(cell.inspector, {})
        tables, reasons = [], {}
        for bench in self.benches[_place(cell)]:
            method = Method(self.makes[cell.inspector], bench, fitted)
            try:
                tables += [_table(self.setting, cell, bench, outcome) for outcome in _outcomes(method, cell)]
            except NotApplicableError as error:
                reasons[bench.relation.name] = str(error)
        if tables:
            write_shard(self.journal.out / RECORDS / cell.file, pa.concat_tables(tables).unify_dictionaries())
        done = {"status": "done" if tables else "not applicable", "rows": sum(len(table) for table in tables)}
        return {**done, "not_applicable": reasons} if reasons else done

    def _release(self, place: Place) -> None:
        """Forget the activations and fits of a place that is done with; what learned no labels serves all places."""
        self.benches.pop(place)
        for fits in self.fitted.values():
            for key in [key for key in fits if key != ()]:
                del fits[key]


def _place(cell: Cell) -> Place:
    return cell.task.name, cell.site


def _outcomes(method: Method, cell: Cell) -> list[Outcome]:
    if cell.baseline:
        return cell.baseline.run(method)
    layers = method.bench.lab.layers if "activation" in method.inspector.reads else (None,)
    return [Outcome(method.scores(), layers, method.bench.items, method.inspector.learns_from != "labels")]


def _table(setting: Setting, cell: Cell, bench: Bench, outcome: Outcome) -> pa.Table:
    columns = prediction_columns(
        outcome.items, bench.answers, outcome.scores, outcome.layers, correct_prior=outcome.zero_shot
    )
    return table_from_columns(
        {
            **columns,
            "model": setting.model.name,
            "verbalizer": setting.verbalizer.name,
            "task": cell.task.name,
            "inspector": cell.inspector,
            "baseline": cell.baseline_name,
            "seed": setting.config.seed,
        }
    )
