"""The corridor: from a configuration to a run folder."""

import logging
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from lensbench.baselines import Baseline
from lensbench.bench import Bench, Lab, Method
from lensbench.config import RunConfig, check_config, make_config, parse_layers
from lensbench.corpus import Corpus, lens_cache
from lensbench.errors import LensbenchError, UsageError
from lensbench.evidence import NotApplicableError
from lensbench.inspectors.base import Inspector
from lensbench.model.architecture import ModulePaths
from lensbench.model.language_model import LanguageModel
from lensbench.model.loading import Loading, count_layers, load_source
from lensbench.model.sources import resolve
from lensbench.patching import patcher_of
from lensbench.plan import Cell, Make, Setting, make_inspectors, plan_cells, sites_of
from lensbench.progress import Progress, silent
from lensbench.records import RECORDS, RUN_FILE, read_run, table_from_columns, write_json_atomic, write_shard
from lensbench.residuals import find_site
from lensbench.rivals import Outcome
from lensbench.run import Run, finish
from lensbench.scoring import prediction_columns
from lensbench.tasks import N_FOLDS, Item, Site, Task

LOG = logging.getLogger("lensbench")
COMMON = ("schema", "model_fingerprint", "verbalizer_fingerprint", "dtype", "layers", "limit", "seed")


def evaluate(
    model: str = "smollm2-135m", *, progress: Progress = silent, config: Path | None = None, **settings: Any
) -> Run:
    """Evaluate inspection methods on tasks, at every layer, beside their rival explanations.

    Args:
        model: a built-in name, a folder, a GGUF file or a Hub id.
        progress: is told of each cell; `lensbench.progress.bar` draws it.
        config: a TOML file of settings; explicit ones win.
        settings: the fields of `RunConfig`: tasks, inspectors, baselines, layers, limit, seed, out, ...

    Returns:
        The run. `run.failed` tells which cells failed; calling again with the same `out` tries only those and the missing.

    Raises:
        UsageError: wrong settings, found before anything is loaded or written.
        LensbenchError: a task, model or output folder that cannot be used.
    """
    given = {**settings, **({"model": model} if model != "smollm2-135m" or config is None else {})}
    return run_config(make_config(given, config), progress)


def run_config(config: RunConfig, progress: Progress = silent) -> Run:
    """Execute a checked configuration; see `evaluate`."""
    tasks, baselines = check_config(config)
    for task in tasks:
        if not sites_of(task, config):
            raise UsageError(f"task {task.name} has no site {config.sites}; its sites are {', '.join(task.sites)}")
    makes = make_inspectors(config)
    out = _out_folder(config)
    setting = _load(config)
    cells = plan_cells(setting, tasks, makes, baselines)
    job = _Job(setting, makes, out, _resumed(out, setting, cells, baselines))
    benches = {(task.name, site): _benches(job, task, site) for task in tasks for site in sites_of(task, config)}
    job.write()
    try:
        _execute(job, cells, benches, progress)
    finally:
        job.write()
    finish(out)
    return Run(out)


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
        plain = Loading(config.device, config.dtype, offline=config.offline, chat_template=config.chat_template)
        verbalizer = load_source(resolve(config.verbalizer, offline=config.offline), plain, device)
    return Setting(model, verbalizer, layers, config)


def _resumed(out: Path, setting: Setting, cells: list[Cell], baselines: dict[str, Baseline]) -> dict[str, Any]:
    """Return the content of `run.json`: new, or that of the run to be gone on with.

    Raises:
        UsageError: the folder holds a run whose records cannot stand beside these.
    """
    described = setting.describe()
    before: dict[str, Any] = read_run(out) if (out / RUN_FILE).exists() else {}
    for key in COMMON if before else ():
        if before["setting"][key] != described[key]:
            raise UsageError(
                f"--out {out} holds a run with {key} {before['setting'][key]}, now {described[key]}; choose another folder"
            )
    run = {
        "config": setting.config.model_dump(mode="json", exclude={"out"}),
        "setting": described,
        "versions": {name: version(name) for name in ("lensbench", "torch", "transformers", "scikit-learn", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": _commit(),
        "baselines": {
            name: {"question": baseline.question, "rules_out": baseline.rules_out}
            for name, baseline in baselines.items()
        },
        "cells": {},
        "dropped": {},
    }
    for key in ("baselines", "cells"):
        run[key] = {**before.get(key, {}), **run[key]}
    for cell in cells:
        _forget_superseded(run["cells"], cell)
        status = "done" if (out / RECORDS / cell.file).exists() else "missing"
        entry = run["cells"].get(cell.file, {})
        if entry.get("status") not in ("done", "not applicable") or status == "missing" != entry.get("status"):
            entry = {"status": status if entry.get("status") != "not applicable" else "not applicable"}
        run["cells"][cell.file] = {**entry, **_named(cell)}
    return run


def _named(cell: Cell) -> dict[str, str]:
    return {
        "task": cell.task.name,
        "site": cell.site,
        "inspector": cell.inspector,
        "baseline": cell.baseline_name,
    }


def _forget_superseded(cells: dict[str, Any], cell: Cell) -> None:
    """Leave out older cells of the same name: a task, method or baseline that has changed since."""
    for file, entry in list(cells.items()):
        if file != cell.file and all(entry.get(key) == value for key, value in _named(cell).items()):
            del cells[file]


def _commit() -> str | None:
    """Return the commit of lensbench's own checkout, where it runs from one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


@dataclass
class _Job:
    """A run in progress: its models, its folder, and what `run.json` will say."""

    setting: Setting
    makes: dict[str, Make]
    out: Path
    run: dict[str, Any]
    fitted: dict[str, dict[object, Inspector]] = field(default_factory=dict)

    def write(self) -> None:
        mode = patcher_of(self.setting.verbalizer).mode
        self.run["patched_pass"] = mode or self.run.get("patched_pass")
        write_json_atomic(self.out / RUN_FILE, self.run)


def _benches(job: _Job, task: Task, site: Site) -> list[Bench]:
    """Make the benches of a task at a site, every read site checked, before any is captured.

    Raises:
        LensbenchError: a site that the tokenizer cannot find, or a relation of which nothing is left.
    """
    setting = job.setting
    lab = Lab(
        setting.model,
        setting.verbalizer,
        Corpus(setting.model, cache=lens_cache()),
        setting.layers,
        setting.config.seed,
    )
    test = task.items(site, "test", setting.config.limit, setting.config.seed)
    train = task.items(site, "train")
    benches = []
    for relation in task.relations.values():
        items, train_items = (_kept(job, task, [i for i in group if i.relation == relation.name]) for group in (test, train))
        if items:
            for item in (*items, *train_items):
                find_site(setting.model, item)
            benches.append(Bench(lab, relation, items, train_items))
    if not benches:
        raise LensbenchError(
            f"task {task.name} has no item left for {setting.model.name}: all were dropped because choices of a set begin with the same token"
        )
    return benches


def _kept(job: _Job, task: Task, items: list[Item]) -> tuple[Item, ...]:
    """Drop items whose choices begin with the same token under either tokenizer: for all methods alike, and counted."""
    kept = []
    for item in items:
        models: set[LanguageModel] = {job.setting.model, job.setting.verbalizer}
        firsts = [[model.tokens.answer_token(choice) for choice in item.choices] for model in models]
        if all(len(set(first)) == len(first) for first in firsts):
            kept.append(item)
        else:
            job.run["dropped"].setdefault(f"{task.name}/{item.relation}", {})[item.id] = "choices share a first token"
    if kept and {item.template.startswith("train") for item in kept} == {True}:
        empty = sorted(set(range(N_FOLDS)) - {item.fold for item in kept})
        if empty:
            raise LensbenchError(
                f"{task.name}/{kept[0].relation}: fold {empty[0]} holds no subject whose choices begin with different tokens of {job.setting.model.name}; add subjects or leave the relation out"
            )
    return tuple(kept)


def _execute(
    job: _Job, cells: list[Cell], benches: dict[tuple[str, Site], list[Bench]], progress: Progress
) -> None:
    missing = [cell for cell in cells if job.run["cells"][cell.file]["status"] not in ("done", "not applicable")]
    LOG.info("%d cells, %d done before", len(cells), len(cells) - len(missing))
    with progress(len(missing)) as advance:
        for place, cell in enumerate(missing):
            advance(f"{cell.task.name} {cell.site}: {cell.inspector} {cell.baseline_name if cell.baseline else ''}")
            with _recorded(job, cell) as entry:
                entry.update(_run_cell(job, cell, benches[cell.task.name, cell.site]))
            advance(None)
            if all((cell.task.name, cell.site) != (later.task.name, later.site) for later in missing[place + 1 :]):
                _release(job, benches.pop((cell.task.name, cell.site)))


def _release(job: _Job, benches: list[Bench]) -> None:
    """Forget activations and fits of a task and site that is done with."""
    benches.clear()
    for fits in job.fitted.values():
        for key in [key for key in fits if key != ()]:
            del fits[key]


@contextmanager
def _recorded(job: _Job, cell: Cell) -> Iterator[dict[str, Any]]:
    """Note how a cell went, in `run.json`. A cell that fails does not end the others."""
    entry = job.run["cells"][cell.file]
    begun = time.perf_counter()
    try:
        yield entry
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a foreign method may raise anything; it is recorded with its traceback
        entry.update(status="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        LOG.error("%s %s: %s", cell.inspector, cell.baseline_name, entry["error"])
    entry["seconds"] = round(time.perf_counter() - begun, 3)
    entry["peak_memory_mb"] = _peak_memory()
    job.write()


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))


def _run_cell(job: _Job, cell: Cell, benches: list[Bench]) -> dict[str, Any]:
    fitted = job.fitted.setdefault(cell.inspector, {})
    tables, reasons = [], {}
    for bench in benches:
        method = Method(job.makes[cell.inspector], bench, fitted)
        try:
            tables += [_table(job.setting, cell, bench, outcome) for outcome in _outcomes(method, cell)]
        except NotApplicableError as error:
            reasons[bench.relation.name] = str(error)
    if tables:
        write_shard(job.out / RECORDS / cell.file, pa.concat_tables(tables).unify_dictionaries())
    done = {"status": "done" if tables else "not applicable", "rows": sum(len(table) for table in tables)}
    return {**done, "not_applicable": reasons} if reasons else done


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
