"""The cells of a run: which predictions are to be made, each under a name made of everything that it depends on."""

import hashlib
import inspect as introspection
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from lensbench.baselines.spec import Baseline, find_baselines, find_function
from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig, check_config
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import EXCHANGEABLE
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.catalog import load_inspector
from lensbench.inspectors.evidence import Learns
from lensbench.results.records import NO_BASELINE
from lensbench.tasks import SITES, Task
from lensbench.tasks.extents import split_site
from lensbench.utils.cache import size_limit
from lensbench.utils.code import code_digest, digest_of_files, source_of

LONGEST_NAME = 220
"""Bytes of a cell's file name: file systems take 255, and baselines and unfinished files add to it."""
Make = Callable[[], Inspector]
Place = tuple[str, str]

# The rooms that predictions are made by, besides the method and the baseline themselves: when their code changes, all
# cells are made again. What only shows or plans results is not in them.
ENGINE = (
    "harness", "models", "tasks", "baselines/common.py", "baselines/readers.py", "evaluation/blind.py",
    "evaluation/items.py", "evaluation/models.py", "evaluation/runner.py", "evaluation/tables.py",
    "inspectors/access.py", "inspectors/evidence.py", "inspectors/probes/probing.py", "inspectors/scores.py",
    "inspectors/target.py", "results/confidence.py", "results/records.py", "results/crossed_files.py",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One file of records: a task at a site, by a method or one of its baselines.

    Attributes:
        task: the task's name.
        relations: those asked, in alphabetical order.
        site: where it is read.
        inspector: the method's name.
        baseline: the baseline's name, or "none" for the method itself.
        method: a digest of everything that the method's own predictions depend on.
        digest: of everything that this cell's predictions depend on.
    """

    task: str
    relations: tuple[str, ...]
    site: str
    inspector: str
    baseline: str
    method: str
    digest: str

    @property
    def place(self) -> Place:
        """Where it reads: cells of one place share activations."""
        return self.task, self.site

    @property
    def file(self) -> str:
        """The shard's file name."""
        site = self.site.replace("/", "+").replace(":", "=")
        parts = (self.task, site, self.inspector, self.baseline, self.digest)
        return "-".join(parts) + ".parquet"


@dataclass(frozen=True)
class Plan:
    """What is to be done, as plain values: it travels between processes.

    Attributes:
        setting: what all cells depend on, as `RunContext.describe` gives it.
        cells: in the order of work.
        versions: inspector -> `method_version`, by which calibrations are kept.
        methods: inspector -> what it does in a sentence, what it reads and what it learns from.
        due: inspector -> the baselines that it must have faced, as `required_baselines` lists them.
        dropped: task/relation -> item -> why no method is asked about it.
        memory: the bytes that a batch may take.
        n_layers: how many blocks the target has, and so the number of its last layer.
        selected: task/relation whose items were chosen by what the model says in text: no verdict is given on them.
        by_token: task/relation whose names are cut: as many items as a tokenizer makes, so no part in totals either.
        short_answers: task/relation -> the share of answers whose first token, which is what is scored, has at most two
            letters.
        summaries: task/relation -> what leads to what, such as "country → capital".
        prose: tasks whose gold is the model's own next token: no rival that reads the text has anything to say.
    """

    setting: dict[str, Any]
    cells: tuple[Cell, ...]
    versions: dict[str, str]
    methods: dict[str, dict[str, Any]]
    due: dict[str, dict[str, dict[str, Any]]]
    dropped: dict[str, dict[str, str]]
    memory: int
    n_layers: int
    selected: tuple[str, ...] = ()
    by_token: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()
    short_answers: dict[str, float] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """The settings of a run with all names looked up; every process that works on it starts from this."""

    config: RunConfig
    tasks: tuple[Task, ...]
    baselines: dict[str, Baseline]

    @property
    def given(self) -> bool:
        """Whether the sources of some relation state the answer: the baselines of such are due, and run, in all tasks.

        Where no answer is given they say that they do not apply, and are excused.
        """
        return any(relation.given for task in self.tasks for relation in task.relations.values())


def make_inspectors(config: RunConfig) -> dict[str, Make]:
    """Import the inspectors, and try their settings.

    Raises:
        UsageError: an inspector that cannot be imported, or settings that it refuses.
    """
    makes: dict[str, Make] = {}
    unused = dict(config.parameters)
    for given in config.inspectors:
        found = load_inspector(given)
        if found.name in makes:
            raise UsageError(f"two inspectors are called {found.name!r}; rename one")
        settings = {**unused.pop(found.name, {}), **(unused.pop(given, {}) if isinstance(given, str) else {})}
        known = list(introspection.signature(found).parameters)
        for name in settings:
            if name not in known:
                raise UsageError(
                    f"inspector {found.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}"
                )
        # TOML has lists where methods have tuples.
        makes[found.name] = partial(found, **{key: _tupled(value) for key, value in settings.items()})
        try:
            makes[found.name]()
        except (TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"inspector {found.name} refuses its settings {settings}: {reason}") from None
    if unused:
        raise UsageError(
            f"settings are given for {min(unused)}, which is not in this run ({', '.join(makes)}); leave them out"
        )
    return makes


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def describe_method(inspector: Inspector) -> dict[str, Any]:
    """Return what a page says of a method."""
    source = source_of(type(inspector))
    return {
        "summary": (introspection.getdoc(type(inspector)) or "").partition("\n")[0],
        "reads": sorted(inspector.reads), "learns_from": inspector.learns_from,
        "version": method_version(inspector), "rule": inspector.rule, **({"source": source} if source else {}),
    }  # fmt: skip


@runtime_checkable
class Declares(Protocol):
    """What decides which baselines are fair to a method: its inspector's declarations, or its card's."""

    @property
    def learns_from(self) -> Learns:
        """The supervision that it needs."""

    @property
    def reads(self) -> Collection[str]:
        """The sources that it uses."""


def required_baselines(
    methods: Mapping[str, Declares], chosen: dict[str, Baseline], roles: Collection[str] = (), *, given: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return for each method the baselines that it must have faced before anything good is said of it.

    These are all that ship and apply to it, chosen or not, but optional ones, and those that were chosen. Of those that
    need a model that the run has not (it has the roles `roles`) only the essential ones; those for relations whose
    sources state the answer only where there are such (`given`).
    """
    usual = {name: baseline for name, baseline in find_baselines().items() if not baseline.optional}
    every = {
        name: baseline
        for name, baseline in {**usual, **chosen}.items()
        if (baseline.essential or set(baseline.needs) <= set(roles)) and (given or not baseline.given)
    }
    return {
        name: {
            baseline.name: {"question": baseline.question, "essential": baseline.essential}
            for baseline in baselines_of(method, every)
        }
        for name, method in methods.items()
    }


def baselines_of(method: Declares, baselines: Mapping[str, Baseline]) -> list[Baseline]:
    """Return the baselines that are fair to a method."""
    trained, reads = bool(getattr(method, "trained", False)), frozenset(method.reads)
    return [b for b in baselines.values() if b.applies_to(method.learns_from, reads, trained=trained)]


def sites_of(task: Task, config: RunConfig) -> tuple[str, ...]:
    """Return the selected sites of a task: their places in the order of a text, each with its extents."""
    asked = [(site, *split_site(site)) for site in config.sites or SITES]
    return tuple(
        place + (f"/{site.rpartition('/')[2]}" if extent.kind != "token" else "")
        for place in SITES
        if place in task.sites
        for site, own, extent in asked
        if own in (place, "")
    )


def plan_cells(context: RunContext, job: Job, makes: dict[str, Make]) -> list[Cell]:
    """List the cells in the order of work: what shares activations and fits stands together."""
    cells = []
    for task in job.tasks:
        prose = any(relation.kind == "next_token" for relation in task.relations.values())
        for site in sites_of(task, job.config):
            for name, make in makes.items():
                inspector = make()
                exchangeable = inspector.reads in EXCHANGEABLE
                method = _digest(context, task, site, inspector, None)
                own = Cell(task.name, tuple(sorted(task.relations_at(site))), site, name, NO_BASELINE, method, method)
                if len(own.file.encode()) > LONGEST_NAME:
                    raise UsageError(
                        f"task {task.name!r:.60} and inspector {name!r:.60} make file names of more than "
                        f"{LONGEST_NAME} bytes; give the task a shorter one: FILE?name=SHORT"
                    )
                cells.append(own)
                for baseline in baselines_of(inspector, job.baselines):
                    if not set(baseline.needs) <= set(context.controls.models):
                        continue
                    if (baseline.given and not job.given) or (baseline.from_scores and exchangeable and not prose):
                        continue
                    digest = _digest(context, task, site, inspector, baseline)
                    cells.append(replace(own, baseline=baseline.name, digest=digest))
    return cells


def _digest(context: RunContext, task: Task, site: str, inspector: Inspector, baseline: Baseline | None) -> str:
    files = (*inspector.files(), *(baseline.files() if baseline else ()))
    described = {
        "setting": context.describe(),
        "engine": [version("lensbench"), _engine()],
        "task": [task.name, task.version, sorted(task.relations_at(site))],
        "site": site,
        "inspector": [inspector.name, inspector.parameters(), code_digest(type(inspector))],
        **({"files": [hashlib.sha256(one.read_bytes()).hexdigest() for one in files]} if files else {}),
        **_control_models_of(context, baseline),
        "baseline": baseline and [baseline.name, baseline.parameters, code_digest(find_function(baseline.function))],
        **({"stride": baseline.stride} if baseline and baseline.stride > 1 else {}),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _control_models_of(context: RunContext, baseline: Baseline | None) -> dict[str, Any]:
    """Return the models besides target and verbalizer that a baseline's records depend on."""
    if baseline is None or not baseline.needs:
        return {}
    told = {"twin_facts": context.controls.twin_facts} if "twin" in baseline.needs else {}
    return {"relatives": context.controls.describe(baseline.needs), **told}


def method_version(inspector: Inspector) -> str:
    """Return a digest of all that a method's predictions depend on but models, tasks and layers."""
    files = [hashlib.sha256(one.read_bytes()).hexdigest() for one in inspector.files()]
    described = [inspector.name, inspector.parameters(), code_digest(type(inspector)), files, _engine()]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def _engine() -> str:
    package = Path(__file__).parents[1]
    files = [file for name in ENGINE for file in sorted((package / name).rglob("*.py")) or [package / name]]
    return digest_of_files(files)


def check_job(config: RunConfig) -> Job:
    """Look up every name in a configuration, without a model.

    Raises:
        UsageError: something that is not there, or does not fit.
        TaskError: a malformed task.
    """
    tasks, baselines = check_config(config)
    for task in tasks:
        if not sites_of(task, config):
            raise UsageError(
                f"task {task.name} has no site {' or '.join(config.sites or ())}; its sites are {', '.join(task.sites)}"
            )
    known = {site for task in tasks for site in task.sites}
    if missing := [site for site in config.sites or () if split_site(site)[0] not in {*known, ""}]:
        raise UsageError(f"no task has the site {missing[0]}; their sites are {', '.join(sorted(known))}")
    make_inspectors(config)
    size_limit()  # a wrong one is refused before anything is loaded
    for baseline in baselines.values():
        find_function(baseline.function)
    return Job(config, tuple(tasks), baselines)


@dataclass(frozen=True)
class CellResult:
    """What came of a cell.

    Attributes:
        cell: the cell.
        table: its records; None where there are none.
        measures: what was measured besides; None where nothing was.
        entry: what the journal is to say: status, rows, time, memory, and how it failed.
        state: what the whole run's journal is to say: how patched passes are run, how much memory batches may take.
        crossed: credit under other activations; None where it is not known.
    """

    cell: Cell
    table: pa.Table | None
    entry: dict[str, Any]
    measures: pa.Table | None = None
    state: dict[str, Any] = field(default_factory=dict)
    crossed: pa.Table | None = None


def failure(error: BaseException) -> dict[str, Any]:
    """Return what the journal says of a cell that failed."""
    lines = traceback.format_exception(error)
    return {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": "".join(lines)}
